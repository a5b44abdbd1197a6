"""Stock records, from a CSV table or ABID's metadata, and the photos of their bins."""

import csv
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from bincounter.audit.audit_columns import ANSWER, RECORD, VERDICT
from bincounter.data.layouts.abid import METADATA, read_metadata
from bincounter.data.layouts.base import LARGEST_COUNT, UnusableInput, find_photos, is_photo_name
from bincounter.data.s3.address import is_remote
from bincounter.data.source import find_source
from bincounter.errors import UserError, closest_match
from bincounter.names import composed, escape_name, spellings
from bincounter.progress import track

_OURS = re.compile(r"p_\d+")
_ADVICE = "write it as CSV in UTF-8, with commas between the columns bin, photo and expected, and a line for each bin"
_COUNT = re.compile(r"([0-9]{1,20})(?:\.0*)?")  # pandas writes a column with gaps as 3.0


@dataclass(slots=True)
class StockRecord:
    """A record of the stock, or a photo without one.

    Attributes:
        bin: name of the bin.
        photo: name of its photo as recorded; once it is found its path below the folder of the photos.
        expected: recorded count, as text if it is not a count.
        reason: cause if the record cannot be judged, else empty.
        carried: cells of the further columns.
        line: in the table; 0 if it was not in one.
        file: path of the photo once it is found, else empty.
    """

    bin: str
    photo: str
    expected: int | str
    reason: str = ""
    carried: Sequence[str] = ()
    line: int = 0
    file: str = ""


@dataclass
class Stock:
    """Records of the stock.

    Attributes:
        records: in their order; photos without a record at the end, once photos are matched.
        carried: names of the further columns.
    """

    records: list[StockRecord] = field(default_factory=list)
    carried: Sequence[str] = ()


def read_stock(path: Path) -> Stock:
    """Read the records of a table, or of a folder with the metadata of the Amazon Bin Image Dataset.

    A line whose count is not one, and a record that contradicts another, are kept with their reason.

    Args:
        path: of a CSV table with the columns ``bin``, ``photo`` and ``expected`` in any order, and any others; or of a
            folder with ``metadata/<id>.json``, or of these files. The photo and the bin of a metadata file have its id.

    Raises:
        UserError: it cannot be read, is not such a table, or has no record.
    """
    stock = _from_metadata(path) if path.is_dir() else _from_table(path)
    if not stock.records:
        raise UserError(f"{escape_name(path)} has no records: {_ADVICE}")
    return stock


def _from_metadata(path: Path) -> Stock:
    folder = path / METADATA if (path / METADATA).is_dir() else path
    files = sorted(file for file in folder.iterdir() if is_photo_name(file.name, frozenset({".json"})))
    if not files:
        raise UserError(
            f"{escape_name(path)} has no metadata/<id>.json: name the folder of the metadata, or a CSV table"
        )
    stock = Stock()
    for file in track(files, "Reading metadata", len(files)):
        try:
            expected: int | str = read_metadata(file)[0]
            reason = ""
        except UnusableInput as error:
            expected, reason = "", str(error)
        stock.records.append(StockRecord(file.stem, file.stem, expected, reason))
    return stock


def _from_table(path: Path) -> Stock:
    named = escape_name(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except OSError as error:
        raise UserError(
            f"--record {named} cannot be read ({(error.strerror or str(error)).lower()}): {_ADVICE}"
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"--record {named} is not UTF-8 in line {line}: save it as CSV UTF-8") from error
    except csv.Error as error:
        raise UserError(f"--record {named} is not a CSV table ({error}): {_ADVICE}") from error
    if not rows:
        raise UserError(f"--record {named} is empty: {_ADVICE}")
    header = [name.strip() for name in _trimmed(rows[0][1], 0)]
    _check_header(named, header)
    records = [_record(line, _trimmed(row, len(header)), header) for line, row in rows[1:]]
    return Stock(records, [name for name in header if name not in RECORD])


def _trimmed(row: list[str], least: int) -> list[str]:
    """Return a line without the empty cells at its end that are beyond the columns, such as Excel writes."""
    while len(row) > least and not row[-1].strip():
        row = row[:-1]
    return row


def _check_header(named: str, header: Sequence[str]) -> None:
    for name in RECORD:
        if name not in header:
            near = closest_match(name, header)
            hint = f" (is it '{escape_name(near)}'?)" if near else ""
            raise UserError(f"--record {named} has no column '{name}' in its first line{hint}: {_ADVICE}")
    twice = next((name for name, times in Counter(header).items() if times > 1), None)
    if twice is not None:
        raise UserError(f"--record {named} has the column '{escape_name(twice)}' twice: remove or rename one")
    ours = next((name for name in header if name in (*ANSWER, *VERDICT) or _OURS.fullmatch(name)), None)
    if ours is not None:
        raise UserError(f"--record {named} has a column '{ours}', which the audit writes itself: rename it")


def _record(line: int, row: list[str], header: Sequence[str]) -> StockRecord:
    cells = dict(zip(header, row + [""] * (len(header) - len(row)), strict=False))
    name, photo, count = (cells.pop(column) for column in RECORD)
    record, count = StockRecord(name, photo, count, carried=list(cells.values()), line=line), count.strip()
    if len(row) > len(header):
        record.reason = f"the line has {len(row)} cells, and the first line {len(header)}"
    elif (found := _COUNT.fullmatch(count)) and int(found[1]) <= LARGEST_COUNT:
        record.expected = int(found[1])
    else:
        record.reason = f"the recorded count is not a whole number from 0 to {LARGEST_COUNT}"
    return record


class PhotoFinder:
    """Photos to look at, found by the names that records have for them.

    Args:
        sources: photos, folders (searched recursively) and ``s3://`` URIs.
        data_dir: folder for local copies of buckets.

    Attributes:
        folder: that holds all of the photos.

    Raises:
        DataError: a source does not exist, or has no photo.
    """

    def __init__(self, sources: Sequence[str], data_dir: Path) -> None:
        self._buckets = data_dir / "s3"
        roots = [find_source(source, data_dir) for source in sources]
        folders = {root.parent if root.is_file() else root for root in roots}
        self.folder = folders.pop() if len(folders) == 1 else Path(os.path.commonpath(map(os.path.abspath, folders)))
        self._names: dict[tuple[str, str], None] = {}  # pairs of a path and a path below a source, each once
        for root in roots:
            for photo in [root] if root.is_file() else find_photos(root):
                below = photo.name if root.is_file() else photo.relative_to(root).as_posix()
                self._names[str(photo), below] = None
        self._photos = dict.fromkeys(path for path, _ in self._names)
        self._indexes: dict[Callable[[str], str], dict[str, list[str]]] = {}

    def match(self, stock: Stock) -> None:
        """Find the photo of each record, and append the photos without one.

        What is not found, and records of one photo that repeat or contradict each other, get their reason.
        """
        first: dict[str, StockRecord] = {}
        for record in stock.records:
            paths = self._find(record.photo)
            if len(paths) == 1:
                record.photo, record.file = self._below(paths[0]), paths[0]
                _compare(first.setdefault(record.file, record), record)
            elif paths:
                record.reason = f"{len(paths)} photos have this name: give its path"
            else:
                record.reason = "no such photo" if record.photo.strip() else "the record names no photo"
        empty = [""] * len(stock.carried)
        stock.records += [
            StockRecord("", self._below(path), "", "the photo has no record", empty, file=path)
            for path in self._photos
            if path not in first
        ]

    def _below(self, path: str) -> str:
        return Path(os.path.relpath(path, self.folder)).as_posix()

    def _find(self, name: str) -> Sequence[str]:
        """Return the paths that a name stands for: a path, its end, or either without the suffix, however written."""
        names = spellings(name)
        if is_remote(name.strip()):  # an object, which has a local copy
            names.append(str(self._buckets / name.strip().partition("://")[2]))
        for each in names:
            if (path := str(Path(each))) in self._photos:
                return (path,)
            key = composed(PurePosixPath(each).as_posix())
            if found := next((paths for form in _FORMS if (paths := self._index(form).get(key))), None):
                return found
        return ()

    def _index(self, form: Callable[[str], str]) -> dict[str, list[str]]:
        """Return the paths by one form of their names; it is made when a record first needs it."""
        if form not in self._indexes:
            paths: defaultdict[str, list[str]] = defaultdict(list)
            for path, key in dict.fromkeys((path, form(below)) for path, below in self._names):
                paths[key].append(path)
            self._indexes[form] = dict(paths)
        return self._indexes[form]


def _without_suffix(name: str) -> str:
    return composed(name).rpartition(".")[0]


def _name(path: str) -> str:
    return composed(path).rpartition("/")[2]


def _stem(path: str) -> str:
    return _without_suffix(_name(path))


_FORMS = (composed, _without_suffix, _name, _stem)


def _compare(first: StockRecord, later: StockRecord) -> None:
    """Set the reason of a record that repeats the first one of its photo, or of both if they differ."""
    if later is first:
        return
    if (first.bin, first.expected) == (later.bin, later.expected):
        later.reason = later.reason or f"the same record as in line {first.line}"
    else:
        later.reason = later.reason or f"line {first.line} has another record of this photo"
        first.reason = first.reason or f"line {later.line} has another record of this photo"
