"""Photos of many requests -> batches: whatever waits when the model is free goes together."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch
from torch import Tensor

from bincounter.data.preprocessing import PhotoError
from bincounter.serving.application.model import ServedModel
from bincounter.serving.application.problems import Problem


class _Waiting:
    """A photo that waits, and what will become of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.row: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()


class Batcher:
    """Counts photos in batches, without a waiting window: a lone photo is counted at once.

    Photos are decoded right before their batch is computed. On a CPU that is done in turns, since both would want all
    cores; on a GPU two batches are in hand, of which one is decoded while the other is computed.

    Args:
        model: what counts.
    """

    def __init__(self, model: ServedModel) -> None:
        self._model, self._limits = model, model.limits
        self._queue: deque[_Waiting] = deque()
        self._filled = asyncio.Event()
        self._lanes: list[asyncio.Task[None]] = []
        self._parallel = 2 if model.device.type == "cuda" else 1
        self._batches = ThreadPoolExecutor(self._parallel, "batch")
        self._decoders = ThreadPoolExecutor(torch.get_num_threads(), "decode")
        self._done = {"photos": 0.0, "batches": 0.0, "decode_seconds": 0.0, "forward_seconds": 0.0}

    async def start(self) -> None:
        """Compute once, so that the first request does not pay for it, and begin."""
        size = self._model.image_size
        blank = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        await asyncio.get_running_loop().run_in_executor(self._batches, self._model.probabilities, blank)
        self._lanes = [asyncio.create_task(self._lane()) for _ in range(self._parallel)]

    async def close(self) -> None:
        """End; what waits is given up."""
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        while self._queue:
            self._queue.popleft().row.cancel()
        self._batches.shutdown(wait=False, cancel_futures=True)
        self._decoders.shutdown(wait=False, cancel_futures=True)

    @property
    def running(self) -> bool:
        """Whether photos are counted."""
        return bool(self._lanes) and not any(lane.done() for lane in self._lanes)

    def statistics(self) -> dict[str, float]:
        """What was done since the start: photos, batches, seconds of decoding (over all threads) and of computing."""
        return {**self._done, "queue_length": float(len(self._queue))}

    async def rows(self, photos: Sequence[bytes]) -> list[Tensor | Problem]:
        """Count photos.

        Args:
            photos: their bytes.

        Returns:
            For each photo its distribution, ``float32[K]``, or why it has none.

        Raises:
            Problem: 503, too many photos wait already.
        """
        if len(self._queue) + len(photos) > self._limits.max_queue:
            raise Problem(503, f"{len(self._queue)} photos wait for the model already; ask again in a second.")
        waiting = [_Waiting(data) for data in photos]
        self._queue.extend(waiting)
        self._filled.set()
        try:
            results = await asyncio.gather(*(one.row for one in waiting), return_exceptions=True)
        finally:
            for one in waiting:  # of a request that is given up
                if not one.row.done():
                    one.row.cancel()
                with suppress(ValueError):
                    self._queue.remove(one)
        return [_outcome(result) for result in results]

    async def _lane(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._filled.wait()
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), self._limits.max_batch))]
            if not self._queue:
                self._filled.clear()
            batch = [one for one in batch if not one.row.done()]
            if not batch:
                continue
            results = await loop.run_in_executor(self._batches, self._computed, [one.data for one in batch])
            for one, result in zip(batch, results, strict=True):
                if one.row.done():
                    continue
                if isinstance(result, Tensor):
                    one.row.set_result(result)
                else:
                    one.row.set_exception(result)

    def _computed(self, photos: list[bytes]) -> list[Tensor | Exception]:
        """Decode and count a batch, in a thread; a photo that cannot be read stands in nobody's way."""
        decoded = list(self._decoders.map(self._decoded, photos)) if len(photos) > 1 else [self._decoded(photos[0])]
        readable = [photo for photo in decoded if isinstance(photo, Tensor)]
        started = time.perf_counter()
        try:
            rows = iter(self._model.probabilities(torch.stack(readable)) if readable else ())
        except Exception as error:  # of the model, whoever wrote it
            failure = error
            return [failure if isinstance(photo, Tensor) else photo for photo in decoded]
        self._done["forward_seconds"] += time.perf_counter() - started
        self._done["photos"] += len(readable)
        self._done["batches"] += bool(readable)
        return [next(rows) if isinstance(photo, Tensor) else photo for photo in decoded]

    def _decoded(self, data: bytes) -> Tensor | Exception:
        started = time.perf_counter()
        try:
            return self._model.decode(data)
        except Exception as error:
            return error
        finally:
            self._done["decode_seconds"] += time.perf_counter() - started


def _outcome(result: Tensor | BaseException) -> Tensor | Problem:
    if isinstance(result, Tensor):
        return result
    if isinstance(result, PhotoError):
        status = 413 if "megapixels" in str(result) else 422
        return Problem(status, f"the photo cannot be read ({result}); send a whole JPEG, PNG or WebP.")
    if isinstance(result, (MemoryError, torch.OutOfMemoryError)):
        return Problem(503, "memory ran out; ask again in a second, or send smaller photos.")
    raise result
