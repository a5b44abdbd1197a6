"""``fetch()``: list, plan, transfer; a no-op when nothing changed.

The folder mirrors the bucket: new and changed objects are fetched, files whose object is gone are deleted, and nothing
is transferred when nothing changed. A run that was killed is gone on with; two at once do the work once.
"""

import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bincounter.data.s3.address import parse, refusal
from bincounter.data.s3.bucket import Bucket
from bincounter.data.s3.catalogue import Catalogue, tells_of_damage
from bincounter.data.s3.error_messages import DeniedError, MissingError
from bincounter.data.s3.mirror import Arrived, Mirror, leave_out_what_cannot_be_here, warn, warn_of_refused
from bincounter.data.s3.objects import Job, Outcome, Stored
from bincounter.errors import DataError, ResourceError
from bincounter.parallel import for_each
from bincounter.progress import TransferProgress

if TYPE_CHECKING:
    from bincounter.data.source import Chooser

log = logging.getLogger(__name__)

Verdict = TypeVar("Verdict", bool, bool | None)


def fetch(
    source: str,
    data_dir: Path,
    *,
    ids: Sequence[str] | None = None,
    counts: Sequence[int] | None = None,
    only: str = "all",
    deleted: str = "mirror",
    connections: int = 64,
) -> Path:
    """Make ``data_dir/s3/<bucket>/<folder>`` hold what ``s3://<bucket>/<folder>`` holds, and nothing it used to hold.

    Each file appears whole or not at all, checked by size and etag. Files that were put into the local folder by
    others stay. Keys that cannot be local files are left out and logged.

    Args:
        source: an address, see :func:`bincounter.data.s3.address.parse`.
        data_dir: the folder that holds the copies of all buckets.
        ids: of a source in ABID's layout fetch only the photos and the metadata of these bins, a request for each and
            no listing (the public bucket has a million objects); what is missing is left to the layout to report.
        counts: that will be used; ``None`` for all.
        only: ``counts`` to fetch no photo whose count, by folder or by metadata, is another.
        deleted: ``mirror`` to delete local files whose object is gone, ``keep`` to leave them.
        connections: requests at a time.

    Returns:
        the local folder.

    Raises:
        DataError: the address or the credentials are wrong, or nothing lies there.
        ResourceError: the network, the server or the disk gave out; the same call goes on from what is there.
    """
    name, prefix = parse(source)
    try:
        with closing(Bucket(name, connections)) as bucket, Mirror(data_dir, name) as mirror:
            folder = mirror.path(prefix)
            chooser = _chooser(folder, counts) if only == "counts" else None
            sync = _Sync(bucket, mirror, prefix, connections, chooser)
            if ids is None:
                sync.fetch_all(keep_deleted=deleted == "keep")
            else:
                sync.fetch_bins(ids)
    except OSError as error:
        raise ResourceError(
            f"{error.filename or data_dir} cannot be written ({error.strerror}): make room for it, or set "
            "paths.data_dir to another folder; what was fetched is kept"
        ) from error
    except sqlite3.Error as error:
        if tells_of_damage(error):
            raise ResourceError(
                f"the list of what was fetched to {data_dir} is damaged and was deleted: run the same command again, "
                "it fetches everything anew"
            ) from error
        raise ResourceError(
            f"the list of what was fetched cannot be written to {data_dir} ({error}): make room for it, or set "
            "paths.data_dir to another folder; what was fetched is kept"
        ) from error
    return folder


def _chooser(folder: Path, counts: Sequence[int] | None) -> "Chooser | None":
    from bincounter.data.source import Chooser

    return None if counts is None else Chooser(folder, counts)


class _Sync:
    """One source on its way into the mirror of its bucket."""

    def __init__(
        self, bucket: Bucket, mirror: Mirror, prefix: str, connections: int, chooser: "Chooser | None"
    ) -> None:
        self._bucket, self._mirror, self._catalogue = bucket, mirror, mirror.catalogue
        self._connections, self._chooser = connections, chooser
        self._below = f"{prefix}/" if prefix else ""
        self._address = f"s3://{bucket.name}/{self._below}"
        self._left = 0

    def fetch_all(self, *, keep_deleted: bool) -> None:
        """Mirror every object below the prefix."""
        log.info("listing %s", self._address)
        look = partial(self._catalogue.look, self._below, self._mirror.is_here)
        list_into(self._catalogue, self._bucket, self._below, meanwhile=look)
        number = self._catalogue.listed()
        if not number:
            raise DataError(f"nothing lies under {self._address}: correct the folder, its letters' case included")
        if not keep_deleted:
            while gone := self._catalogue.gone(self._below):
                self._mirror.forget(gone)
        self._catalogue.plan()
        leave_out_what_cannot_be_here(self._catalogue, self._mirror)
        if self._chooser:
            self._left += self._catalogue.sift(self._relative(self._chooser.by_name))
        fetched = self._fetch_jobs()
        if self._chooser and self._catalogue.bring_back():
            self._left += self._catalogue.sift(self._relative(self._chooser.by_metadata))
            fetched += self._fetch_jobs()
        log.info("%s: %d objects, %d of them fetched now", self._address, number, fetched)
        self._say_what_was_left()

    def fetch_bins(self, ids: Sequence[str]) -> None:
        """Mirror the photos and metadata of ``ids``; the files of other bins are left alone."""
        from bincounter.data.layouts.abid import METADATA, PHOTOS

        metadata = self._usable(f"{METADATA}/{bin_id}.json" for bin_id in ids)
        photos = self._usable(f"{PHOTOS}/{bin_id}.jpg" for bin_id in ids)
        if self._chooser:
            outcome = self._fetch_keys(metadata)
            wanted = self._relative(self._chooser.by_metadata)
            chosen = [key for key in photos if wanted(key)]
            self._left = len(photos) - len(chosen)
            photos, more = chosen, self._fetch_keys(chosen)
            outcome = Outcome(outcome.fetched + more.fetched, outcome.absent | more.absent)
        else:
            outcome = self._fetch_keys(metadata + photos)
        absent, number = outcome.absent, len(metadata) + len(photos)
        if len(absent) == number:
            raise next(
                (error for error in absent.values() if isinstance(error, DeniedError)),
                DataError(f"none of the {len(ids)} ids lies under {self._address}: correct data.source or the ids"),
            )
        warn("%d objects do not exist: %s", list(absent))
        log.info(
            "%s: %d of %d objects are here, %d fetched now",
            self._address,
            number - len(absent),
            number,
            outcome.fetched,
        )
        self._say_what_was_left()

    def _fetch_jobs(self) -> int:
        """Fetch what the catalogue planned."""
        number, size = self._catalogue.work()
        if not number:
            return 0
        _check_room(self._mirror.folder, size)
        self._catalogue.expect_jobs()
        jobs = (Job(key, Stored(etag, size)) for page in self._catalogue.jobs() for key, etag, size in page)
        outcome = self._transfer(jobs, number, size, (MissingError,))
        self._mirror.forget(outcome.absent)
        warn("%d objects are listed, but do not exist any more: %s", self._catalogue.note_absent(outcome.absent))
        return outcome.fetched

    def _fetch_keys(self, keys: Sequence[str]) -> Outcome:
        """Fetch objects of which no listing told; each is asked for, on the condition that it is not what is here."""
        here = {key: self._mirror.known(key) for key in keys}
        jobs = [Job(key, None, stored.etag if stored else "") for key, stored in here.items()]
        self._catalogue.expect(key for key, stored in here.items() if stored is None)
        # Who may not list a bucket is denied what does not exist, too.
        outcome = self._transfer(jobs, len(jobs), None, (MissingError, DeniedError))
        # What is here and denied now may well be there still: permissions change, and what was fetched stays.
        gone = [key for key, error in outcome.absent.items() if isinstance(error, MissingError) or not here[key]]
        self._mirror.forget(gone)
        return outcome

    def _transfer(
        self, jobs: Iterable[Job], number: int, size: int | None, tolerated: tuple[type[DataError], ...]
    ) -> Outcome:
        from bincounter.progress import TransferProgress

        with TransferProgress(f"Fetching from s3://{self._bucket.name}", number, size) as progress:
            return transfer(
                self._bucket,
                self._mirror,
                jobs,
                progress=progress,
                connections=min(self._connections, number),
                tolerated=tolerated,
            )

    def _usable(self, names: Iterable[str]) -> list[str]:
        """The keys of names, each once, that can be files here; the others are logged."""
        keys = list(dict.fromkeys(self._below + name for name in names))
        refused = {key: reason for key in keys if (reason := refusal(key))}
        warn_of_refused(refused)
        return [key for key in keys if key not in refused]

    def _relative(self, verdict: Callable[[str], Verdict]) -> Callable[[str], Verdict]:
        return lambda key: verdict(key.removeprefix(self._below))

    def _say_what_was_left(self) -> None:
        if self._left:
            log.info("%d photos of counts outside data.counts were left in the bucket", self._left)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ResourceError(
            f"{needed / 1e9:.1f} GB are to be fetched and {free / 1e9:.1f} GB are free at {folder}: make room, or set "
            "paths.data_dir to another disk"
        )


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


_PARTS = 8  # at a time


def list_into(catalogue: Catalogue, bucket: Bucket, prefix: str, *, meanwhile: Callable[[], None]) -> None:
    """List all objects below a prefix.

    A server hands out 1,000 keys a request, each only after the one before. Where a former listing tells which keys
    there are, they are cut into parts, and the parts listed at the same time.

    Args:
        catalogue: takes the objects.
        bucket: that is listed.
        prefix: empty, or a folder with its slash.
        meanwhile: something else to do while the server is waited for.

    Raises:
        DataError: the address or the credentials are wrong.
        ResourceError: the network or the server gave out.
    """
    catalogue.list_anew()
    cuts = catalogue.boundaries(prefix, _PARTS) if bucket.in_order else []
    given_up = threading.Event()

    def list_part(after: str, until: str) -> None:
        for page in bucket.pages(prefix, after=after):
            inside = [item for item in page if not until or item.key <= until]
            catalogue.add(inside)
            if len(inside) < len(page) or given_up.is_set():
                return

    tasks: list[Callable[[], None]] = [partial(list_part, *ends) for ends in pairwise(["", *cuts, ""])]
    for_each([*tasks, meanwhile], lambda task: task(), threads=len(tasks) + 1, given_up=given_up)
