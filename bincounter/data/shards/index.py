"""``index.csv``: a line per photo, in order of id, with what is known of it and where its bytes lie."""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bincounter.data.photo_file import PhotoFile
from bincounter.data.quarantine import QUARANTINE_FILE, read_quarantine
from bincounter.data.records import BinRecord, Manifest, data_digest
from bincounter.data.splits import SPLITS
from bincounter.errors import DataError
from bincounter.files import replacing

INDEX_FILE = "index.csv"
_HEADER = ["id", "count", "group", "split", "width", "height", "content", "shard", "offset", "size"]
_SHARD = re.compile(r"bins-[0-9]{6}\.tar")
_CONTROL = re.compile(r"[\x00-\x1f]")
_SIDES = {"": None, **{side: side for side in SPLITS}}


class Place(NamedTuple):
    """Where a photo's bytes lie.

    Attributes:
        shard: name of the file.
        offset: of the first byte in it.
        size: in bytes.
    """

    shard: str
    offset: int
    size: int


def shard_name(number: int) -> str:
    """Name the shards, from 0."""
    return f"bins-{number:06d}.tar"


def is_shard(name: str) -> bool:
    """Whether a file is called like a shard."""
    return _SHARD.fullmatch(name) is not None


def is_index(path: Path) -> bool:
    """Whether a file is an index, of this or of another version."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return _is_header(file.readline(1000).strip().split(","))
    except (OSError, ValueError):
        return False


def are_shards_of(there: Manifest, manifest: Manifest, kept: np.ndarray, sides: Sequence[str | None]) -> bool:
    """Whether shards hold exactly these photos, divided so.

    Args:
        there: what the shards' index tells.
        manifest: of the source.
        kept: ``int[N]``, positions in ``manifest.records`` of the photos meant.
        sides: the side of each of them, or ``None``.
    """
    ours = [manifest.records[i] for i in kept]
    return (
        [(record.id, record.count, record.group) for record in there.records]
        == [(record.id, record.count, record.group) for record in ours]
        and list(there.given_splits) == list(sides)
        and np.array_equal(there.content, manifest.content[kept])
    )


def write_index(
    path: Path, manifest: Manifest, kept: np.ndarray, sides: Sequence[str | None], places: Sequence[Place]
) -> None:
    """Write an index, whole or not at all.

    Args:
        path: of the file.
        manifest: what is known of the photos.
        kept: ``int[N]``, positions in ``manifest.records`` of the photos that were packed, ascending.
        sides: the split of each of them, or ``None``.
        places: where each of them lies.
    """
    with replacing(path) as file:
        # An id with a line break is read back only in quotes, which Python before 3.13 leaves out round "\r".
        plain, quoted = (
            csv.writer(file, lineterminator="\n", quoting=quoting) for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
        )
        plain.writerow(_HEADER)
        for position, side, place in zip(kept.tolist(), sides, places, strict=True):
            record, size = manifest.records[position], manifest.sizes[position].tolist()
            content = f"{int(manifest.content[position]):016x}"
            writer = quoted if _CONTROL.search(record.id) else plain
            writer.writerow([record.id, record.count, record.group, side or "", *size, content, *place])


def read_index(
    folder: Path, size_of: Callable[[str], int | None], *, bucket: str | None = None, prefix: Path | None = None
) -> Manifest:
    """Read the manifest of a folder of shards off its index, and what was refused off the list beside it.

    Args:
        folder: that holds both.
        size_of: gives the bytes of a shard, ``None`` for one that is missing.
        bucket: that holds the shards, where they are not in ``folder``.
        prefix: of their keys in it.

    Raises:
        DataError: there is no index, it is none, or it is of another version; a shard is missing or cut short.
    """
    where = folder if bucket is None else f"s3://{bucket}/{prefix}"
    records, sides, sizes, content = [], [], [], []
    ends: dict[str, int] = {}
    paths: dict[str, Path] = {}  # one object per shard, not per photo
    for row in _rows(folder / INDEX_FILE):
        shard, offset, size = row.place
        path = paths.get(shard) or paths.setdefault(shard, (prefix or folder) / shard)
        records.append(BinRecord(row.id, PhotoFile(path, offset, size, bucket), row.count, row.group))
        sides.append(row.side)
        sizes.append((row.width, row.height))
        content.append(row.content)
        ends[shard] = max(ends.get(shard, 0), offset + size)
    for shard, end in ends.items():
        there = size_of(shard)
        if there is None:
            raise DataError(f"{where}/{shard} is missing: bring it back, or pack the photos again")
        if there < end:
            raise DataError(
                f"{where}/{shard} is cut short, to {there:,} of at least {end:,} bytes: copy it again, or pack the "
                "photos again"
            )
    hashes = np.array(content, np.uint64)
    refused = folder / QUARANTINE_FILE
    return Manifest(
        root=folder,
        records=tuple(records),
        given_splits=tuple(sides),
        sizes=np.array(sizes, np.int32),
        content=hashes,
        refusals=tuple(read_quarantine(refused)) if refused.exists() else (),
        digest=data_digest(records, hashes),
    )


@dataclass(slots=True)
class _Row:
    id: str
    count: int
    group: int
    side: str | None
    width: int
    height: int
    content: int
    place: Place


def _rows(path: Path) -> Iterator[_Row]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            _check_header(path, next(lines, []))
            before = ""
            for line in lines:
                row = _row(line)
                if row.id <= before:
                    raise ValueError
                before = row.id
                yield row
    except (KeyError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path} is damaged in line {lines.line_num}: bring it back as it was, or pack the photos again"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): name the folder that holds the shards") from error
    if not before:
        raise DataError(f"{path} lists no photo: bring it back as it was, or pack the photos again")


def _row(line: list[str]) -> _Row:
    record_id, count, group, side, width, height, content, shard, offset, size = line
    place = Place(shard, int(offset), int(size))
    row = _Row(record_id, int(count), int(group), _SIDES[side], int(width), int(height), int(content, 16), place)
    small = row.count, row.group, row.width, row.height
    if min(*small, row.content, *place[1:]) < 0 or max(small) >= 2**31 or len(content) != 16 or not is_shard(shard):
        raise ValueError
    return row


def _is_header(names: list[str]) -> bool:
    return names[:3] == _HEADER[:3] and "shard" in names


def _check_header(path: Path, names: list[str]) -> None:
    if names == _HEADER:
        return
    if _is_header(names):
        raise DataError(f"{path} is of another version of bincounter: use that one, or pack the photos again")
    raise DataError(f"{path} is no index of shards: name a folder that `prepare --as shards` has made")
