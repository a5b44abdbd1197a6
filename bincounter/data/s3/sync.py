"""Sync of an ``s3://`` folder into a local one: list, plan, transfer.

The local folder mirrors the bucket: new and changed objects are fetched, files without an object are deleted, and
nothing is transferred if nothing changed. A killed run is resumed by the same call; two at once do the work once.
"""

import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Protocol, TypeVar

from bincounter.data.s3.address import parse_address, unusable_reason
from bincounter.data.s3.bucket import Bucket
from bincounter.data.s3.catalogue import Catalogue, is_corrupt
from bincounter.data.s3.error_messages import DeniedError, MissingError
from bincounter.data.s3.mirror import Mirror, StagedFile, drop_unusable_keys, warn, warn_unusable_keys
from bincounter.data.s3.objects import DownloadItem, Stored, TransferOutcome
from bincounter.errors import DataError, ResourceError
from bincounter.parallel import for_each
from bincounter.progress import TransferProgress

log = logging.getLogger(__name__)

_LISTINGS = 8  # at a time
_EVERY = 0.5  # seconds after which files are moved into place: the most work that a kill can cost
_MOST = 1024  # files that wait for it

_Verdict = TypeVar("_Verdict", bool, bool | None)


class ObjectFilter(Protocol):
    """Chooses the objects to fetch; names are relative to the source."""

    def by_name(self, name: str) -> bool | None:
        """Return True if an object is wanted; ``None`` if that depends on other objects."""

    def by_metadata(self, name: str) -> bool:
        """Return True if an object without a verdict of ``by_name`` is wanted; called after fetching the others."""


def fetch(
    source: str,
    data_dir: Path,
    *,
    names: Sequence[str] | None = None,
    wanted: ObjectFilter | None = None,
    deleted: str = "mirror",
    connections: int = 64,
    left_out: dict[str, str] | None = None,
) -> Path:
    """Mirror ``s3://<bucket>/<folder>`` to ``data_dir/s3/<bucket>/<folder>``, deletions included.

    Each file appears whole or not at all, checked by size and etag. Files that were put into the local folder by
    others stay. Keys that cannot be local files are skipped and logged.

    Args:
        source: an address, see :func:`bincounter.data.s3.address.parse_address`.
        data_dir: the folder that holds the copies of all buckets.
        names: the only objects to fetch, relative to the source: a request for each and no listing. Those that do not
            exist are logged.
        wanted: chooses the objects to fetch; the local files of the others stay.
        deleted: ``mirror`` to delete local files without an object, ``keep`` to leave them.
        connections: requests at a time.
        left_out: filled with the names of objects that cannot be fetched, relative to the source, and the reasons.

    Returns:
        the local folder.

    Raises:
        DataError: the address or the credentials are wrong, or nothing exists there.
        ResourceError: the network, the server or the disk failed; the same call resumes.
    """
    bucket, prefix = parse_address(source)
    try:
        with Mirror(data_dir, bucket) as mirror:
            sync = _Sync(Bucket(bucket, connections), mirror, prefix, connections, wanted, deleted == "keep")
            if names is None:
                sync.fetch_all()
            else:
                sync.fetch_names(names)
            if left_out is not None:
                left_out |= sync.left_out
            return mirror.path(prefix)
    except OSError as error:
        raise ResourceError(
            f"{error.filename or data_dir} cannot be written ({error.strerror}): make room for it, or set "
            "paths.data_dir to another folder; what was fetched is kept"
        ) from error
    except sqlite3.Error as error:
        if is_corrupt(error):
            raise ResourceError(
                f"the list of what was fetched to {data_dir} is damaged and was deleted: run the same command again, "
                "it fetches everything anew"
            ) from error
        raise ResourceError(
            f"the list of what was fetched cannot be written to {data_dir} ({error}): make room for it, or set "
            "paths.data_dir to another folder; what was fetched is kept"
        ) from error


class _Sync:
    """One source on its way into the mirror of its bucket."""

    def __init__(
        self,
        bucket: Bucket,
        mirror: Mirror,
        prefix: str,
        connections: int,
        wanted: ObjectFilter | None,
        keep_deleted: bool,
    ) -> None:
        self._bucket, self._mirror, self._catalogue = bucket, mirror, mirror.catalogue
        self._connections, self._wanted, self._keep_deleted = connections, wanted, keep_deleted
        self._below = f"{prefix}/" if prefix else ""
        self._address = f"s3://{bucket.name}/{self._below}"
        self.left_out: dict[str, str] = {}

    def fetch_all(self) -> None:
        """Mirror every object below the prefix."""
        log.info("listing %s", self._address)
        _list_into(
            self._catalogue,
            self._bucket,
            self._below,
            meanwhile=partial(self._catalogue.mark_missing, self._below, self._mirror.is_here),
        )
        number = self._catalogue.count_listed()
        if not number:
            raise DataError(f"no object exists under {self._address}: correct the folder, its letters' case included")
        if not self._keep_deleted:
            while gone := self._catalogue.unlisted(self._below):
                self._mirror.forget(gone)
        self._catalogue.plan_jobs()
        self._leave_out(drop_unusable_keys(self._catalogue, self._mirror))
        left = self._catalogue.filter_jobs(self._relative(self._wanted.by_name)) if self._wanted else 0
        fetched = self._fetch_jobs()
        if self._wanted and self._catalogue.restore_deferred():
            left += self._catalogue.filter_jobs(self._relative(self._wanted.by_metadata))
            fetched += self._fetch_jobs()
        log.info("%s: %d objects, %d of them fetched now", self._address, number, fetched)
        _log_excluded(left)

    def fetch_names(self, names: Sequence[str]) -> None:
        """Mirror the objects of these names below the prefix; all other files are left alone."""
        keys = list(dict.fromkeys(self._below + name for name in names))
        refused = {key: reason for key in keys if (reason := unusable_reason(key))}
        self._leave_out(warn_unusable_keys(refused))
        keys = [key for key in keys if key not in refused]
        if self._wanted is None:
            requested, outcome = keys, self._fetch_keys(keys)
        else:
            by_name, by_metadata = self._relative(self._wanted.by_name), self._relative(self._wanted.by_metadata)
            verdicts = {key: by_name(key) for key in keys}
            first = [key for key in keys if verdicts[key]]
            outcome = self._fetch_keys(first)
            then = [key for key in keys if verdicts[key] is None and by_metadata(key)]
            more = self._fetch_keys(then)
            requested, outcome = (
                first + then,
                TransferOutcome(outcome.fetched + more.fetched, outcome.absent | more.absent),
            )
        absent = outcome.absent
        if len(absent) == len(requested):
            raise next(
                (error for error in absent.values() if isinstance(error, DeniedError)),
                DataError(f"none of the {len(names)} objects exists under {self._address}: correct data.source or ids"),
            )
        warn("%d objects do not exist: %s", list(absent))
        here = len(requested) - len(absent)
        log.info("%s: %d of %d objects are here, %d fetched now", self._address, here, len(requested), outcome.fetched)
        _log_excluded(len(keys) - len(requested))

    def _fetch_jobs(self) -> int:
        """Run the jobs that the catalogue planned."""
        number, size = self._catalogue.jobs_total()
        if not number:
            return 0
        free = shutil.disk_usage(self._mirror.folder).free
        if size > free:
            raise ResourceError(
                f"{size / 1e9:.1f} GB are to be fetched and {free / 1e9:.1f} GB are free at {self._mirror.folder}: "
                "make room, or set paths.data_dir to another disk"
            )
        self._catalogue.mark_jobs_pending()
        jobs = (DownloadItem(key, Stored(etag, size)) for page in self._catalogue.jobs() for key, etag, size in page)
        outcome = self._transfer(jobs, number, size, (MissingError,))
        if not self._keep_deleted:
            self._mirror.forget(outcome.absent)
        absent = self._catalogue.record_absent(outcome.absent)
        warn("%d objects are listed, but do not exist any more: %s", absent)
        self._leave_out(dict.fromkeys(absent, "is listed, but does not exist any more"))
        return outcome.fetched

    def _fetch_keys(self, keys: Sequence[str]) -> TransferOutcome:
        """Fetch objects that were not listed, each by a request that is conditional on the version here."""
        if not keys:
            return TransferOutcome(0, {})
        here = {key: self._mirror.local_version(key) for key in keys}
        jobs = [DownloadItem(key, None, stored.etag if stored else "") for key, stored in here.items()]
        self._catalogue.mark_pending(key for key, stored in here.items() if stored is None)
        # Without permission to list a bucket, objects that do not exist are denied, too.
        outcome = self._transfer(jobs, len(jobs), None, (MissingError, DeniedError))
        if self._keep_deleted:
            outcome = outcome._replace(
                absent={
                    key: error
                    for key, error in outcome.absent.items()
                    if not (here[key] and isinstance(error, MissingError))
                }
            )
        # A denied object may still exist: permissions change, and fetched files stay.
        gone = [key for key, error in outcome.absent.items() if isinstance(error, MissingError) or not here[key]]
        self._mirror.forget(gone)
        return outcome

    def _transfer(
        self, jobs: Iterable[DownloadItem], number: int, size: int | None, tolerated: tuple[type[DataError], ...]
    ) -> TransferOutcome:
        """Fetch objects; if one fails permanently, running requests end first, and fetched files are kept."""
        with TransferProgress(f"Fetching from s3://{self._bucket.name}", number, size) as progress:
            transfer = _Transfer(self._bucket, self._mirror, progress, tolerated)
            try:
                for_each(jobs, transfer.fetch, threads=min(self._connections, number), stop=self._bucket.stop)
            finally:
                transfer.publish_all()
        return TransferOutcome(transfer.fetched, transfer.absent)

    def _leave_out(self, reasons: Mapping[str, str]) -> None:
        self.left_out |= {key.removeprefix(self._below): f"object that {why}" for key, why in reasons.items()}

    def _relative(self, verdict: Callable[[str], _Verdict]) -> Callable[[str], _Verdict]:
        return lambda key: verdict(key.removeprefix(self._below))


def _log_excluded(number: int) -> None:
    if number:
        log.info("%d objects are excluded by data.sync.only and stay in the bucket", number)


class _Transfer:
    """Fetches objects and puts them into place, many at once.

    Args:
        bucket: of the objects.
        mirror: of the bucket.
        progress: advanced by each object.
        tolerated: errors that do not end the transfer.

    Attributes:
        fetched: objects that were not here.
        absent: those that could not be fetched, with the tolerated error.
    """

    def __init__(
        self, bucket: Bucket, mirror: Mirror, progress: TransferProgress, tolerated: tuple[type[DataError], ...]
    ) -> None:
        self.fetched, self.absent = 0, dict[str, DataError]()
        self._bucket, self._mirror = bucket, mirror
        self._progress, self._tolerated = progress, tolerated
        self._arrived: list[StagedFile] = []
        self._published = time.monotonic()
        self._counting, self._publishing = threading.Lock(), threading.Lock()

    def fetch(self, job: DownloadItem) -> None:
        """Fetch one object; may be called from many threads."""
        path = self._mirror.staged()
        try:
            stored = self._bucket.fetch(job.key, path, listed=job.listed, unless=job.unless)
        except self._tolerated as error:
            self.absent[job.key] = error
            stored = None
        if stored is None:
            path.unlink(missing_ok=True)
        with self._counting:
            self._progress.advance(stored.size if stored else job.listed.size if job.listed else 0)
            if stored:
                # Under the listing's etag: should the object have changed since, the next listing shows it.
                known = Stored(job.listed.etag, stored.size) if job.listed else stored
                self._arrived.append(StagedFile(job.key, path, known))
                self.fetched += 1
            if len(self._arrived) < _MOST and time.monotonic() - self._published < _EVERY:
                return
        self.publish_all()

    def publish_all(self) -> None:
        """Move fetched files into place, while other threads keep fetching."""
        with self._publishing:
            with self._counting:
                arrived, self._arrived = self._arrived, []
                self._published = time.monotonic()
            if arrived:
                self._mirror.publish(arrived)


def _list_into(catalogue: Catalogue, bucket: Bucket, prefix: str, *, meanwhile: Callable[[], None]) -> None:
    """List all objects below a prefix.

    A server returns 1,000 keys per request, and each request needs the last key of the one before. If the keys are
    known from an earlier listing, they are cut into parts, which are listed concurrently.

    Args:
        catalogue: takes the objects.
        bucket: that is listed.
        prefix: empty, or a folder with its slash.
        meanwhile: called in a thread of its own, concurrently.

    Raises:
        DataError: the address or the credentials are wrong.
        ResourceError: the network or the server failed.
    """
    catalogue.clear_listing()
    cuts = catalogue.boundaries(prefix, _LISTINGS) if bucket.in_order else []

    def list_part(after: str, until: str) -> None:
        for page in bucket.pages(prefix, after=after):
            inside = [item for item in page if not until or item.key <= until]
            catalogue.add_listed(inside)
            if len(inside) < len(page) or bucket.stop.is_set():
                return

    tasks: list[Callable[[], None]] = [partial(list_part, *ends) for ends in pairwise(["", *cuts, ""])]
    for_each([*tasks, meanwhile], lambda task: task(), threads=len(tasks) + 1, stop=bucket.stop)
