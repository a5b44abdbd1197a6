"""Where the bytes of a photo lie, and how they are read: a file, or a part of one, here or in a bucket."""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_OPEN = 256  # files of several photos that are kept open: to open one on a mounted bucket takes many milliseconds


@dataclass(frozen=True, slots=True)
class PhotoFile:
    """A file, or the part of one, that holds the bytes of one photo.

    Attributes:
        path: a local file, or the key of an object.
        offset: of the photo's first byte in it.
        size: in bytes; ``None`` for all of the file.
        bucket: that holds the object; ``None`` for a local file.
    """

    path: Path
    offset: int = 0
    size: int | None = None
    bucket: str | None = None

    @property
    def name(self) -> str:
        """The file or object, and the place in it where it holds more than the photo."""
        file = f"s3://{self.bucket}/{self.path}" if self.bucket else str(self.path)
        return file if self.size is None else f"{file} at byte {self.offset}"

    def __reduce__(self) -> tuple[type["PhotoFile"], tuple[Path, int, int | None, str | None]]:
        # In half the time of the default: half a million of them go to each worker that streams.
        return PhotoFile, (self.path, self.offset, self.size, self.bucket)


def read_photos(files: Sequence[PhotoFile]) -> list[bytes]:
    """Read the bytes of photos, in the order asked for; those in buckets many at a time.

    Raises:
        OSError: a local file, which ``filename`` names, cannot be read, or ends before the photo does.
        DataError: an object is missing or not for us to read.
        ResourceError: the network or the server gave out.
    """
    if all(file.bucket is None for file in files):
        return [_read(file) for file in files]
    from bincounter.data.shards.streaming import read_objects  # brings boto, which photos here have no use for

    return read_objects(files)


def suffix_of(data: bytes) -> str:
    """The ending that a photo's file has by its content: ``.jpg``, ``.png`` or ``.webp``."""
    if data.startswith(b"\x89PNG"):
        return ".png"
    return ".webp" if data[8:12] == b"WEBP" else ".jpg"


def forget_open_files() -> None:
    """Open files anew when they are read next: there may be others of their names by now."""
    _opened.cache_clear()


def _read(file: PhotoFile) -> bytes:
    try:
        return file.path.read_bytes() if file.size is None else _part(file, file.size)
    except OSError as error:
        error.filename = file.name  # an error in the middle of a file names none
        raise


class _Descriptor:
    """A file that stays open as long as anyone reads it; forked processes share it, as reads name their place."""

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
    while len(data) < size:  # a network file system may give less at a time
        more = os.pread(descriptor.number, size - len(data), file.offset + len(data))
        if not more:
            raise OSError(errno.EINVAL, "it ends before the photo does")
        data += more
    return data
