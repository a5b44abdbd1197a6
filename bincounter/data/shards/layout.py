"""Shards as a layout: what a scan would find out of each photo stands in the index."""

from dataclasses import dataclass
from pathlib import Path

from bincounter.data.photo_file import forget_open_files
from bincounter.data.records import Manifest
from bincounter.data.shards.index import read_index


@dataclass(frozen=True)
class Shards:
    """Photos in tar shards, see :mod:`bincounter.data.shards`; their ids are those of the source they were packed from.

    Of the folder only the index is read and the shards' sizes are looked at. A photo that is not the one which the
    index means is found out when it is read.
    """

    def manifest(self, root: Path) -> Manifest:
        """Read what is known of the photos.

        Raises:
            DataError: see :func:`bincounter.data.shards.index.read_index`.
        """
        forget_open_files()

        def size_of(shard: str) -> int | None:
            try:
                return (root / shard).stat().st_size
            except FileNotFoundError:
                return None

        return read_index(root, size_of)
