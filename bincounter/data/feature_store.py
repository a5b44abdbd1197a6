"""Features of a data set's photos: computed once, on demand, and stored in a memory-mapped file.

A folder ``features/<digest of the header>`` holds ``header.json``, the identity of the features, ``features``
(``[N, D]``, a row for each record of a manifest) and ``checks`` (a checksum for each row, 0 for rows that are missing).
"""

import hashlib
import json
import logging
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bincounter.data.photo_store import map_bytes
from bincounter.files import lock_folder, translate_disk_full, write_text

log = logging.getLogger(__name__)

Compute = Callable[[np.ndarray], Iterable[tuple[np.ndarray, Tensor]]]
"""``int64[M]`` rows -> blocks of them with their features, ``int64[B]`` and ``[B, D]``."""


class FeatureStore:
    """Rows of features, each with a checksum over the header, the row's position and its content.

    A row is valid only if it matches its checksum: rows that are truncated, edited or copied from elsewhere are
    computed again. Processes that fill one store take turns, and a valid row is never written again.

    Args:
        cache_dir: the cache folder.
        identity: everything the features depend on, JSON-serialisable; another identity is another store.
        rows: number of records in the manifest.
        size: features per row.
        dtype: of the features.

    Attributes:
        folder: of the store.
    """

    def __init__(
        self, cache_dir: Path, identity: Mapping[str, Any], *, rows: int, size: int, dtype: torch.dtype
    ) -> None:
        kind = str(dtype).removeprefix("torch.")
        self._header = json.dumps({**identity, "shape": [rows, size], "dtype": kind}, indent=2, sort_keys=True) + "\n"
        self.folder = cache_dir / "features" / hashlib.sha256(self._header.encode()).hexdigest()[:16]
        self._dtype, self._shape = dtype, (rows, size * dtype.itemsize)
        self._salt = zlib.crc32(self._header.encode())
        self._bytes: np.ndarray | None = None
        self._held = np.zeros(rows, dtype=bool)

    def holds(self, rows: np.ndarray) -> bool:
        """Return True if all of ``rows`` can be read."""
        return bool(self._held[rows].all())

    def batch(self, rows: np.ndarray) -> Tensor:
        """Read rows, ``int64[B]`` in any order, as ``[B, D]`` owned by the caller.

        Raises:
            ValueError: some of them have not been filled.
        """
        if self._bytes is None or not self.holds(rows):
            raise ValueError("features were read that have not been filled")
        return torch.from_numpy(self._bytes[rows]).view(self._dtype)

    def fill(self, rows: np.ndarray, compute: Compute) -> bool:
        """Compute those of ``rows`` that are missing, so that all can be read.

        Args:
            rows: ``int64[M]``.
            compute: returns the features of rows; not called if none is missing. Its blocks are written one by one, so
                that the next process resumes after the last block of a killed one.

        Returns:
            ``False``, with a warning in the log, if the disk has no room for them.

        Raises:
            ResourceError: the disk is full, or the file cannot be mapped.
        """
        wanted = np.union1d(rows, np.flatnonzero(self._held))  # including held rows: the file may have been replaced
        with lock_folder(self.folder), translate_disk_full(self.folder):
            self._create_unless_valid()
            missing = self._missing(wanted)
            if not self._has_room(len(missing)):
                return False
            if len(missing):
                self._write(compute(missing))
            self._bytes = map_bytes(self._rows_file, self._shape)
        self._held[wanted] = True
        return True

    def clear(self) -> None:
        """Discard all rows, in memory and on disk."""
        with lock_folder(self.folder):
            self._header_file.unlink(missing_ok=True)
        self._held[:] = False

    @property
    def _header_file(self) -> Path:
        return self.folder / "header.json"

    @property
    def _rows_file(self) -> Path:
        return self.folder / "features"

    @property
    def _checks_file(self) -> Path:
        return self.folder / "checks"

    def _create_unless_valid(self) -> None:
        exists = self._header_file.exists()
        sizes = {self._rows_file: self._shape[0] * self._shape[1], self._checks_file: 4 * self._shape[0]}
        right = all(file.is_file() and file.stat().st_size == size for file, size in sizes.items())
        if exists and right and self._header_file.read_bytes() == self._header.encode():
            return
        if exists:
            log.warning("The features in %s are corrupt: computing them again.", self.folder)
        self._header_file.unlink(missing_ok=True)
        for file, size in sizes.items():
            file.unlink(missing_ok=True)  # processes that have mapped the old file keep it
            with file.open("xb") as new:
                new.truncate(size)  # sparse zeros
        write_text(self._header_file, self._header)  # last: without it the other two are ignored

    def _missing(self, rows: np.ndarray) -> np.ndarray:
        """Return those of ``rows`` that are missing or do not match their checksums."""
        checks = np.fromfile(self._checks_file, np.uint32)
        features = map_bytes(self._rows_file, self._shape)
        wrong = np.array([self._check(row, features[row]) != checks[row] for row in rows.tolist()], dtype=bool)
        damaged = int((checks[rows[wrong]] != 0).sum())
        if damaged:
            log.warning("%s of the features in %s are corrupt: computing them again.", f"{damaged:,}", self.folder)
        return rows[wrong]

    def _check(self, row: int, content: np.ndarray) -> int:
        place = zlib.crc32(struct.pack("<q", row), self._salt)
        return zlib.crc32(content.data, place) or 1

    def _has_room(self, missing: int) -> bool:
        needed = missing * self._shape[1]
        if shutil.disk_usage(self.folder).free > 1.05 * needed:
            return True
        log.warning(
            "%s has no room for %.1f GB of features: they are computed again in every epoch, which is slower.",
            self.folder,
            needed / 1e9,
        )
        return False

    def _write(self, blocks: Iterable[tuple[np.ndarray, Tensor]]) -> None:
        # Written, not mapped: on a full disk a write fails with an error, and a map with a signal.
        with self._rows_file.open("r+b", buffering=0) as lines, self._checks_file.open("r+b", buffering=0) as checks:
            for rows, features in blocks:
                content = features.to(self._dtype).contiguous().view(torch.uint8).numpy()
                for row, line in zip(rows.tolist(), content, strict=True):
                    lines.seek(row * self._shape[1])
                    lines.write(line.data)
                    checks.seek(4 * row)
                    checks.write(struct.pack("<I", self._check(row, line)))
