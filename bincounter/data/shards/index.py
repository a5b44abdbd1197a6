"""The index of shards (``index.csv``), the ``Shards`` layout, and the manifest of shards that stay in a bucket."""

import csv
import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bincounter.data.photos import close_photo_files
from bincounter.data.records import (
    QUARANTINE_FILE,
    SPLITS,
    BinRecord,
    Manifest,
    PhotoFile,
    data_digest,
    read_quarantine,
)
from bincounter.data.s3.address import parse_address
from bincounter.data.s3.bucket import Bucket
from bincounter.data.s3.error_messages import MissingError
from bincounter.data.s3.ranges import limit_requests, open_bucket
from bincounter.errors import DataError
from bincounter.files import write_table, write_text
from bincounter.names import read_cell

INDEX_FILE = "index.csv"
_HEADER = ["id", "count", "group", "split", "width", "height", "content", "shard", "offset", "size"]
_SHARD = re.compile(r"bins-[0-9]{6}\.tar")
_SIDES = {"": None, **{side: side for side in SPLITS}}


class Place(NamedTuple):
    """Location of a photo's bytes.

    Attributes:
        shard: name of the file.
        offset: of the first byte in it.
        size: in bytes.
    """

    shard: str
    offset: int
    size: int


def shard_name(number: int) -> str:
    """File name of a shard; numbers start at 0."""
    return f"bins-{number:06d}.tar"


def is_shard(name: str) -> bool:
    """Return True if a file has the name of a shard."""
    return _SHARD.fullmatch(name) is not None


def is_index(path: Path) -> bool:
    """Return True if a file is an index, of this or of another version."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return _is_header(file.readline(1000).strip().split(","))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return False
    except OSError:  # reading the index then raises the reason
        return True


def hold_same_photos(there: Manifest, manifest: Manifest, kept: np.ndarray, sides: Sequence[str | None]) -> bool:
    """Return True if shards hold exactly these photos in these splits.

    Args:
        there: manifest of the shards.
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
    """Write an index atomically.

    Args:
        path: of the file.
        manifest: of the source.
        kept: ``int[N]``, positions in ``manifest.records`` of the photos that were packed, ascending.
        sides: the split of each of them, or ``None``.
        places: location of each of them.
    """

    def rows() -> Iterator[list[Any]]:
        for position, side, place in zip(kept.tolist(), sides, places, strict=True):
            record, size = manifest.records[position], manifest.sizes[position].tolist()
            content = f"{int(manifest.content[position]):016x}"
            yield [record.id, record.count, record.group, side or "", *size, content, *place]

    write_table(path, _HEADER, rows())


def read_index(
    folder: Path, size_of: Callable[[str], int | None], *, bucket: str | None = None, prefix: Path | None = None
) -> Manifest:
    """Read the manifest of a folder of shards from its index and quarantine list.

    Args:
        folder: of the index and the list.
        size_of: shard name -> its bytes, ``None`` if it is missing.
        bucket: of the shards; ``None`` if they are in ``folder``.
        prefix: of their keys in it.

    Raises:
        DataError: the index is missing, corrupt or of another version; a shard is missing or cut short.
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
    row = _Row(
        read_cell(record_id), int(count), int(group), _SIDES[side], int(width), int(height), int(content, 16), place
    )
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
    raise DataError(f"{path} is not an index of shards: name a folder that `prepare --as shards` has made")


@dataclass(frozen=True)
class Shards:
    """Photos in tar shards, see :mod:`bincounter.data.shards`; their ids are those of the source they were packed from.

    Of the folder only the index and the shards' sizes are read. A photo that does not match the index is detected when
    it is read.
    """

    def manifest(self, root: Path) -> Manifest:
        """Read the manifest of the photos.

        Raises:
            DataError: see :func:`bincounter.data.shards.index.read_index`.
        """
        close_photo_files()

        def size_of(shard: str) -> int | None:
            try:
                return (root / shard).stat().st_size
            except FileNotFoundError:
                return None

        return read_index(root, size_of)


def streamed_manifest(source: str, cache_dir: Path, connections: int) -> Manifest:
    """Read the index of shards in a bucket, and the sizes of the shards there.

    Args:
        source: ``s3://bucket/folder`` that holds shards.
        cache_dir: folder of fetched indexes; an unchanged one is not fetched again.
        connections: most concurrent requests of this process, those for photos included.

    Raises:
        DataError: the shards are missing or damaged; the address or the credentials are wrong.
        ResourceError: the network or the server failed.
    """
    name, prefix = parse_address(source)
    below = f"{prefix}/" if prefix else ""
    limit_requests(connections)
    bucket = open_bucket(name)
    folder = cache_dir / "indexes" / hashlib.sha256(source.encode()).hexdigest()[:16]
    try:
        _update_copy(bucket, below + INDEX_FILE, folder / INDEX_FILE)
    except MissingError as error:
        raise DataError(
            f"data.sync.stream=true reads photos out of shards, and there is no s3://{name}/{below}{INDEX_FILE}: pack "
            "the photos by `bincounter prepare s3://... --as shards`, or set data.sync.stream=false"
        ) from error
    try:
        _update_copy(bucket, below + QUARANTINE_FILE, folder / QUARANTINE_FILE)
    except MissingError:
        (folder / QUARANTINE_FILE).unlink(missing_ok=True)
    sizes = dict(_shards(bucket, below))
    try:
        return read_index(folder, sizes.get, bucket=name, prefix=Path(prefix))
    except DataError as error:  # name the file in the bucket, not its local copy
        raise DataError(str(error).replace(f"{folder}/", f"s3://{name}/{below}")) from error


def _shards(bucket: Bucket, below: str) -> Iterator[tuple[str, int]]:
    """Names and sizes of the shards below a prefix; other objects are not listed to the end."""
    for page in bucket.pages(below, after=f"{below}bins-"):
        for listed in page:
            name = listed.key.removeprefix(below)
            if not name.startswith("bins-"):
                return
            if is_shard(name):
                yield name, listed.size


def _update_copy(bucket: Bucket, key: str, path: Path) -> None:
    """Fetch an object into a file if it has changed."""
    version = path.with_name(f"{path.name}.etag")
    before = version.read_text(encoding="utf-8") if path.exists() and version.exists() else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        stored = bucket.fetch(key, Path(folder, path.name), unless=before)
        if stored is not None:
            Path(folder, path.name).replace(path)
            write_text(version, stored.etag)  # after the file: should it be lost, the file is fetched again
