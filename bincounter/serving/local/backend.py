"""The archive behind the server: a process of its own, asked over a socket and started again when it dies."""

import asyncio
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from bincounter.errors import BinCounterError
from bincounter.serving.application.limits import Limits
from bincounter.serving.application.problems import Problem
from bincounter.serving.application.service import Reply
from bincounter.serving.local.guard import refused_packages
from bincounter.serving.local.process import Died, Process

log = logging.getLogger(__name__)

GRACE = 5.0
"""Seconds beyond ``limits.timeout_s`` after which a process that has not answered counts as hung."""

_STATE = 2.0  # seconds that a process may take to say how it is

_SCRIPT = Path(__file__).with_name("worker.py")
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
        """Start any process that answers frames as :mod:`bincounter.serving.local.worker` does.

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
