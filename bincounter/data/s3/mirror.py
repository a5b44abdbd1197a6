"""Local copy of a bucket: lock, staging folder, atomic publication, unusable keys.

``<data_dir>/s3/<bucket>/<key>`` holds one object each. Their state is in ``<data_dir>/s3/.sync``, which no layout
reads (a bucket's name cannot start with a dot): a catalogue, a lock, and the unfinished files. All sources in one
bucket share these, so that ``s3://b`` and ``s3://b/photos`` agree.

Files are on disk before they are renamed into place, and the catalogue is written last. After a kill or a power
cut it may lack complete files, which are then fetched again, but it never lists an incomplete one.
"""

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from bincounter.data.s3.address import unusable_reason
from bincounter.data.s3.catalogue import Catalogue, is_corrupt
from bincounter.data.s3.objects import Listed, Stored
from bincounter.files import lock
from bincounter.names import first_of

log = logging.getLogger(__name__)

_FOLDERS = 10_000  # cached names of folders that exist, or that are no object


class StagedFile(NamedTuple):
    """An object that was fetched and checked.

    Attributes:
        key: its name.
        file: that holds it, from :meth:`Mirror.staged`.
        stored: its version.
    """

    key: str
    file: Path
    stored: Stored


def local_folder(data_dir: Path, bucket: str, prefix: str = "") -> Path:
    """Folder of the local copies of a bucket's objects below ``prefix``."""
    return data_dir / "s3" / bucket / prefix


class Mirror:
    """The local files of one bucket; a context manager that holds the bucket's lock.

    Args:
        data_dir: the folder that holds the copies of all buckets, in ``s3/``.
        bucket: a bucket name that :func:`bincounter.data.s3.address.parse_address` accepted.

    Attributes:
        folder: of the files.
        catalogue: records them.
    """

    catalogue: Catalogue

    def __init__(self, data_dir: Path, bucket: str) -> None:
        state = data_dir / "s3" / ".sync"
        self.folder = local_folder(data_dir, bucket)
        self._lock_path = state / f"{bucket}.lock"
        self._catalogue_path = state / f"{bucket}.sqlite"
        self._staging = state / f"{bucket}.parts"
        self._numbers = count()
        self._folders: set[str] = set()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock_path.parent.mkdir(exist_ok=True)
        self._lock = self._lock_path.open("w")
        try:
            if not lock(self._lock, wait=0):
                log.warning("another process is fetching into %s; waiting for it", self.folder)
                lock(self._lock)
            shutil.rmtree(self._staging, ignore_errors=True)  # left by a killed process
            self._staging.mkdir(exist_ok=True)
            self.catalogue = Catalogue(self._catalogue_path)
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.catalogue.close()
            if is_corrupt(error):
                self._catalogue_path.unlink()
            shutil.rmtree(self._staging, ignore_errors=True)
        finally:
            self._lock.close()

    def path(self, key: str) -> Path:
        """The local file of ``key``, which must pass :func:`bincounter.data.s3.address.unusable_reason`."""
        return self.folder / key

    def is_here(self, key: str, size: int) -> bool:
        """Return True if the local file of ``key`` exists and has ``size`` bytes."""
        try:
            return os.stat(f"{self.folder}/{key}").st_size == size  # noqa: PTH116  # half the time of a Path, for each object
        except (FileNotFoundError, NotADirectoryError):
            return False

    def local_version(self, key: str) -> Stored | None:
        """Etag and size of the local file of ``key``; ``None`` if it is missing or its size was changed."""
        stored = self.catalogue.stored_version(key)
        return stored if stored and self.is_here(key, stored.size) else None

    def staged(self) -> Path:
        """A new path for a file that is being fetched."""
        return self._staging / str(next(self._numbers))

    def publish(self, arrived: Sequence[StagedFile]) -> None:
        """Rename flushed files to the local files of their keys; called by one thread at a time."""
        for key, file, _ in arrived:
            path = f"{self.folder}/{key}"
            self._make_folder(path.rpartition("/")[0])
            os.replace(file, path)  # noqa: PTH105
        self.catalogue.record(Listed(key, *stored) for key, _, stored in arrived)

    def forget(self, keys: Iterable[str]) -> None:
        """Delete the local files of ``keys``, and then empty folders."""
        keys = list(keys)
        for key in keys:
            if unusable_reason(key) or not self.catalogue.is_recorded(key):  # no file of ours
                continue
            path = self.path(key)
            try:
                path.unlink()
                _remove_empty(path.parent, self.folder)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                pass  # it never arrived, or someone else deleted it
        self._folders.clear()
        self.catalogue.forget(keys)

    def _make_folder(self, folder: str) -> None:
        if folder not in self._folders:
            Path(folder).mkdir(parents=True, exist_ok=True)
            if len(self._folders) == _FOLDERS:
                self._folders.clear()
            self._folders.add(folder)


def drop_unusable_keys(catalogue: Catalogue, mirror: Mirror) -> dict[str, str]:
    """Drop the jobs of objects that cannot be local files, and log their keys.

    An object with a key that is also a folder of other objects is dropped, and its local file is deleted.

    Returns:
        The keys with the reasons.
    """
    refused: dict[str, str] = {}
    folders: set[str] = set()
    for page in catalogue.jobs():
        for item in page:
            if item.key.endswith("/") and not item.size:
                catalogue.drop_listed([item.key])  # a marker by which consoles show an empty folder
            elif reason := unusable_reason(item.key):
                refused[item.key] = reason
            elif catalogue.has_listed_below(item.key):
                refused[item.key] = "is a folder of other objects" if item.size else ""
            else:
                refused |= dict.fromkeys(_in_the_way(item, catalogue, folders), "is a folder of other objects")
    catalogue.drop_listed(refused)
    mirror.forget(refused)
    return warn_unusable_keys(refused)


def warn_unusable_keys(reasons: Mapping[str, str]) -> dict[str, str]:
    """Log and return keys that cannot be local files, except markers of folders, which have an empty reason."""
    reasons = {key: reason for key, reason in reasons.items() if reason}
    warn("%d objects cannot be local files and are skipped: %s", [f"{key!r} {why}" for key, why in reasons.items()])
    return reasons


def warn(message: str, items: Sequence[str]) -> None:
    """Log a warning with the number of items and the first few of them."""
    if items:
        log.warning(message, len(items), first_of(items))


def _in_the_way(item: Listed, catalogue: Catalogue, folders: set[str]) -> Iterator[str]:
    """Yield the objects with a key that is a parent folder of the item."""
    folder = item.key
    while (cut := folder.rfind("/")) >= 0 and (folder := folder[:cut]) not in folders:
        if catalogue.is_listed(folder):
            yield folder
        if len(folders) == _FOLDERS:
            folders.clear()
        folders.add(folder)


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove ``folder`` and its parents below ``root`` as far as they are empty."""
    while folder != root:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
