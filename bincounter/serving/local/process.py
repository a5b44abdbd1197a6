"""One life of a process that answers frames: started, asked, and dead at last."""

import asyncio
import logging
import signal
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, Self

from bincounter.errors import BinCounterError, ResourceError, UserError
from bincounter.serving.local.worker import FrameError, frame, read_frame

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
