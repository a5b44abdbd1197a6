"""Features of a data set's photos: computed once, as far as they are needed, and kept in a memory-mapped file.

A folder ``features/<digest of the header>`` holds ``header.json``, which says what the rows are features of,
``features`` (``[N, D]``, a row for each record of a manifest) and ``checks`` (a checksum for each row, 0 where there is
none yet).
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

from bincounter.files import full_disk_answered, one_at_a_time, write_text

log = logging.getLogger(__name__)

Compute = Callable[[np.ndarray], Iterable[tuple[np.ndarray, Tensor]]]
"""``int64[M]`` rows -> blocks of them with their features, ``int64[B]`` and ``[B, D]``."""


class FeatureStore:
    """Rows of features, each with a checksum that knows the header and the row's place.

    A row counts only as long as it matches its checksum: what was cut short, edited or brought from elsewhere is
    computed again. Processes that fill one store take turns, and a row that is right is never written again.

    Args:
        cache_dir: where features are kept.
        identity: whatever the features depend on, as JSON; a store under another identity is another store.
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
        """Whether all of ``rows`` can be read."""
        return bool(self._held[rows].all())

    def batch(self, rows: np.ndarray) -> Tensor:
        """Read rows, ``int64[B]`` in any order, as ``[B, D]`` owned by the caller.

        Raises:
            ValueError: some of them were never filled.
        """
        if self._bytes is None or not self.holds(rows):
            raise ValueError("features that were not filled cannot be read")
        return torch.from_numpy(self._bytes[rows]).view(self._dtype)

    def fill(self, rows: np.ndarray, compute: Compute) -> bool:
        """Make sure that ``rows`` can be read, computing those that are not there.

        Args:
            rows: ``int64[M]``.
            compute: gives the features of rows; is not called when all are there. What it gave is kept block by block,
                so that the next process goes on where a killed one was.

        Returns:
            Whether they can; ``False`` where the disk has no room for them, of which a warning is logged.

        Raises:
            ResourceError: the disk is full.
        """
        wanted = np.union1d(rows, np.flatnonzero(self._held))  # all of them: the file may be another one by now
        with one_at_a_time(self.folder), full_disk_answered(self.folder):
            self._make_anew_unless_whole()
            missing = self._missing(wanted)
            if not self._has_room(len(missing)):
                return False
            if len(missing):
                self._keep(compute(missing))
            # As a plain array: a memmap subclass would make every batch one too.
            self._bytes = np.asarray(np.memmap(self._rows_file, np.uint8, "r", shape=self._shape))
        self._held[wanted] = True
        return True

    def clear(self) -> None:
        """Forget all rows, here and on disk."""
        with one_at_a_time(self.folder):
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

    def _make_anew_unless_whole(self) -> None:
        described = self._header_file.exists()
        sizes = {self._rows_file: self._shape[0] * self._shape[1], self._checks_file: 4 * self._shape[0]}
        right = all(file.is_file() and file.stat().st_size == size for file, size in sizes.items())
        if described and right and self._header_file.read_bytes() == self._header.encode():
            return
        if described:
            log.warning("The features in %s are not what they should be: they are computed again.", self.folder)
        self._header_file.unlink(missing_ok=True)
        for file, size in sizes.items():
            file.unlink(missing_ok=True)  # who has mapped the old file keeps it
            with file.open("xb") as new:
                new.truncate(size)  # zeros that take no room yet
        write_text(self._header_file, self._header)  # last: without it the other two count for nothing

    def _missing(self, rows: np.ndarray) -> np.ndarray:
        """Those of ``rows`` that were not computed yet, or do not match their checksums."""
        checks = np.fromfile(self._checks_file, np.uint32)
        features = np.asarray(np.memmap(self._rows_file, np.uint8, "r", shape=self._shape))
        wrong = np.array([self._check(row, features[row]) != checks[row] for row in rows.tolist()], dtype=bool)
        damaged = int((checks[rows[wrong]] != 0).sum())
        if damaged:
            log.warning("%s of the features in %s are damaged: they are computed again.", f"{damaged:,}", self.folder)
        return rows[wrong]

    def _check(self, row: int, content: np.ndarray) -> int:
        place = zlib.crc32(struct.pack("<q", row), self._salt)
        return zlib.crc32(content.data, place) or 1

    def _has_room(self, missing: int) -> bool:
        needed = missing * self._shape[1]
        if shutil.disk_usage(self.folder).free > 1.05 * needed:
            return True
        log.warning(
            "%s has no room for %.1f GB of features: they are computed anew in every epoch, which is slower.",
            self.folder,
            needed / 1e9,
        )
        return False

    def _keep(self, blocks: Iterable[tuple[np.ndarray, Tensor]]) -> None:
        # Written, not mapped: on a full disk a write fails with an error, and a map with a signal.
        with self._rows_file.open("r+b", buffering=0) as lines, self._checks_file.open("r+b", buffering=0) as checks:
            for rows, features in blocks:
                content = features.to(self._dtype).contiguous().view(torch.uint8).numpy()
                for row, line in zip(rows.tolist(), content, strict=True):
                    lines.seek(row * self._shape[1])
                    lines.write(line.data)
                    checks.seek(4 * row)
                    checks.write(struct.pack("<I", self._check(row, line)))
