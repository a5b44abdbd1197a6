"""Many objects at a time from a bucket into its mirror."""

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from bincounter.data.s3.client import Bucket
from bincounter.data.s3.mirror import Arrived, Mirror
from bincounter.data.s3.objects import Job, Outcome, Stored
from bincounter.data.s3.transfer_progress import TransferProgress
from bincounter.errors import DataError

_EVERY = 0.5  # seconds after which what has arrived is put into place: so much work a kill can cost
_MOST = 1024  # objects that wait for it
_Answer = TypeVar("_Answer")


def transfer(
    bucket: Bucket,
    mirror: Mirror,
    jobs: Iterable[Job],
    *,
    progress: TransferProgress,
    connections: int,
    tolerated: tuple[type[DataError], ...],
) -> Outcome:
    """Fetch objects; when one fails for good, those that are on their way end first, and what has arrived is kept.

    Args:
        bucket: where they are.
        mirror: where they go.
        jobs: may be lazy and of any length.
        progress: is told of each.
        connections: objects at a time.
        tolerated: errors that do not end the transfer.
    """
    return run(_Transfer(bucket, mirror, iter(jobs), progress, tolerated).carry_out(connections))


def run(coroutine: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Run a coroutine from anywhere: a notebook's thread has a loop of its own running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    running: list[asyncio.Task[_Answer]] = []

    async def note_and_await() -> _Answer:
        running.append(asyncio.create_task(coroutine))
        return await running[0]

    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(asyncio.run, note_and_await()).result()
        except KeyboardInterrupt:  # comes to this thread alone
            for task in running:
                with suppress(RuntimeError):  # it has just ended
                    task.get_loop().call_soon_threadsafe(task.cancel)
            raise


async def together(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Carry coroutines out at the same time; when one fails, the others are ended before its error is raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Transfer:
    def __init__(
        self,
        bucket: Bucket,
        mirror: Mirror,
        jobs: Iterator[Job],
        progress: TransferProgress,
        tolerated: tuple[type[DataError], ...],
    ) -> None:
        self._bucket, self._mirror, self._jobs = bucket, mirror, jobs
        self._progress, self._tolerated = progress, tolerated
        self._arrived: list[Arrived] = []
        self._published = time.monotonic()
        self._publishing = asyncio.Lock()
        self._fetched, self._absent = 0, dict[str, DataError]()

    async def carry_out(self, connections: int) -> Outcome:
        try:
            await together(self._work() for _ in range(connections))
        finally:
            self._mirror.publish(self._arrived)
        return Outcome(self._fetched, self._absent)

    async def _work(self) -> None:
        for job in self._jobs:
            await self._fetch(job)
            if len(self._arrived) >= _MOST or time.monotonic() - self._published > _EVERY:
                await self._publish()

    async def _fetch(self, job: Job) -> None:
        path = self._mirror.staged()
        try:
            stored = await self._bucket.async_read(job.key, path, listed=job.listed, unless=job.unless)
        except self._tolerated as error:
            self._absent[job.key] = error
            path.unlink(missing_ok=True)
            self._progress.advance(job.listed.size if job.listed else 0)
            return
        if stored is None:
            path.unlink(missing_ok=True)
        else:
            # Under the listing's name: should the object have changed since, the next listing tells.
            known = Stored(job.listed.etag, stored.size) if job.listed else stored
            self._arrived.append(Arrived(job.key, path, known))
            self._fetched += 1
        self._progress.advance(stored.size if stored else 0)

    async def _publish(self) -> None:
        """Put into place what has arrived; the others go on fetching, until too much would wait."""
        if self._publishing.locked() and len(self._arrived) < _MOST:
            return
        async with self._publishing:
            self._published = time.monotonic()
            arrived, self._arrived = self._arrived, []
            if arrived:
                await asyncio.to_thread(self._mirror.publish, arrived)
            self._published = time.monotonic()
