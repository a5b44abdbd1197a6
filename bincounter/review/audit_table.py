"""Reader of audit.csv: bins with their records, the model's distributions, and the probability of a wrong record."""

import csv
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bincounter.audit.audit_columns import VERDICT, audit_columns
from bincounter.data.corrections import parse_count
from bincounter.errors import DataError
from bincounter.names import read_cell

_PROBABILITY = re.compile(r"p_([0-9]{1,6})")


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One bin of an audited table.

    Attributes:
        bin: its name.
        photo: path of its photo below the folder of photos; empty without one.
        record: the record as it is written; empty without one.
        expected: items by the record; ``None`` if it is not a whole number, and without one.
        predicted: answered count; ``None`` if the photo was not counted.
        expected_count: mean of the model's distribution; ``None`` likewise.
        probabilities: of the counts of :attr:`AuditTable.counts`; empty likewise.
        record_wrong: probability that the record is wrong; ``None`` if the bin was not judged.
        direction: ``missing`` or ``extra`` items, the likely error; empty likewise.
        units_off: expected number of items by which the record is off; ``None`` likewise.
        reason: why the bin was not judged; empty if it was.
        notes: further columns by name, without empty cells.
    """

    bin: str
    photo: str
    record: str
    expected: int | None
    predicted: int | None
    expected_count: float | None
    probabilities: tuple[float, ...]
    record_wrong: float | None
    direction: str
    units_off: float | None
    reason: str
    notes: Mapping[str, str]

    @property
    def key(self) -> tuple[str, str]:
        """Name of the bin and its photo, as in :class:`bincounter.data.corrections.Correction`."""
        return self.bin, self.photo

    def is_wrong(self, counted: int) -> bool:
        """Return True if there is a record, and it is not this count."""
        return bool(self.record) and self.expected != counted

    @property
    def id(self) -> str:
        """Name of the row in addresses; the same for the same bin and photo."""
        return hashlib.blake2b("\0".join(self.key).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


@dataclass(frozen=True)
class AuditTable:
    """An audited table.

    Attributes:
        path: its file.
        counts: that the model knows, ascending.
        lines: in the order of the file.
    """

    path: Path
    counts: tuple[int, ...]
    lines: Sequence[AuditRow]

    @cached_property
    def rows(self) -> dict[str, AuditRow]:
        """Lines by row id; of those with the same bin and photo the first."""
        rows: dict[str, AuditRow] = {}
        for row in self.lines:
            rows.setdefault(row.id, row)
        return rows

    @property
    def reviewable(self) -> dict[str, AuditRow]:
        """Rows with a photo."""
        return {id_: row for id_, row in self.rows.items() if row.photo}


def read_audit(path: Path) -> AuditTable:
    """Read an audited table.

    Raises:
        DataError: the file cannot be read or is not such a table.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            names = next(lines, [])
            counts = [int(found[1]) for name in names if (found := _PROBABILITY.fullmatch(name))]
            expected = audit_columns(counts)
            if names[: len(expected)] != expected or counts != sorted(set(counts)):
                raise DataError(
                    f"{path} is not a table of `bincounter audit`, whose columns are bin,photo,expected,predicted,"
                    "expected_count,p_0,...,record_wrong,direction,units_off,reason: name an audit.csv"
                )
            rows = [_row(cells, names, len(expected)) for cells in lines if cells]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): name the audit.csv of an audit") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: save it as CSV in UTF-8, or make it again") from error
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path} is damaged in line {lines.line_num}: correct that line, or make it again") from error
    if not rows:
        raise DataError(f"{path} lists no bin: name the audit.csv of an audit")
    return AuditTable(path, tuple(counts), rows)


def _row(cells: Sequence[str], names: Sequence[str], known: int) -> AuditRow:
    """Parse a row; after the ``known`` columns come notes."""
    if len(cells) != len(names):
        raise ValueError
    bin_, photo, expected, predicted, mean, *shares = cells[: known - len(VERDICT)]
    wrong, direction, off, reason = cells[known - len(VERDICT) : known]
    record = read_cell(expected).strip()
    row = AuditRow(
        bin=read_cell(bin_),
        photo=read_cell(photo),
        record=record,
        expected=parse_count(record),
        predicted=parse_count(predicted),
        expected_count=_number(mean),
        probabilities=tuple(map(float, shares)) if all(shares) else (),
        record_wrong=None if reason else _number(wrong),
        direction=read_cell(direction),
        units_off=_number(off),
        reason=read_cell(reason),
        notes={
            read_cell(name): read_cell(cell) for name, cell in zip(names[known:], cells[known:], strict=True) if cell
        },
    )
    incomplete = not reason and (row.expected is None or row.record_wrong is None)
    if incomplete or not all(0 <= share <= 1 for share in (*row.probabilities, row.record_wrong or 0.0)):
        raise ValueError
    return row


def _number(text: str) -> float | None:
    if not text:
        return None
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number
