"""Many objects at a time from a bucket into its mirror."""

import threading
import time
from collections.abc import Iterable

from bincounter.data.s3.client import Bucket
from bincounter.data.s3.mirror import Arrived, Mirror
from bincounter.data.s3.objects import Job, Outcome, Stored
from bincounter.data.s3.threads import for_each
from bincounter.data.s3.transfer_progress import TransferProgress
from bincounter.errors import DataError

_EVERY = 0.5  # seconds after which what has arrived is put into place: so much work a kill can cost
_MOST = 1024  # objects that wait for it


def transfer(
    bucket: Bucket,
    mirror: Mirror,
    jobs: Iterable[Job],
    *,
    progress: TransferProgress,
    connections: int,
    tolerated: tuple[type[DataError], ...],
) -> Outcome:
    """Fetch objects; when one fails for good, those that are on their way may end, and what has arrived is kept.

    Args:
        bucket: where they are.
        mirror: where they go.
        jobs: may be lazy and of any length.
        progress: is told of each.
        connections: objects at a time.
        tolerated: errors that do not end the transfer.
    """
    receiving = _Receiving(bucket, mirror, progress, tolerated)
    try:
        for_each(jobs, receiving.fetch, threads=connections)
    finally:
        receiving.end()
    return Outcome(receiving.fetched, receiving.absent)


class _Receiving:
    """Fetches objects and puts them into place, many at once.

    Attributes:
        fetched: objects that were not here.
        absent: those that could not be had, with the tolerated error.
    """

    def __init__(
        self, bucket: Bucket, mirror: Mirror, progress: TransferProgress, tolerated: tuple[type[DataError], ...]
    ) -> None:
        self.fetched, self.absent = 0, dict[str, DataError]()
        self._bucket, self._mirror = bucket, mirror
        self._progress, self._tolerated = progress, tolerated
        self._arrived: list[Arrived] = []
        self._published = time.monotonic()
        self._noting, self._publishing = threading.Lock(), threading.Lock()
        self._ended = False

    def fetch(self, job: Job) -> None:
        """Fetch one object; may be called from many threads."""
        path = self._mirror.staged()
        try:
            stored = self._bucket.fetch(job.key, path, listed=job.listed, unless=job.unless)
        except self._tolerated as error:
            self.absent[job.key] = error
            path.unlink(missing_ok=True)
            self._note(job.listed.size if job.listed else 0)
            return
        if stored is None:
            path.unlink(missing_ok=True)
            self._note(0)
            return
        # Under the listing's name: should the object have changed since, the next listing tells.
        known = Stored(job.listed.etag, stored.size) if job.listed else stored
        self._note(stored.size, Arrived(job.key, path, known))
        if len(self._arrived) >= _MOST or time.monotonic() - self._published > _EVERY:
            self._publish()

    def end(self) -> None:
        """Put the last ones into place; what arrives later, in a thread that was left behind, is dropped."""
        with self._noting:
            self._ended = True
        with self._publishing:
            self._mirror.publish(self._arrived)

    def _note(self, size: int, arrived: Arrived | None = None) -> None:
        with self._noting:
            if self._ended:
                return
            self._progress.advance(size)
            if arrived:
                self._arrived.append(arrived)
                self.fetched += 1

    def _publish(self) -> None:
        """Put into place what has arrived; the other threads go on fetching, until too much would wait."""
        if not self._publishing.acquire(blocking=len(self._arrived) >= _MOST):
            return
        try:
            with self._noting:
                if self._ended:
                    return
                arrived, self._arrived = self._arrived, []
            if arrived:
                self._mirror.publish(arrived)
            self._published = time.monotonic()
        finally:
            self._publishing.release()
