"""Dynamic batches over the photos of concurrent requests, and the thread that computes them."""

import asyncio
import ctypes
import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch
from torch import Tensor

from bincounter.parallel import count_threads
from bincounter.serving.application.answers import Limits, Problem, is_shortage

log = logging.getLogger(__name__)

# glibc's mallopt: see its manual page.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8

PhotoReading = Callable[[], Coroutine[None, None, Tensor]]
"""Coroutine function that reads one photo: ``uint8[3, S, S]``."""


class _Waiting:
    """A photo that waits for the model.

    Attributes:
        pixels: set once it is read.
        row: future of its distribution.
        counts: it is part of :attr:`Batcher.waiting`.
    """

    def __init__(self) -> None:
        self.pixels: Tensor | None = None
        self.row: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self.counts = True


class Batcher:
    """Runs a model on batches, without a waiting window: a lone photo is computed at once.

    The model runs in one thread; photos are read meanwhile. Everything else runs in the event loop.

    Args:
        forward: ``uint8[B, 3, S, S]`` -> ``float32[B, K]``.
        limits: photos of a batch and of the queue, and the seconds after which a forward counts as stuck.

    Attributes:
        waiting: photos that were accepted and are not yet in a batch.
        photos: number computed since the start.
        batches: number of batches by size.
        seconds: spent in the model.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], limits: Limits) -> None:
        self._forward, self._limits = forward, limits
        self._thread = ThreadPoolExecutor(1, "forward", initializer=use_cores)
        self._read: deque[_Waiting] = deque()
        self._some_read = asyncio.Event()
        self._computing: asyncio.Task[None] | None = None
        self._failed = False
        self._since: float | None = None  # a forward runs
        self.waiting = 0
        self.photos = 0
        self.batches: Counter[int] = Counter()
        self.seconds = 0.0

    async def start(self, photo: Tensor) -> None:
        """Start, and run the model once to warm it up.

        Args:
            photo: any photo, ``uint8[3, S, S]``.
        """
        await asyncio.get_running_loop().run_in_executor(self._thread, self._forward, photo[None])
        self._computing = asyncio.create_task(self._compute())

    async def close(self) -> None:
        """Stop; cancels the photos that wait."""
        if self._computing:
            self._computing.cancel()
            await asyncio.wait([self._computing])
        for one in self._read:
            one.row.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def ready(self) -> bool:
        """True once started, while the last batch succeeded and none is stuck."""
        stuck = self._since is not None and time.monotonic() - self._since > self._limits.timeout_s
        return self._computing is not None and not self._computing.done() and not self._failed and not stuck

    async def rows(self, readings: Sequence[PhotoReading]) -> list[list[float]]:
        """Compute the photos of one request; a cancelled request leaves the queue.

        Args:
            readings: one per photo.

        Returns:
            ``float32[K]`` for each.

        Raises:
            Problem: 503 the queue is full, or out of memory; 500 the model failed; also raises the errors of a reading.
        """
        if self.waiting + len(readings) > self._limits.max_queue:
            raise Problem(503, f"{self.waiting} photos wait for the model; retry in a second.")
        waiting = [_Waiting() for _ in readings]
        self.waiting += len(waiting)
        tasks = [asyncio.create_task(self._row(*pair)) for pair in zip(waiting, readings, strict=True)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task, one in zip(tasks, waiting, strict=True):
                task.cancel()
                self._leave(one)

    async def _row(self, one: _Waiting, reading: PhotoReading) -> list[float]:
        one.pixels = await reading()
        self._read.append(one)
        self._some_read.set()
        return await one.row

    def _leave(self, one: _Waiting) -> None:
        if one.counts:
            one.counts = False
            self.waiting -= 1
            with suppress(ValueError):
                self._read.remove(one)

    async def _compute(self) -> None:
        while True:
            await self._some_read.wait()
            batch = [self._read.popleft() for _ in range(min(len(self._read), self._limits.max_batch))]
            if not self._read:
                self._some_read.clear()
            for one in batch:
                self._leave(one)
            if batch:
                await self._answer(batch)

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        pixels = [one.pixels for one in batch if one.pixels is not None]
        self._since = time.monotonic()
        try:
            rows = await asyncio.get_running_loop().run_in_executor(self._thread, self._rows, pixels)
        except Exception as error:
            problem = self._problem(error)
            for one in batch:
                if not one.row.done():
                    one.row.set_exception(problem)
        else:
            self._failed = False
            for one, row in zip(batch, rows, strict=True):
                if not one.row.done():
                    one.row.set_result(row)
        finally:
            self._since = None

    def _rows(self, pixels: Sequence[Tensor]) -> list[list[float]]:
        started = time.perf_counter()
        rows = self._forward(torch.stack(list(pixels))).tolist()
        self.seconds += time.perf_counter() - started
        self.photos += len(pixels)
        self.batches[len(pixels)] += 1
        return rows

    def _problem(self, error: Exception) -> Problem:
        if is_shortage(error):
            log.error("Out of memory in a batch: %s", error)
            return Problem(503, "Out of memory; retry in a second, or lower limits.max_batch.")
        self._failed = True
        log.error("The model failed.", exc_info=error)
        return Problem(500, f"The model failed ({type(error).__name__}); see the log of the endpoint.")


def configure_process() -> None:
    """Configure threads and malloc of a serving process; call once, from the thread that then loads the model.

    Two things slow down a forward outside of a process's first thread. Once another thread has computed in parallel,
    OpenMP counts more threads than cores and lets its threads sleep between layers: 12 ms of a ResNet50 photo here. And
    glibc returns the memory of activations to the system after each batch, only to fault it in again page by page: a
    fifth of the time of large batches.
    """
    torch.set_num_threads(1)
    if sys.platform == "linux":
        allocator = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if allocator is not None:
            for option, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, (1 << 31) - 1)):
                allocator(option, value)


def use_cores() -> None:
    """Let the calling thread compute on :func:`count_threads` threads."""
    torch.set_num_threads(count_threads())
