"""Uvicorn under its own supervisor, signals, list of running servers.

The lock is what counts, since a process id outlives its process and is given to another.
"""

import asyncio
import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Self

import uvicorn

from bincounter.errors import BinCounterError, ResourceError, UserError
from bincounter.serving.application.answers import Limits, Problem
from bincounter.serving.application.service import Reply
from bincounter.serving.local.app import Front, read_card
from bincounter.serving.local.explain import Explainer
from bincounter.serving.local.guards import Connection
from bincounter.serving.packing.archive_probe import FrameError, frame, read_frame, refused_packages

log = logging.getLogger(__name__)

START = 120.0
"""Seconds a process may take until it is ready."""

_LAST_LINES = 20


class Died(Exception):
    """The process ended before it answered."""


class Process:
    """A running process, see :meth:`start`.

    Args:
        process: with the other end of ``streams`` as its stdin.
        reader: what it sends.
        writer: what it is sent.

    Attributes:
        ready: what it said of itself when it was.
        dead: done once the process has ended and all that was asked of it is settled.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process, self._reader, self._writer = process, reader, writer
        self._numbers = count(1)
        self._pending: dict[int, asyncio.Future[tuple[dict[str, Any], bytes] | None]] = {}
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._logging = asyncio.create_task(self._log())
        self._killed = False
        self.ready: dict[str, Any] = {}
        self.dead: asyncio.Task[None]

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str]) -> Self:
        """Start a process and wait until it is ready.

        Raises:
            UserError: it ended by itself; the message has the last line of its stderr.
            ResourceError: it was killed, took too long, or the system had no room for it.
        """
        try:
            started = await cls._spawn(command, environment)
        except OSError as error:
            raise ResourceError(f"No process can be started for the model ({error}); end others.") from error
        try:
            async with asyncio.timeout(START):
                first = await read_frame(started._reader)
        except (TimeoutError, FrameError) as error:
            await started._end()
            raise ResourceError(f"The model was not loaded within {START:.0f} s; free memory and cores.") from error
        except asyncio.CancelledError:
            await started._end()
            raise
        if first is None:
            await started._end(wait=True)
            raise started._reason()
        started.ready = first[0]["ready"]
        started.dead = asyncio.create_task(started._receive())
        return started

    @classmethod
    async def _spawn(cls, command: Sequence[str], environment: Mapping[str, str]) -> Self:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the server, which answers what it has taken
            )
        return cls(process, *await asyncio.open_connection(sock=ours))

    def _reason(self) -> BinCounterError:
        code = self._process.returncode or 0
        if code < 0:
            name = signal.Signals(-code).name
            return ResourceError(f"The model's process was ended by {name} while it was loaded; free memory.")
        line = self._last_lines[-1] if self._last_lines else f"exit code {code}"
        return UserError(f"The archive cannot be loaded: {line}")

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    async def ask(self, head: Mapping[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Send a frame and wait for its answer; whoever stops waiting cancels what was asked.

        Raises:
            Died: the process ended before it answered.
        """
        if self.dead.done() or self._writer.is_closing():
            raise Died
        number = next(self._numbers)
        answer = self._pending[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(frame({**head, "id": number}, body))
            await self._writer.drain()
            received = await answer
        except ConnectionError as error:
            raise Died from error
        except asyncio.CancelledError:
            self._writer.write(frame({"do": "cancel", "id": number}))
            raise
        finally:
            del self._pending[number]
        if received is None:
            raise Died
        return received

    async def _receive(self) -> None:
        try:
            while (received := await read_frame(self._reader)) is not None:
                answer = self._pending.get(received[0].get("id", 0))
                if answer and not answer.done():
                    answer.set_result(received)
        except FrameError as error:
            log.error("The model's process sent %s.", error)
        finally:
            for answer in self._pending.values():
                if not answer.done():
                    answer.set_result(None)
            await self._end()

    def kill(self, why: str = "") -> None:
        """End the process at once, also where it is stopped.

        Args:
            why: for the log, which has it once.
        """
        if self._process.returncode is None and not self._killed:
            if why:
                log.error("%s", why)
            self._killed = True
            self._process.kill()

    async def close(self) -> None:
        """End the process and wait until it is gone."""
        self.kill()
        await self.dead

    async def _end(self, *, wait: bool = False) -> None:
        if not wait:
            self.kill()
        self._writer.close()
        await self._process.wait()
        await self._logging

    async def _log(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        rest = b""
        while chunk := await stderr.read(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            self._keep(lines)
        self._keep([rest])

    def _keep(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            if text := line.decode(errors="replace").rstrip():
                self._last_lines.append(text[:500])
                log.info("%s", text)


GRACE = 5.0
"""Seconds beyond ``limits.timeout_s`` after which a process that has not answered counts as hung."""

_STATE = 2.0  # seconds that a process may take to say how it is

_SCRIPT = Path(__file__).parents[1] / "packing" / "archive_probe.py"
_STARTS = 3  # failures in a row
_LONGEST_PAUSE = 5.0  # seconds


class State(NamedTuple):
    """How a process is: whether it can answer, and what it has done since it was started."""

    ready: bool
    statistics: dict[str, float]


class Worker:
    """A process that answers, and its successors; see :meth:`start` and :meth:`run`.

    No request hangs: one that a dead process had in hand is answered 503 at once, as is every other while there is
    none, and a process that does not answer in time, or whose model is stuck or broken, is killed.

    Attributes:
        ready: what the process says of its model: ``name, counts, image_size, precision, limits``.
        restarts: how often it was started again.
        given_up: done, with the reason, when it could not be started again.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], process: Process, timeout_s: float | None
    ) -> None:
        self._command, self._environment = command, environment
        self._process: Process | None = process
        self.ready: dict[str, Any] = process.ready
        self._timeout_s = timeout_s or self.limits.timeout_s + GRACE
        self._deaths: deque[float] = deque(maxlen=10)
        self.restarts = 0
        self.given_up: asyncio.Future[BinCounterError] = asyncio.get_running_loop().create_future()
        self._supervision = asyncio.create_task(self._supervise())

    @classmethod
    async def start(
        cls, folder: Path, *, python: str = sys.executable, guard: bool = False, **environment: str
    ) -> Self:
        """Load an unpacked archive in a process of its own.

        Args:
            folder: the archive.
            python: of the environment it is to run in.
            guard: hide from it what bincounter needs and serving images lack.
            environment: beside this process's.

        Raises:
            UserError: the archive cannot be loaded; the message says why.
            ResourceError: memory or time gave out.
        """
        refused = [",".join(refused_packages(folder))] if guard else []
        return await cls.run([python, "-P", str(_SCRIPT), str(folder), *refused], timeout_s=None, **environment)

    @classmethod
    async def run(cls, command: Sequence[str], *, timeout_s: float | None = None, **environment: str) -> Self:
        """Start any process that answers frames as :mod:`bincounter.serving.packing.archive_probe` does.

        Args:
            command: that starts it.
            timeout_s: seconds an answer may take, by default what the limits allow and :data:`GRACE`.
            environment: beside this process's.
        """
        joined = {**os.environ, **environment}
        return cls(command, joined, await Process.start(command, joined), timeout_s)

    @property
    def limits(self) -> Limits:
        """What the archive takes."""
        return Limits(**self.ready["limits"])

    @property
    def pid(self) -> int | None:
        """Of the process, where there is one."""
        return self._process.pid if self._process else None

    async def ask(self, body: bytes, content_type: str | None, accept: str | None) -> Reply:
        """Pass a request on; always answered."""
        process = self._process
        try:
            if process is None:
                raise Died
            async with asyncio.timeout(self._timeout_s):
                head, content = await process.ask(
                    {"do": "handle", "content_type": content_type, "accept": accept}, body
                )
        except Died:
            sentence = "The model's process ended and is being started again; ask again in a few seconds."
            return Reply.refusing(Problem(503, sentence))
        except TimeoutError:
            assert process is not None
            process.kill(f"The model's process has not answered for {self._timeout_s:.0f} s and is killed.")
            sentence = f"The model did not answer within {self._timeout_s:.0f} s and is being started again; ask again."
            return Reply.refusing(Problem(504, sentence))
        if head["status"] in (500, 504) and not (await self.state()).ready:
            process.kill("The model's process answers no more and is killed.")
        return Reply(head["status"], head["content_type"], content, head["headers"])

    async def state(self) -> State:
        """Whether the process can answer, and what it has done."""
        process = self._process
        try:
            if process is None:
                raise Died
            async with asyncio.timeout(_STATE):
                head, _ = await process.ask({"do": "tell"})
        except (Died, TimeoutError):
            return State(False, {})
        return State(head["ready"], head["statistics"])

    async def close(self) -> None:
        """End the process for good."""
        self._supervision.cancel()
        await asyncio.wait([self._supervision])
        if self._process:
            await self._process.close()

    async def _supervise(self) -> None:
        while self._process:
            await asyncio.shield(self._process.dead)
            self._process = None
            log.warning("The model's process ended; it is started again.")
            await asyncio.sleep(self._pause())
            self._process = await self._start_again()

    def _pause(self) -> float:
        """Seconds to wait before a start: none at first, more when deaths follow each other."""
        now = time.monotonic()
        recent = sum(now - death < 60 for death in self._deaths)
        self._deaths.append(now)
        return min(_LONGEST_PAUSE, recent * 0.5)

    async def _start_again(self) -> Process | None:
        for number in range(_STARTS):
            try:
                await asyncio.sleep(number / 2)
                process = await Process.start(self._command, self._environment)
            except BinCounterError as error:
                log.error("%s", error)
                failure = error
            else:
                self.restarts += 1
                return process
        self.given_up.set_result(failure)
        return None


_LONGEST_END = 90.0  # seconds: requests that were taken are still answered


@dataclass(frozen=True)
class Server:
    """A server of an archive on 127.0.0.1.

    Attributes:
        name: of the endpoint.
        port: it listens on.
        pid: of its process.
        model: id of the model it serves.
        archive: the file it serves.
    """

    name: str
    port: int
    pid: int
    model: str
    archive: str

    @property
    def url(self) -> str:
        """Where its page is."""
        return f"http://127.0.0.1:{self.port}/"


@contextmanager
def own_place(folder: Path) -> Iterator[Path]:
    """A path below ``folder`` for what this process serves; what lies there is gone after the block."""
    path = folder / str(os.getpid())
    shutil.rmtree(path, ignore_errors=True)  # of a killed process that had the same number
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def announced(server: Server, folder: Path) -> Iterator[None]:
    """Let others find a server of this process for as long as the block lasts.

    Args:
        server: that serves.
        folder: of these files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{server.pid}.json"
    aside = path.with_suffix(".part")
    with aside.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        json.dump(asdict(server), file)
        file.flush()
        aside.replace(path)  # locked before anyone sees it
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def running(folder: Path) -> list[Server]:
    """The servers of this machine that serve, by port; what killed ones left is cleared away."""
    found = []
    for path in folder.glob("*.json"):
        with suppress(FileNotFoundError), path.open(encoding="utf-8") as file:  # one may end meanwhile
            if _unlocked(file.fileno()):
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                path.unlink()
            else:
                found.append(Server(**json.load(file)))
    return sorted(found, key=lambda server: server.port)


def end(server: Server, folder: Path) -> None:
    """Ask a running server to end, and wait until it has.

    Raises:
        UserError: it is another user's, or goes on.
    """
    try:
        os.kill(server.pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise UserError(f"{server.url} is served by another user's process {server.pid}: ask them to end it") from error
    until = time.monotonic() + _LONGEST_END
    while server in running(folder):
        if time.monotonic() > until:
            raise UserError(f"{server.url} was asked to end and goes on: see what process {server.pid} does")
        time.sleep(0.05)


def _unlocked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two may look at once
    except OSError:
        return False
    return True


ADDRESS = "127.0.0.1"
_EXIT_CODES = {signal.SIGINT: 0, signal.SIGTERM: 143}


def serve(folder: Path, *, port: int, started: Callable[[int], None] = lambda port: None) -> int:
    """Serve an archive until Ctrl-C or SIGTERM; what was asked before is still answered.

    Its addresses are printed on stdout as soon as it answers.

    Args:
        folder: the unpacked archive.
        port: on 127.0.0.1; 0 takes a free one.
        started: called with the port as soon as it answers.

    Returns:
        The exit code: 0 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UserError: the port is taken, or the archive cannot be loaded.
        ResourceError: memory or time gave out, or the model's process died and could not be started again.
    """
    with _listening(port) as listener:
        return asyncio.run(_serve(folder, listener, started))


def check_port(port: int) -> None:
    """Find out early whether a port is free.

    Raises:
        UserError: it is not.
    """
    _listening(port).close()


def _listening(port: int) -> socket.socket:
    # asyncio turns Nagle's algorithm off only where the protocol is named; on, it holds every answer for 40 ms.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((ADDRESS, port))
    except OSError as error:
        listener.close()
        taken = error.errno == errno.EADDRINUSE
        reason = "is taken by another program" if taken else f"cannot be used ({error.strerror})"
        raise UserError(f"Port {port} {reason}; set target.port to another, or to 0 for a free one.") from error
    listener.listen(1024)
    return listener


async def _serve(folder: Path, listener: socket.socket, started: Callable[[int], None]) -> int:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    code = 0

    def stop(number: signal.Signals) -> None:
        nonlocal code
        code = _EXIT_CODES[number]
        stopped.set()

    for number in _EXIT_CODES:
        loop.add_signal_handler(number, stop, number)
    stopping = asyncio.create_task(stopped.wait())
    starting = asyncio.create_task(Worker.start(folder))
    ends: set[asyncio.Future[Any]] = {starting, stopping}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting})
        return code
    worker, explainer = starting.result(), Explainer(folder)
    try:
        server = _Server(worker, explainer, folder)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        _announce(worker.ready["name"], listener.getsockname()[1], started)
        ends = {serving, stopping, worker.given_up}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
    finally:
        await worker.close()
        await explainer.close()
    if worker.given_up.done():
        raise ResourceError(f"The model's process died and could not be started again. {worker.given_up.result()}")
    return code


def _announce(model: str, port: int, started: Callable[[int], None]) -> None:
    base = f"http://{ADDRESS}:{port}"
    print(f"{model} is served until Ctrl-C")
    for what, path in (("page", "/"), ("photos", "/invocations"), ("metrics", "/metrics")):
        print(f"  {what:<8} {base}{path}", flush=True)
    started(port)


class _Server(uvicorn.Server):
    """uvicorn without its own ideas of signals and logs."""

    def __init__(self, worker: Worker, explainer: Explainer, folder: Path) -> None:
        config = uvicorn.Config(
            Front(worker, explainer, read_card(folder)).application(),
            loop="asyncio",
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=75,  # a client that comes back after seconds finds its connection open
            timeout_graceful_shutdown=int(worker.limits.timeout_s + GRACE) + 1,
        )
        super().__init__(config)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to :func:`serve`."""
        yield
