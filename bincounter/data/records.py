"""Records of photos and of rejected inputs: ``PhotoFile``, ``BinRecord``, ``Manifest``; quarantine.csv."""

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bincounter.errors import DataError
from bincounter.files import write_table
from bincounter.names import read_cell

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
        """The file or object, with the offset if it holds more than the photo."""
        file = f"s3://{self.bucket}/{self.path}" if self.bucket else str(self.path)
        return file if self.size is None else f"{file} at byte {self.offset}"

    def __reduce__(self) -> tuple[type["PhotoFile"], tuple[Path, int, int | None, str | None]]:
        # Takes half the time of the default; each streaming worker receives half a million of them.
        return PhotoFile, (self.path, self.offset, self.size, self.bucket)


@dataclass(frozen=True, slots=True)
class BinRecord:
    """One readable photo with its label.

    Attributes:
        id: relative path (bin folders: ``3/photo.jpg``), or file stem for ABID.
        file: location of its bytes.
        count: items in the bin.
        group: number of the near-copy group the photo belongs to; photos of one group never straddle a split.
    """

    id: str
    file: PhotoFile
    count: int
    group: int


@dataclass(frozen=True, slots=True)
class RejectedInput:
    """One rejected input, and the reason.

    Attributes:
        path: the file, relative to the root of its source if it is below it.
        reason: one clause in plain words, such as ``not an image`` or ``no metadata file``.
        passing: the cause is outside the input (no permission, no memory): the next run tries it again.
    """

    path: str
    reason: str
    passing: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """One photo that a layout lists, before it is opened.

    Attributes:
        id: see :class:`BinRecord`.
        file: location of its bytes.
        count: the label its layout gives it.
        items: identifiers of the items in the bin (ASINs); ``None`` if the layout does not know them.
        group: number of the near-copy group; ``None`` if the source does not give it.
        split: ``train``, ``validation`` or ``test``; ``None`` if the layout does not fix it.
    """

    id: str
    file: PhotoFile
    count: int
    items: frozenset[str] | None = None
    group: int | None = None
    split: str | None = None


@dataclass(slots=True)
class Listing:
    """Photos that a layout finds under a root, and the inputs that it rejects."""

    candidates: list[Candidate] = field(default_factory=list)
    refusals: list[RejectedInput] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Manifest:
    """All readable photos of a data set, all rejected inputs with their reasons, and the digest of the set.

    Attributes:
        root: local folder of the photos.
        records: readable photos inside and outside the wanted counts, sorted by id.
        given_splits: for each record the split its layout fixes, or ``None``.
        sizes: ``int32[N, 2]``, width and height of each photo in pixels, as stored in the file.
        content: ``uint64[N]``, a hash of each file's bytes.
        refusals: the quarantine list, sorted by path.
        digest: hexadecimal name of the data: ids, counts, contents and groups; the same wherever the photos are.
        corrected: photos with another count than their source gives, by ``data.corrections``; ``None`` without it.
    """

    root: Path
    records: tuple[BinRecord, ...]
    given_splits: tuple[str | None, ...]
    sizes: np.ndarray
    content: np.ndarray
    refusals: tuple[RejectedInput, ...]
    digest: str
    corrected: int | None = None

    @property
    def has_passing_refusals(self) -> bool:
        """True if some rejected inputs may be readable in the next run."""
        return any(refusal.passing for refusal in self.refusals)


def data_digest(records: Sequence[BinRecord], content: np.ndarray) -> str:
    """Name a data set by its ids, counts, contents and groups, in 16 hexadecimal digits; see :class:`Manifest`."""
    digest = hashlib.sha256()
    for record, hashed in zip(records, content.tolist(), strict=True):
        digest.update(f"{record.id}\0{record.count}\0{hashed}\0{record.group}\n".encode())
    return digest.hexdigest()[:16]


def write_quarantine(path: Path, refusals: Iterable[RejectedInput]) -> None:
    """Write rejected inputs as a table of ``path,reason``, atomically."""
    write_table(path, _HEADER, ((refusal.path, refusal.reason) for refusal in refusals))


def lists_usable_inputs(path: Path, manifest: Manifest) -> bool:
    """Return True if a quarantine list has inputs that are no longer rejected, such as files that became readable."""
    rejected = {refusal.path for refusal in manifest.refusals}
    return path.exists() and any(refusal.path not in rejected for refusal in read_quarantine(path))


def read_quarantine(path: Path) -> list[RejectedInput]:
    """Read a table of :func:`write_quarantine`.

    Raises:
        DataError: the file is missing or is not such a table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            if next(lines, None) != _HEADER:
                raise ValueError
            return [RejectedInput(read_cell(name), read_cell(reason)) for name, reason in lines]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path} is not a table of {','.join(_HEADER)}: bring it back as it was, or delete it"
        ) from error
