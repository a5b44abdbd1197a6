"""What is known of photos before they are read: ``PhotoFile``, ``BinRecord``, ``Manifest``; quarantine.csv."""

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bincounter.errors import DataError
from bincounter.files import replacing

SPLITS = ("train", "validation", "test")

QUARANTINE_FILE = "quarantine.csv"
_HEADER = ["path", "reason"]


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


@dataclass(frozen=True, slots=True)
class BinRecord:
    """One readable photo with its label.

    Attributes:
        id: relative path without its suffix's meaning being lost (bin folders: ``3/photo.jpg``), file stem for ABID.
        file: where its bytes lie.
        count: items in the bin.
        group: number of the near-copy group the photo belongs to; photos of one group never straddle a split.
    """

    id: str
    file: PhotoFile
    count: int
    group: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """One input that is not used, and why.

    Attributes:
        path: the file, relative to the root of its source where it lies under it.
        reason: one clause in plain words, such as ``not an image`` or ``no metadata file``.
    """

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """One photo a layout lists, before anyone has opened it.

    Attributes:
        id: see :class:`BinRecord`.
        file: where its bytes lie.
        count: the label its layout gives it.
        items: identifiers of the things in the bin (ASINs) where the layout knows them, else ``None``.
        group: number of the near-copy group where the source says it, else ``None``.
        split: ``train``, ``validation`` or ``test`` where the layout fixes it, else ``None``.
    """

    id: str
    file: PhotoFile
    count: int
    items: frozenset[str] | None = None
    group: int | None = None
    split: str | None = None


@dataclass(slots=True)
class Listing:
    """What a layout finds under a root: candidates to open, and what it refuses outright."""

    candidates: list[Candidate] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Every readable photo of a data set, all other inputs with their reasons, and what identifies the set.

    Attributes:
        root: the local folder the photos lie under.
        records: readable photos inside and outside the wanted counts, sorted by id.
        given_splits: for each record the split its layout fixes, or ``None``.
        sizes: ``int32[N, 2]``, width and height of each photo in pixels, as stored in the file.
        content: ``uint64[N]``, a hash of each file's bytes.
        refusals: the quarantine list, sorted by path.
        digest: hexadecimal name of the data: ids, counts, contents and groups; the same wherever the photos lie.
    """

    root: Path
    records: tuple[BinRecord, ...]
    given_splits: tuple[str | None, ...]
    sizes: np.ndarray
    content: np.ndarray
    refusals: tuple[Refusal, ...]
    digest: str


def data_digest(records: Sequence[BinRecord], content: np.ndarray) -> str:
    """Name a data set by its ids, counts, contents and groups, in 16 hexadecimal digits; see :class:`Manifest`."""
    digest = hashlib.sha256()
    for record, hashed in zip(records, content.tolist(), strict=True):
        digest.update(f"{record.id}\0{record.count}\0{hashed}\0{record.group}\n".encode())
    return digest.hexdigest()[:16]


def write_quarantine(path: Path, refusals: Iterable[Refusal]) -> None:
    """Write refusals as a table of ``path,reason``, whole or not at all."""
    with replacing(path) as file:
        # In quotes, since Python before 3.13 leaves them out round a "\r", which then cannot be read back.
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(_HEADER)
        writer.writerows((refusal.path, refusal.reason) for refusal in refusals)


def read_quarantine(path: Path) -> list[Refusal]:
    """Read what :func:`write_quarantine` wrote.

    Raises:
        DataError: the file is missing or is no such table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            if next(lines, None) != _HEADER:
                raise ValueError
            return [Refusal(name, reason) for name, reason in lines]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} is no table of {','.join(_HEADER)}: bring it back as it was, or delete it") from error
