"""``s3://`` sources: made the same as a local folder, which everything else then reads.

The folder mirrors the bucket: new and changed objects are fetched, files whose object is gone are deleted, and nothing
is transferred when nothing changed. A run that was killed is gone on with; two at once do the work once.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bincounter.data.s3.address import parse, refusal
from bincounter.data.s3.client import Bucket
from bincounter.data.s3.errors import DeniedError, MissingError
from bincounter.data.s3.mirror import Mirror, Stored
from bincounter.errors import DataError, ResourceError
from bincounter.progress import track

log = logging.getLogger(__name__)

_AT_ONCE = 1000  # objects handed to the threads together
_NAMED = 5  # objects named in one line of the log


class _Job(NamedTuple):
    """One object to fetch.

    Attributes:
        listed: what the listing said of it, or ``None`` where there was none.
        unless: the version that is here already, or ``""``.
    """

    listed: Stored | None
    unless: str


def fetch(source: str, data_dir: Path, *, ids: Sequence[str] | None = None, workers: int = 32) -> Path:
    """Make ``data_dir/s3/<bucket>/<folder>`` hold what ``s3://<bucket>/<folder>`` holds, and nothing it used to hold.

    Each file appears whole or not at all, checked by size and, where the server tells it, by MD5. Files that were put
    into the local folder by others stay. Keys that cannot be local files are left out and logged.

    Args:
        source: an address, see :func:`parse`.
        data_dir: the folder that holds the copies of all buckets.
        ids: of a source in ABID's layout fetch only the photos and the metadata of these bins, a request for each and
            no listing (the public bucket has a million objects); what is missing is left to the layout to report.
        workers: requests at a time.

    Returns:
        the local folder.

    Raises:
        DataError: the address or the credentials are wrong, or nothing lies there.
        ResourceError: the network, the server or the disk gave out; the same call goes on from what is there.
    """
    name, prefix = parse(source)
    bucket = Bucket(name, workers)
    try:
        with Mirror(data_dir, name) as mirror:
            folder = mirror.path(prefix)
            if ids is None:
                _fetch_all(bucket, prefix, mirror, workers)
            else:
                _fetch_bins(bucket, prefix, ids, mirror, workers)
            mirror.compact()
    except OSError as error:
        raise ResourceError(
            f"{error.filename or data_dir} cannot be written ({error.strerror}): make room for it, or set "
            "paths.data_dir to another folder; what was fetched is kept"
        ) from error
    return folder


def _fetch_all(bucket: Bucket, prefix: str, mirror: Mirror, workers: int) -> None:
    """Mirror every object below ``prefix``."""
    address, below = _address(bucket, prefix)
    log.info("listing %s", address)
    objects = _usable(dict(bucket.objects(below)))
    if not objects:
        raise DataError(f"nothing lies under {address}: correct the folder, its letters' case included")
    mirror.forget([key for key in mirror.under(below) if key not in objects])
    jobs = {key: _Job(stored, "") for key, stored in objects.items() if mirror.known(key) != stored}
    _check_room(mirror.folder, sum(objects[key].size for key in jobs))
    # What is missing now was deleted since the listing.
    fetched, _ = _transfer(bucket, mirror, jobs, workers, tolerated=(MissingError,))
    log.info("%s: %d objects, %d of them fetched now", address, len(objects), fetched)


def _fetch_bins(bucket: Bucket, prefix: str, ids: Sequence[str], mirror: Mirror, workers: int) -> None:
    """Mirror the photos and metadata of ``ids``; the files of other bins are left alone."""
    address, below = _address(bucket, prefix)
    names = [name for bin_id in ids for name in (f"bin-images/{bin_id}.jpg", f"metadata/{bin_id}.json")]
    keys = _usable({below + name: Stored("", 0) for name in names})
    here = {key: mirror.known(key) for key in keys}
    jobs = {key: _Job(None, stored.etag if stored else "") for key, stored in here.items()}
    # Who may not list a bucket is denied what does not exist, too.
    fetched, absent = _transfer(bucket, mirror, jobs, workers, tolerated=(MissingError, DeniedError))
    if len(absent) == len(jobs):
        raise next(
            (error for error in absent.values() if isinstance(error, DeniedError)),
            DataError(f"none of the {len(ids)} ids lies under {address}: correct data.source or the list of ids"),
        )
    _warn("%d objects do not exist: %s", list(absent))
    log.info("%s: %d of %d objects are here, %d fetched now", address, len(jobs) - len(absent), len(jobs), fetched)


def _transfer(
    bucket: Bucket, mirror: Mirror, jobs: dict[str, _Job], workers: int, tolerated: tuple[type[DataError], ...]
) -> tuple[int, dict[str, DataError]]:
    """Fetch ``jobs``; returns how many were, and the tolerated errors of those that could not be."""

    def fetch_one(key: str) -> tuple[str, bool | DataError]:
        job = jobs[key]
        try:
            with mirror.incoming() as file:
                stored = bucket.read(key, file, listed=job.listed, unless=job.unless)
                if stored:  # under the listing's name: should the object have changed since, the next listing tells
                    mirror.keep(file, key, Stored(job.listed.etag if job.listed else stored.etag, stored.size))
            return key, stored is not None
        except tolerated as error:
            return key, error

    def results() -> Iterator[tuple[str, bool | DataError]]:
        keys = list(jobs)
        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                mirror.expect(key for key in some if not jobs[key].unless)
                yield from pool.map(fetch_one, some)

    outcomes = dict(track(results(), f"Fetching from s3://{bucket.name}", len(jobs))) if jobs else {}
    absent = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, DataError)}
    mirror.forget(absent)
    return sum(outcome is True for outcome in outcomes.values()), absent


def _usable(objects: dict[str, Stored]) -> dict[str, Stored]:
    """The objects that can be local files together; the others are logged."""
    folders: set[str] = set()
    for key in objects:
        while (cut := key.rfind("/")) >= 0 and (key := key[:cut]) not in folders:
            folders.add(key)
    usable, refused = {}, []
    for key, stored in objects.items():
        if key.endswith("/") and stored.size == 0:
            continue  # what consoles make to show an empty folder
        reason = "is a folder of other objects" if key in folders else refusal(key)
        if reason:
            refused.append(f"{key!r} {reason}")
        else:
            usable[key] = stored
    _warn("%d objects cannot be local files and are left out: %s", refused)
    return usable


def _warn(message: str, items: list[str]) -> None:
    if items:
        log.warning(message, len(items), ", ".join(items[:_NAMED]) + (", ..." if len(items) > _NAMED else ""))


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ResourceError(
            f"{needed / 1e9:.1f} GB are to be fetched and {free / 1e9:.1f} GB are free at {folder}: make room, or set "
            "paths.data_dir to another disk"
        )


def _address(bucket: Bucket, prefix: str) -> tuple[str, str]:
    """How a source is called in messages, and what its keys start with."""
    below = f"{prefix}/" if prefix else ""
    return f"s3://{bucket.name}/{below}", below
