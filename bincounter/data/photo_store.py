"""Pixels of a data set at one size: decoded once into a memory-mapped file, or on every read."""

import ast
import errno
import functools
import hashlib
import logging
import os
import secrets
import shutil
import time
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import PIL
import torch

from bincounter.data.photo_bounds import PhotoError
from bincounter.data.photos import failure_clause, in_reading_order, read_ahead, read_checked, retry
from bincounter.data.preprocessing import decode
from bincounter.data.records import Manifest, PhotoFile
from bincounter.errors import DataError, ResourceError, unreadable
from bincounter.files import translate_disk_full
from bincounter.parallel import map_ordered
from bincounter.progress import track

log = logging.getLogger(__name__)

_PART_PREFIX = ".photos-"
_ABANDONED = 24 * 3600  # seconds without a write after which the temporary file of a killed process is deleted

DECODERS = [Path(__file__).with_name(name) for name in ("photo_bounds.py", "photo_decoder.py", "preprocessing.py")]
"""Source files that determine the pixels."""


class PhotoStore:
    """Photos of one manifest as ``uint8[3, S, S]``, with the same pixels whether they are cached or not.

    It can be pickled and forked into DataLoader workers, each of which maps the file itself.
    """

    def __init__(self, files: Sequence[PhotoFile], content: np.ndarray, image_size: int, file: Path | None) -> None:
        self._files = tuple(files)
        self._content = content
        self._image_size = image_size
        self._file = file
        self._photos: np.ndarray | None = None

    @classmethod
    def open(cls, manifest: Manifest, image_size: int, cache_dir: Path, *, cached: bool, workers: int) -> Self:
        """Open the photos of a manifest.

        Args:
            manifest: of the data set; :meth:`batch` takes positions in its records.
            image_size: side of the square photos, in pixels.
            cache_dir: folder of the files, created if missing.
            cached: decode all photos now, unless ``cache_dir`` has them, and store them there. If its disk has no room,
                a warning is logged and photos are decoded on every read.
            workers: threads that decode.

        Raises:
            DataError: a photo was changed or lost since it was scanned.
            ResourceError: the disk is full.
        """
        files = [record.file for record in manifest.records]
        store = cls(files, manifest.content, image_size, None)
        if cached:
            file = photos_path(cache_dir, manifest, image_size)
            is_whole = file.is_file() and file.stat().st_size == len(files) * 3 * image_size**2
            if is_whole or store._keep(file, workers):
                return cls(files, manifest.content, image_size, file)
        return store

    def __len__(self) -> int:
        """Number of photos."""
        return len(self._files)

    @property
    def cached(self) -> bool:
        """True if the pixels are read from a file of decoded photos."""
        return self._file is not None

    @property
    def streams(self) -> bool:
        """True if photos are read from a bucket on every read."""
        return self._file is None and self._files[0].bucket is not None

    def batch(self, indices: np.ndarray | Sequence[int]) -> torch.Tensor:
        """Read photos.

        Args:
            indices: ``int[B]``, positions in the records of the manifest, in any order.

        Returns:
            ``uint8[B, 3, S, S]``, contiguous and owned by the caller.

        Raises:
            DataError: a photo was changed or lost since it was scanned (only if they are not cached).
            ResourceError: the file of decoded photos cannot be mapped, or (if they are not cached) memory or a disk
                failed.
        """
        if self._file is None:
            photos = np.empty((len(indices), 3, self._image_size, self._image_size), np.uint8)
            wanted = np.asarray(indices, dtype=np.int64)
            for row, photo in enumerate(zip(wanted.tolist(), self._read(wanted), strict=True)):
                photos[row] = self._decode(photo).numpy()  # torch would wake its thread pool for each
            return torch.from_numpy(photos)
        if self._photos is None:
            shape = (len(self), 3, self._image_size, self._image_size)
            try:
                self._photos = map_bytes(self._file, shape)
            except (FileNotFoundError, ValueError) as error:
                raise DataError(
                    f"The decoded photos in {self._file} are missing: run again to decode them again."
                ) from error
        return torch.from_numpy(self._photos[np.asarray(indices, dtype=np.int64)])

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_photos": None}  # a pickled map would carry all the pixels

    def _read(self, indices: np.ndarray) -> Iterator[bytes]:
        """Read bytes: from buckets all at once, since latency dominates; local files one by one, to save memory."""
        remote = len(indices) > 0 and self._files[indices[0]].bucket is not None
        for some in [indices] if remote else indices[:, None]:
            yield from read_checked([self._files[index] for index in some], self._content[some])

    def _decode(self, photo: tuple[int, bytes]) -> torch.Tensor:
        index, data = photo
        try:
            return retry(lambda: decode(data, self._image_size))
        except PhotoError as error:
            name = self._files[index].name
            raise DataError(f"{name} can no longer be decoded ({error}): replace it and run again.") from error
        except (MemoryError, OSError) as error:
            reason = failure_clause(error)
            raise ResourceError(f"{self._files[index].name}: {reason}; free some, and run again.") from error

    def _keep(self, file: Path, workers: int) -> bool:
        """Decode all photos into the file; return False if the disk has no room for them."""
        if not has_room(file.parent, len(self), self._image_size):
            log.warning(
                "%s has no room for %.1f GB of decoded photos: they are decoded again in every epoch, which is slower.",
                file.parent,
                len(self) * 3 * self._image_size**2 / 1e9,
            )
            return False
        with translate_disk_full(file.parent), PhotoWriter(file.parent) as writer:
            order = in_reading_order(self._files)
            read = zip(order.tolist(), read_ahead(self._files, self._content, order, workers=workers), strict=True)
            photos = track(
                map_ordered(self._decode, read, workers), f"Decoding photos to {self._image_size} pixels", len(self)
            )
            for index, photo in zip(order.tolist(), photos, strict=True):
                writer.put(index, photo)
            writer.publish(file)
        return True


def map_bytes(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Map a file of the cache into memory, to be read.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is too short.
        ResourceError: it cannot be mapped.
    """
    try:
        # As a plain array: a memmap subclass would make every batch one too.
        return np.asarray(np.memmap(file, np.uint8, "r", shape=shape))
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOMEM, errno.ENODEV):
            raise (unreadable(file, error) or error) from error
        raise ResourceError(
            f"{file} cannot be mapped into memory ({error.strerror}): raise the limit of virtual memory (ulimit -v), "
            "set paths.cache_dir to a folder on a local disk, or data.cache=false"
        ) from error


class PhotoWriter:
    """Write a file of photos atomically: it gets its name when complete, and is deleted otherwise."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _delete_abandoned(folder)
        self._part = folder / f"{_PART_PREFIX}{os.getpid()}-{secrets.token_hex(4)}.part"
        self._file = self._part.open("xb")

    def put(self, row: int, photo: torch.Tensor) -> None:
        """Write a photo, ``uint8[3, S, S]``, to the row of its record in the manifest; in any order."""
        data = photo.numpy().tobytes()
        self._file.seek(row * len(data))
        self._file.write(data)

    def publish(self, file: Path) -> None:
        """Flush to disk, then rename to the final name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._part.replace(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._file.close()  # on a full disk the last buffered bytes fail again here
        finally:
            self._part.unlink(missing_ok=True)


def photos_path(cache_dir: Path, manifest: Manifest, image_size: int) -> Path:
    """Path of the file with a manifest's photos at one size: exactly N x 3 x S x S bytes."""
    return cache_dir / "photos" / f"{manifest.digest}-{image_size}-{decoder_digest()}.uint8"


def decoder_digest() -> str:
    """Digest of everything that can change a pixel: photos stored under another one are decoded again."""
    return hashlib.sha256((code_digest(*DECODERS) + PIL.__version__).encode()).hexdigest()[:8]


def code_digest(*files: Path) -> str:
    """Digest of Python source files that comments, docstrings and formatting do not change.

    It is meant for keys of caches. Versions of Python from 3.11 agree on it for the files of this package.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(b"".join(map(bare_code, files))).hexdigest()


@functools.cache
def bare_code(file: Path) -> bytes:
    """Code of a Python source file without comments, docstrings and formatting, read once in a process."""
    with tokenize.open(file) as opened:
        module = ast.parse(opened.read())
    for node in ast.walk(module):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [line for line in node.body if not _is_docstring(line)]
    return ast.unparse(module).encode() + b"\0"


def _is_docstring(line: ast.stmt) -> bool:
    """Return True for any string that stands alone, also behind a constant that it describes."""
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


def has_room(folder: Path, photos: int, image_size: int) -> bool:
    """Return True if the folder's disk has room for this many photos, plus 5 %."""
    folder.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(folder).free > 1.05 * photos * 3 * image_size**2


def _delete_abandoned(folder: Path) -> None:
    """Delete temporary files of killed processes."""
    for part in folder.glob(f"{_PART_PREFIX}*.part"):
        try:
            if time.time() - part.stat().st_mtime > _ABANDONED:
                part.unlink()
        except FileNotFoundError:  # another process deleted it first
            continue
