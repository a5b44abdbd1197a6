"""corrections.csv: counts that people gave to photos, one row an answer; the last row of a bin counts.

The columns are ``bin,photo,expected,counted,reviewer,time,undone``. A row with ``undone=yes`` takes an answer back. A
table from elsewhere needs only ``photo`` and ``counted``.
"""

import csv
import errno
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bincounter.data.layouts.base import LARGEST_COUNT
from bincounter.errors import DataError, UserError
from bincounter.files import check_writable, lock, write_text
from bincounter.names import TableWriter, read_cell

HEADER = ["bin", "photo", "expected", "counted", "reviewer", "time", "undone"]
_NEEDED = ("photo", "counted")
_LONGEST = 20  # digits; Python refuses to read thousands
_UNDONE = {"yes": True, "no": False, "": False}


@dataclass(frozen=True, slots=True)
class Correction:
    """One answer of a person, or an answer that is taken back.

    Attributes:
        bin: name of the bin; empty for a photo without a record.
        photo: its photo, as the reviewed table names it.
        expected: items by the record; ``None`` without one.
        counted: items that the person counted.
        reviewer: name of the person.
        time: of the answer, ISO 8601.
        undone: the answer is taken back.
        partial: the table lacks the columns bin or expected, so that the answer is for the records of its photo.
    """

    bin: str
    photo: str
    expected: int | None
    counted: int
    reviewer: str = ""
    time: str = ""
    undone: bool = False
    partial: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """Bin and photo that are answered for."""
        return self.bin, self.photo


def read_corrections(path: Path, key: str) -> list[Correction]:
    """Read all rows of a table of corrections; an incomplete last line, left by a killed process, is dropped.

    Args:
        path: of the table.
        key: the setting or option that names it, for messages.

    Raises:
        DataError: it cannot be read, or is not such a table.
    """
    try:
        return _parse(path.read_bytes(), path)[0]
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{key}={path} cannot be read ({reason}): name a table of corrections") from error


def last_answers(corrections: Iterable[Correction]) -> dict[tuple[str, str], Correction]:
    """Return the answers that count by :attr:`Correction.key`, in the order in which they were given."""
    standing: dict[tuple[str, str], Correction] = {}
    for correction in corrections:
        standing.pop(correction.key, None)
        if not correction.undone:
            standing[correction.key] = correction
    return standing


class CorrectionsLog:
    """A table of corrections that this process alone appends to; each row is on disk when :meth:`append` returns.

    Args:
        path: of the table, created if missing. An incomplete last line is cut off.

    Attributes:
        path: of the table.
        corrections: its rows.

    Raises:
        DataError: the file is not such a table.
        UserError: it cannot be written, or another process appends to it.
    """

    def __init__(self, path: Path) -> None:
        check_writable(path, key="--corrections")
        if not path.exists():
            write_text(path, ",".join(HEADER) + "\n")
        self.path = path
        self._file = path.open("ab+", buffering=0)
        if not lock(self._file, wait=0):  # the table itself, by whatever name; on Windows nobody reads it meanwhile
            self.close()
            raise UserError(
                f"{path} is in use by another review: open the page of that one, or name another file by --corrections"
            )
        try:
            self.corrections = self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> list[Correction]:
        self._file.seek(0)
        data = self._file.read()
        corrections, end, names = _parse(data, self.path)
        if names != HEADER:
            raise DataError(
                f"{self.path} has other columns than {','.join(HEADER)}: name another file by --corrections"
            )
        if end < len(data):
            self._file.truncate(end)
        if not data[:end].endswith(b"\n"):
            self._write(b"\n")
        return corrections

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def append(self, correction: Correction) -> None:
        """Append a row and flush it to the disk.

        Raises:
            OSError: the disk is full or fails; nothing of the row is left in the file.
            UserError: the file was deleted or replaced since it was opened.
        """
        try:
            is_same = os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            is_same = False
        if not is_same:
            raise UserError(f"{self.path} was replaced while it was in use: stop this server and start it again")
        text = io.StringIO()
        expected = "" if correction.expected is None else correction.expected
        undone = "yes" if correction.undone else "no"
        TableWriter(text).writerow(
            [
                correction.bin,
                correction.photo,
                expected,
                correction.counted,
                correction.reviewer,
                correction.time,
                undone,
            ]
        )
        self._write(text.getvalue().encode())
        self.corrections.append(correction)

    def _write(self, data: bytes) -> None:
        before = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(before)
            raise


def _parse(data: bytes, path: Path) -> tuple[list[Correction], int, list[str]]:
    """Parse a table; returns its rows, the number of bytes without an incomplete last line, and its columns."""
    end = len(data)
    while True:
        rows = csv.reader(io.StringIO(_decoded(data[:end], path), newline=""))
        try:
            names = next(rows, [])
            if not set(_NEEDED) <= set(names):
                raise DataError(
                    f"{path} is not a table of corrections, which has the columns {','.join(HEADER)}: name another file"
                )
            lines = [(rows.line_num, cells) for cells in rows if cells]
        except csv.Error as error:
            raise _damaged(path, rows.line_num) from error
        if not data[:end].endswith(b"\n") and names == HEADER and lines and not _is_whole(lines[-1][1]):
            end = data.rfind(b"\n", 0, end) + 1
            continue
        return [_correction(cells, names, path, number) for number, cells in lines], end, names


def _decoded(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":  # a letter that was cut in two
            return data[: error.start].decode("utf-8-sig")
        raise _damaged(path, data.count(b"\n", 0, error.start) + 1) from error


def _is_whole(cells: Sequence[str]) -> bool:
    return len(cells) == len(HEADER) and cells[-1].lower() in ("yes", "no")


def _correction(cells: Sequence[str], names: Sequence[str], path: Path, line: int) -> Correction:
    if len(cells) != len(names):
        raise _damaged(path, line)
    row = dict(zip(names, cells, strict=True))
    undone, photo = _UNDONE.get(row.get("undone", "").lower()), read_cell(row["photo"])
    counted, expected = parse_count(row["counted"]), row.get("expected", "")
    if undone is None or counted is None or (expected and parse_count(expected) is None):
        raise _damaged(path, line)
    return Correction(
        bin=read_cell(row["bin"]) if "bin" in row else photo,  # empty for a photo without a record
        photo=photo,
        expected=parse_count(expected),
        counted=counted,
        reviewer=read_cell(row.get("reviewer", "")),
        time=read_cell(row.get("time", "")),
        undone=undone,
        partial=not {"bin", "expected"} <= row.keys(),
    )


def parse_count(text: str) -> int | None:
    """Parse a number of items; ``None`` if it is not one."""
    is_number = text.isascii() and text.isdecimal() and len(text) <= _LONGEST
    return int(text) if is_number and int(text) <= LARGEST_COUNT else None


def _damaged(path: Path, line: int) -> DataError:
    return DataError(f"{path} is damaged in line {line}: correct or remove that line")
