"""``s3://`` sources: made the same as a local folder, which everything else then reads.

The folder mirrors the bucket: new and changed objects are fetched, files whose object is gone are deleted, and nothing
is transferred when nothing changed. A run that was killed is gone on with; two at once do the work once.
"""

import logging
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bincounter.data.s3.address import parse, refusal
from bincounter.data.s3.catalogue import tells_of_damage
from bincounter.data.s3.client import Bucket
from bincounter.data.s3.errors import DeniedError, MissingError
from bincounter.data.s3.listing import list_into
from bincounter.data.s3.mirror import Mirror
from bincounter.data.s3.objects import Job, Outcome, Stored
from bincounter.data.s3.unusable import leave_out_what_cannot_be_here, warn, warn_of_refused
from bincounter.errors import DataError, ResourceError

if TYPE_CHECKING:
    from bincounter.data.s3.choosing import Chooser

# What knows of layouts and what transfers is imported by the functions: most syncs need neither, and take less time
# than these imports.

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
    from bincounter.data.s3.choosing import Chooser

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
        from bincounter.data.s3.transfer import transfer
        from bincounter.data.s3.transfer_progress import TransferProgress

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
