"""The local copy of a bucket: what lies here whole, and who may change it.

``<data_dir>/s3/<bucket>/<key>`` holds one object each. What is known of them is kept out of the layouts' sight in
``<data_dir>/s3/.sync`` (a bucket's name cannot start with a dot): a catalogue, a lock, and the files on their way. All
sources in one bucket share these, so that ``s3://b`` and ``s3://b/photos`` agree.

Files are flushed to disk before they are renamed into place, many at once, since each flush waits for the disk; the
catalogue is written last. It may therefore not know of files that were in place before a kill or a power cut, whose
objects are then fetched again, but it never vouches for a file that is not whole.
"""

import ctypes
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from bincounter.data.s3.address import refusal
from bincounter.data.s3.catalogue import Catalogue, tells_of_damage
from bincounter.data.s3.objects import Listed, Stored

log = logging.getLogger(__name__)

_FOLDERS = 10_000  # of which is remembered that they were made


class Arrived(NamedTuple):
    """An object that was fetched and checked.

    Attributes:
        key: its name.
        file: that holds it, from :meth:`Mirror.staged`.
        stored: its version.
    """

    key: str
    file: Path
    stored: Stored


class Mirror:
    """The local files of one bucket; a context manager that holds the bucket's lock.

    Args:
        data_dir: the folder that holds the copies of all buckets, in ``s3/``.
        bucket: a bucket name that :func:`bincounter.data.s3.address.parse` accepted.

    Attributes:
        folder: of the files.
        catalogue: what is known of them.
    """

    catalogue: Catalogue

    def __init__(self, data_dir: Path, bucket: str) -> None:
        state = data_dir / "s3" / ".sync"
        self.folder = data_dir / "s3" / bucket
        self._lock_path = state / f"{bucket}.lock"
        self._catalogue_path = state / f"{bucket}.sqlite"
        self._staging = state / f"{bucket}.parts"
        # A name of its own, since a thread that was left behind by another mirror may still write a file.
        self._name, self._numbers = os.urandom(4).hex(), count()
        self._folders: set[str] = set()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock_path.parent.mkdir(exist_ok=True)
        self._lock = self._lock_path.open("w")
        try:
            self._acquire()
            shutil.rmtree(self._staging, ignore_errors=True)  # what a killed process left half done
            self._staging.mkdir(exist_ok=True)  # such a thread may have made a file just now
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
            if tells_of_damage(error):
                self._catalogue_path.unlink()
            shutil.rmtree(self._staging, ignore_errors=True)
        finally:
            self._lock.close()

    def path(self, key: str) -> Path:
        """The local file of ``key``, which :func:`refusal` let pass."""
        return self.folder / key

    def is_here(self, key: str, size: int) -> bool:
        """Whether the local file of ``key`` is there and has so many bytes."""
        try:
            return os.stat(f"{self.folder}/{key}").st_size == size  # noqa: PTH116  # half the time of a Path, for each object
        except (FileNotFoundError, NotADirectoryError):
            return False

    def known(self, key: str) -> Stored | None:
        """The version of ``key`` that lies here whole, or ``None``; a file whose size was changed does not count."""
        stored = self.catalogue.known(key)
        return stored if stored and self.is_here(key, stored.size) else None

    def staged(self) -> Path:
        """A new place for a file on its way."""
        return self._staging / f"{self._name}-{next(self._numbers)}"

    def publish(self, arrived: Sequence[Arrived]) -> None:
        """Flush files to disk, then make them the local files of their keys; called by one thread at a time."""
        _flush(self._staging, [file for _, file, _ in arrived])
        for key, file, _ in arrived:
            path = f"{self.folder}/{key}"
            self._make_folder(path.rpartition("/")[0])
            os.replace(file, path)  # noqa: PTH105
        self.catalogue.note(Listed(key, *stored) for key, _, stored in arrived)

    def forget(self, keys: Iterable[str]) -> None:
        """Delete the local files of ``keys``, and the folders which that leaves empty."""
        keys = list(keys)
        for key in keys:
            if refusal(key) or not self.catalogue.has(key):  # no file of ours
                continue
            path = self.path(key)
            try:
                path.unlink()
                _remove_empty(path.parent, self.folder)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                pass  # asked for, but it never arrived, or someone else deleted it
        self._folders.clear()
        self.catalogue.forget(keys)

    def _make_folder(self, folder: str) -> None:
        if folder not in self._folders:
            Path(folder).mkdir(parents=True, exist_ok=True)
            if len(self._folders) == _FOLDERS:
                self._folders.clear()
            self._folders.add(folder)

    def _acquire(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("another process is fetching into %s; waiting until it is done", self.folder)
            fcntl.flock(self._lock, fcntl.LOCK_EX)


def _flush(folder: Path, files: Iterable[Path]) -> None:
    """Wait until files are on disk, by one call for all of them where the system has it (Linux)."""
    flush_all = _syncfs()
    if flush_all is not None:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            if flush_all(descriptor):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(folder))
        finally:
            os.close(descriptor)
        return
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


@cache
def _syncfs() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove ``folder`` and its parents below ``root`` as far as they are empty."""
    while folder != root:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
