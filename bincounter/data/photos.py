"""Bytes of photos from files, tar shards or buckets, checked by hash and read ahead in order."""

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from bincounter.data.records import PhotoFile
from bincounter.errors import DataError, ResourceError
from bincounter.parallel import map_ordered

_DESCRIPTORS = os.sysconf("SC_OPEN_MAX") if hasattr(os, "sysconf") else -1  # of this process; -1: without a limit
# Shards that are kept open: opening one on a mounted bucket takes many milliseconds.
_OPEN = min(256, _DESCRIPTORS // 2) if _DESCRIPTORS > 0 else 256
_SPAN = 2_000_000  # bytes of consecutive photos that are read together
_PAUSES = (0.05, 0.2)  # seconds before a function is called again
_PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT}
_REQUESTS = 16  # concurrent requests to a bucket: times _SPAN, more than the bandwidth-delay product of fast networks


_Result = TypeVar("_Result")


def retry(function: Callable[[], _Result]) -> _Result:
    """Call a function that reads or decodes photos; retry it after a transient lack of memory, descriptors or device.

    Raises:
        MemoryError: there is too little memory.
        OSError: a file cannot be read.
    """
    for pause in _PAUSES:
        try:
            return function()
        except (MemoryError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _PASSING:
                raise
        time.sleep(pause)
    return function()


def failure_clause(error: MemoryError | OSError) -> str:
    """Describe a failure outside the bytes of a photo as a clause: ``cannot be read (permission denied)``."""
    if isinstance(error, MemoryError):
        return "not read, for want of memory"
    return f"cannot be read ({(error.strerror or type(error).__name__).lower()})"


def read_photos(files: Sequence[PhotoFile]) -> list[bytes]:
    """Read the bytes of photos, in the given order; those in buckets concurrently.

    Raises:
        OSError: a local file, which ``filename`` names, cannot be read, or ends before the photo does.
        DataError: an object is missing or may not be read.
        ResourceError: the network or the server failed.
    """
    if all(file.bucket is None for file in files):
        return [_read(file) for file in files]
    from bincounter.data.s3.ranges import read_objects  # imports botocore, which local photos do not need

    return read_objects(files)


def read_checked(files: Sequence[PhotoFile], content: np.ndarray) -> list[bytes]:
    """Read photos and check their hashes.

    Args:
        files: of the photos.
        content: ``uint64[N]``, the hash of each photo's bytes when the data was scanned or packed.

    Raises:
        DataError: a photo was changed or lost since then.
        ResourceError: the network, the server or the device failed, or this process may open no more files.
    """
    try:
        photos = retry(lambda: read_photos(files))
    except OSError as error:
        if error.errno in _PASSING:
            raise ResourceError(
                f"{error.filename} {failure_clause(error)}: check the device, the memory and the limit of open files "
                "(ulimit -n), and run again"
            ) from error
        raise DataError(
            f"{error.filename} can no longer be read ({error.strerror}): restore it or run again."
        ) from error
    for file, data, expected in zip(files, photos, content, strict=True):
        if content_hash(data) != expected:
            if file.size is None:
                raise DataError(
                    f"{file.name} was changed after the data was scanned: run again to use it as it is now."
                )
            raise DataError(
                f"{file.name} is not the photo that index.csv describes: restore the shard, or pack the photos again."
            )
    return photos


def read_ahead(files: Sequence[PhotoFile], content: np.ndarray, order: np.ndarray, *, workers: int) -> Iterator[bytes]:
    """Read photos in threads, consecutive ones together; memory does not grow with their number.

    Args:
        files: of the photos.
        content: see :func:`read_checked`.
        order: ``int64[M]``, positions in ``files``.
        workers: threads for files of one photo each. Local shards are read by one thread, sequentially, which suits
            mounted buckets and spinning disks.

    Yields:
        the bytes of each photo, in that order.
    """
    if not len(order):
        return
    first = files[order[0]]
    threads = _REQUESTS if first.bucket else 1 if first.size is not None else workers

    def read(span: np.ndarray) -> list[bytes]:
        return read_checked([files[i] for i in span], content[span])

    for photos in map_ordered(read, _spans(files, order), threads, ahead=1):
        yield from photos


def in_reading_order(files: Sequence[PhotoFile]) -> np.ndarray:
    """Positions in ``files``, ``int64[N]``, sorted by shard and by offset in it."""
    if all(file.size is None for file in files):
        return np.arange(len(files))
    rank = {path: number for number, path in enumerate(sorted({file.path for file in files}))}
    return np.array(sorted(range(len(files)), key=lambda i: (rank[files[i].path], files[i].offset)), np.int64)


def content_hash(data: bytes) -> np.uint64:
    """Hash a file's bytes (BLAKE2b, 64 bits)."""
    return np.uint64(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little"))


def photo_suffix(data: bytes) -> str:
    """File suffix of a photo by its content: ``.jpg``, ``.png`` or ``.webp``."""
    if data.startswith(b"\x89PNG"):
        return ".png"
    return ".webp" if data[8:12] == b"WEBP" else ".jpg"


def close_photo_files() -> None:
    """Close the cached files, which may have been replaced."""
    _opened.cache_clear()


def _read(file: PhotoFile) -> bytes:
    try:
        return file.path.read_bytes() if file.size is None else _part(file, file.size)
    except OSError as error:
        error.filename = file.name  # an error in the middle of a file names none
        raise


class _Descriptor:
    """A file that stays open while it is read; forked processes may share it, since reads give their offset."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=_OPEN)
def _opened(path: Path) -> _Descriptor:
    return _Descriptor(path)


def _part(file: PhotoFile, size: int) -> bytes:
    descriptor = _opened(file.path)
    data = os.pread(descriptor.number, size, file.offset)
    while len(data) < size:  # a network file system may return less
        more = os.pread(descriptor.number, size - len(data), file.offset + len(data))
        if not more:
            raise OSError(errno.EINVAL, "it ends before the photo does")
        data += more
    return data


def _spans(files: Sequence[PhotoFile], order: np.ndarray) -> Iterator[np.ndarray]:
    """Cut ``order`` into runs of photos in one file, of some megabytes each."""
    start, size = 0, 0
    for place, index in enumerate(order.tolist()):
        file, before = files[index], files[order[place - 1]]
        size += file.size or 0
        if place > start and (file.size is None or file.path != before.path or size > _SPAN):
            yield order[start:place]
            start, size = place, file.size or 0
    yield order[start:]
