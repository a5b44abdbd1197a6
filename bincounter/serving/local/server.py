"""Local server of an unpacked archive: a supervisor, and one uvicorn worker that is replaced when it dies.

The supervisor holds the listening socket, so that requests wait while a worker is replaced. On Linux workers are forks
of a template, a process that has imported torch and does nothing else: a new one answers in a second, and they share
the template's memory.
"""

import errno
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE

from bincounter.errors import ResourceError, UserError
from bincounter.serving.local.access import Access, reached_at
from bincounter.serving.local.connections import UVICORN, raise_file_limit
from bincounter.serving.local.running_servers import identify

log = logging.getLogger(__name__)

_LOCAL = Access()
HEALTH_CHECK = 30
"""Seconds without a report after which a worker counts as stuck: a busy machine loads torch slowly."""

_HEAD_BYTES = 1 << 16  # of a request, above its body
_GRACE = 5.0  # seconds beyond limits.timeout_s in which accepted requests are answered after SIGTERM
_REPORT = 0.2  # seconds between two reports of a worker
_FORKS = sys.platform == "linux"  # macOS's own libraries do not survive a fork
_PROCESSES = multiprocessing.get_context("forkserver") if _FORKS else multiprocessing.get_context("spawn")
_PRELOADED = ["bincounter.serving.local.app", "bincounter.serving.local.server"]
_UNKNOWN = 255  # as multiprocessing reports for a process with a killed template
_EXIT_CODES = {signal.SIGINT: 0, signal.SIGTERM: 143}
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # on Windows every signal ends a process at once
_DEATHS, _DEATH_WINDOW = 3, 60.0  # deaths within so many seconds after which the server stops


def serve(
    folder: Path,
    *,
    port: int,
    access: Access = _LOCAL,
    name: str = "bincounter",
    started: Callable[[int], None] = lambda port: None,
) -> int:
    """Serve an archive until Ctrl-C or SIGTERM; accepted requests are still answered.

    Its addresses are printed on stdout as soon as it answers.

    Args:
        folder: the unpacked archive.
        port: to listen on; 0 takes a free one.
        access: to the server.
        name: of the server, which /ping reports.
        started: called with the port as soon as the server answers.

    Returns:
        The exit code: 0 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UserError: the port is taken, or the archive cannot be loaded.
        ResourceError: the worker was killed while it loaded the model, or died three times within a minute; or the
            addresses cannot be printed, or ``started`` finds the disk full.
    """
    from bincounter.serving.application.served_model import ArchiveError, read_description

    with _listening(access.host, port) as listener:
        try:
            described = read_description(folder)
        except ArchiveError as error:
            raise UserError(f"The archive cannot be loaded: {error}") from error

        def announce() -> None:
            actual = listener.getsockname()[1]
            try:
                print(f"{described['model']} is served until Ctrl-C")
                for kind, path in (("page", "/"), ("photos", "/invocations"), ("metrics", "/metrics")):
                    print(f"  {kind:<8} http://{reached_at(access.host)}:{actual}{path}", flush=True)
                started(actual)
            except OSError as error:
                raise ResourceError(
                    f"The server cannot print its address or be listed ({(error.strerror or str(error)).lower()}): "
                    "free disk space, or redirect the output elsewhere."
                ) from error

        start_template()
        identity = {"model": described["model"], "name": name, "process": os.getpid()}
        site = _Site(folder, listener, identity, access, int(described["limits"]["timeout_s"] + _GRACE) + 1)
        return _Supervisor(site, announce).run()


def start_template() -> None:
    """Start the process that workers are forked from, unless it runs; returns at once.

    Raises:
        UserError: its socket in the temporary folder cannot be created.
    """
    if _FORKS:
        with _sigint_blocked():
            _PROCESSES.set_forkserver_preload(_PRELOADED)
            try:
                forkserver.ensure_running()
            except OSError as error:
                if "too long" not in str(error):  # a socket's path has at most 107 bytes
                    raise
                raise UserError(
                    f"workers cannot be started ({error}): set TMPDIR to a folder with a shorter path"
                ) from error


def check_port(port: int, host: str = _LOCAL.host) -> None:
    """Check early that a port of an address is free.

    Raises:
        UserError: it is not.
    """
    _listening(host, port).close()


def _listening(host: str, port: int) -> socket.socket:
    # asyncio disables Nagle's algorithm only if the protocol is named; enabled, it delays every response by 40 ms.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"target.host={host} is not an address of this machine: name one, or 0.0.0.0") from error
        if error.errno != errno.EADDRINUSE:
            reason = f"cannot be used ({error.strerror}); set"
        elif other := identify(port, host):
            named = f"name={other['name']} target.port={port}"
            reason = (
                f"is taken by bincounter's server {other['name']} (process {other['process']}, model "
                f"{other['model']}): use it with action=invoke {named}, stop it with action=delete {named}, or set"
            )
        else:
            reason = "is taken by another program; set"
        raise UserError(f"Port {port} {reason} target.port to another, or to 0 for a free one.") from error
    listener.listen(1024)
    return listener


@dataclass(frozen=True)
class _Site:
    """State shared by all workers of a server.

    Attributes:
        folder: the unpacked archive.
        listener: the socket that workers accept connections from.
        identity: of the server, which ``/ping`` reports.
        access: to the server.
        grace: seconds in which accepted requests are answered after SIGTERM.
    """

    folder: Path
    listener: socket.socket
    identity: dict[str, str | int]
    access: Access
    grace: int


class _Worker:
    """A worker process.

    It reports every 0.2 s on a pipe. The pipe closes with the process, which shows its end at once, even if the
    template, which reports exit codes, was killed.

    Args:
        site: of the server.
        restarts: number of workers that were replaced before.

    Attributes:
        ready: True once it answers requests.
        failure: reason why it cannot load the archive; empty without one.
    """

    def __init__(self, site: _Site, restarts: int) -> None:
        self.ready, self.failure = False, ""
        self._reports, reports = multiprocessing.Pipe(duplex=False)
        with _sigint_blocked(), reports, suppress(EOFError, OSError):  # the template was killed meanwhile
            self._process = _PROCESSES.Process(target=_work, args=(site, reports, restarts))
            self._process.start()
        self._heard = time.monotonic()

    def lives(self, seconds: float = 2 * _REPORT) -> bool:
        """Read the pending reports, waiting ``seconds`` for the first; kill a worker without one for too long."""
        try:
            while self._reports.poll(seconds):
                report = self._reports.recv()
                self.ready, self.failure = report is True, report if isinstance(report, str) else self.failure
                self._heard, seconds = time.monotonic(), 0
        except (EOFError, OSError):
            return False
        if time.monotonic() - self._heard > HEALTH_CHECK:
            self._send(_KILL)
        return True

    def end(self, grace: float) -> None:
        """Let the worker, if it lives, answer accepted requests for ``grace`` seconds, then kill it."""
        if self.lives(0):
            self._send(signal.SIGTERM)
        until = time.monotonic() + grace
        while self.lives():
            if time.monotonic() > until:
                self._send(_KILL)
        self.exit_code()

    def exit_code(self) -> int | None:
        """Exit code of a worker that has ended, negative for a signal."""
        if self._process.pid is None:
            return _UNKNOWN
        self._process.join(_GRACE)
        return self._process.exitcode

    def _send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._process.pid or 0, number)


class _Supervisor:
    """Keeps one worker running, until a signal or until workers die too often.

    Args:
        site: of the server.
        announce: called once the first worker answers.
    """

    def __init__(self, site: _Site, announce: Callable[[], None]) -> None:
        self._site, self._announce = site, announce
        self._signals: list[int] = []
        self._deaths: deque[float] = deque(maxlen=_DEATHS)
        self._answered = False

    def run(self) -> int:
        """Supervise; returns the exit code by the signal that ended it.

        Raises:
            UserError: the archive cannot be loaded.
            ResourceError: workers die.
        """
        handlers = {number: signal.signal(number, self._record_signal) for number in _EXIT_CODES}
        try:
            worker, restarts = _Worker(self._site, 0), 0
            try:
                while not self._signals:
                    start_template()
                    if not worker.lives():
                        self._handle_death(worker)
                        restarts += 1
                        worker = _Worker(self._site, restarts)
                    elif worker.ready and not self._answered:
                        self._answered = True
                        self._announce()
            finally:
                worker.end(self._site.grace + _GRACE)
            return _EXIT_CODES[signal.Signals(self._signals[0])]
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _record_signal(self, number: int, _: object) -> None:
        self._signals.append(number)

    def _handle_death(self, worker: _Worker) -> None:
        """Log the end of a worker.

        Raises:
            UserError: it could not load the archive.
            ResourceError: it is the first worker, or too many have died.
        """
        code = worker.exit_code()
        if worker.failure or code == STARTUP_FAILURE:
            raise UserError(f"The archive cannot be loaded: {worker.failure or 'see the error above.'}")
        ending = f"was ended by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
        self._deaths.append(time.monotonic())
        if not self._answered:
            raise ResourceError(f"The server's worker {ending} while it loaded the model; free memory, or see its log.")
        if len(self._deaths) == _DEATHS and self._deaths[-1] - self._deaths[0] < _DEATH_WINDOW:
            raise ResourceError(
                f"The server's worker died {_DEATHS} times within {_DEATH_WINDOW:.0f} s; the last {ending}."
            )
        log.warning("The server's worker %s; it is started again.", ending)


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block SIGINT in processes started in this block: Ctrl-C is for the supervisor, which ends them gracefully."""
    resource_tracker.ensure_running()  # unblocks SIGINT if it has to be started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(site: _Site, reports: Pipe, restarts: int) -> None:
    """Serve in the worker process; it exits with uvicorn's code for a failed start if that fails."""
    raise_file_limit()
    config = uvicorn.Config(
        partial(_load_app, site, reports, restarts),
        factory=True,
        **UVICORN,
        lifespan="on",
        h11_max_incomplete_event_size=_HEAD_BYTES,
        timeout_keep_alive=75,  # clients may reuse a connection after seconds
        timeout_graceful_shutdown=site.grace,
    )
    server = uvicorn.Server(config)

    def report() -> None:
        while True:
            reports.send(server.started)
            time.sleep(_REPORT)

    threading.Thread(target=report, daemon=True).start()
    server.run([site.listener])


def _load_app(site: _Site, reports: Pipe, restarts: int) -> ASGIApp:
    from bincounter.serving.application.batcher import configure_process
    from bincounter.serving.application.served_model import ArchiveError, ServedModel
    from bincounter.serving.local.app import create_app

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # warnings are of forms that are refused
    sys.path.insert(0, str(site.folder / "code"))  # a backbone as it was packed; bincounter is the one imported above
    configure_process()
    try:
        model = ServedModel.load(site.folder)
    except ArchiveError as error:
        reports.send(str(error))
        sys.exit(STARTUP_FAILURE)
    return create_app(model, site.folder, site.identity, restarts, site.access)
