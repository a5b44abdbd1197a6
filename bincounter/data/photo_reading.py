"""Photos read ahead of who uses them, each checked against the hash of its bytes."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from bincounter.data.ordered_threads import ordered_map
from bincounter.data.photo_file import PhotoFile, read_photos
from bincounter.errors import DataError

_SPAN = 2_000_000  # bytes of photos that lie behind each other and are read together
_REQUESTS = 16  # to a bucket at a time: together with _SPAN more than a fast network holds in flight


def content_hash(data: bytes) -> np.uint64:
    """Hash a file's bytes (BLAKE2b, 64 bits)."""
    return np.uint64(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little"))


def read_checked(files: Sequence[PhotoFile], content: np.ndarray) -> list[bytes]:
    """Read photos.

    Args:
        files: of the photos.
        content: ``uint64[N]``, the hash of each photo's bytes when the data was scanned or packed.

    Raises:
        DataError: a photo was changed or lost since then.
        ResourceError: the network or the server gave out.
    """
    try:
        photos = read_photos(files)
    except OSError as error:
        raise DataError(
            f"{error.filename} can no longer be read ({error.strerror}): restore it or run again."
        ) from error
    for file, data, expected in zip(files, photos, content, strict=True):
        if content_hash(data) != expected:
            raise DataError(_changed(file))
    return photos


def in_reading_order(files: Sequence[PhotoFile]) -> np.ndarray:
    """Positions in ``files``, ``int64[N]``, in the order in which the photos of each shard lie in it."""
    if all(file.size is None for file in files):
        return np.arange(len(files))
    rank = {path: number for number, path in enumerate(sorted({file.path for file in files}))}
    return np.array(sorted(range(len(files)), key=lambda i: (rank[files[i].path], files[i].offset)), np.int64)


def read_ahead(files: Sequence[PhotoFile], content: np.ndarray, order: np.ndarray, *, workers: int) -> Iterator[bytes]:
    """Read photos in threads, those that lie behind each other together; memory does not grow with their number.

    Args:
        files: of the photos.
        content: see :func:`read_checked`.
        order: ``int64[M]``, positions in ``files``.
        workers: threads for files of one photo each. Shards here are read by one, from beginning to end, as mounted
            buckets and spinning disks like best.

    Yields:
        the bytes of each photo, in that order.
    """
    if not len(order):
        return
    first = files[order[0]]
    threads = _REQUESTS if first.bucket else 1 if first.size is not None else workers

    def read(span: np.ndarray) -> list[bytes]:
        return read_checked([files[i] for i in span], content[span])

    for photos in ordered_map(read, _spans(files, order), threads, ahead=1):
        yield from photos


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


def _changed(file: PhotoFile) -> str:
    if file.size is None:
        return f"{file.name} was changed after the data was scanned: run again to use it as it is now."
    return f"another photo than index.csv says lies in {file.name}: restore the shard, or pack the photos again."
