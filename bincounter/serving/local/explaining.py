"""The server's side of explanations: a second process, started when the first one is asked for."""

import asyncio
import logging
import sys
from pathlib import Path

from bincounter.errors import BinCounterError
from bincounter.serving.application.problems import Problem
from bincounter.serving.application.service import Reply
from bincounter.serving.local.backend import Worker

log = logging.getLogger(__name__)

_SECONDS = 60.0  # an explanation may take


class Explainer:
    """Says where a model looked, one photo at a time.

    It runs beside the archive's process, with one thread and a low priority, so that requests hardly notice it.

    Args:
        folder: an unpacked archive.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._worker: Worker | None = None
        self._starting = asyncio.Lock()

    async def ask(self, body: bytes, content_type: str | None, accept: str | None) -> Reply:
        """Explain a photo; always answered, see :mod:`bincounter.serving.local.explanation`."""
        try:
            worker = await self._started()
        except BinCounterError as error:
            log.error("%s", error)
            return Reply.refusing(Problem(500, f"Explanations cannot be made here: {error}"))
        return await worker.ask(body, content_type, accept)

    async def _started(self) -> Worker:
        async with self._starting:
            if self._worker is None or self._worker.given_up.done():
                module = "bincounter.serving.local.explanation"
                command = [sys.executable, "-m", module, str(self._folder)]
                self._worker = await Worker.run(command, timeout_s=_SECONDS, CUDA_VISIBLE_DEVICES="")
            return self._worker

    async def close(self) -> None:
        """End the process, where it was started."""
        if self._worker:
            await self._worker.close()
