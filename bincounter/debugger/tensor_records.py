"""Records of ``debugger=tensors``: tensors.csv, losses.csv and counts.csv, written, truncated on resume, read.

Numbers are float32 with nine digits, which restore them bit for bit: rules have the same verdicts on the files as
during the run.
"""

import csv
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from bincounter.debugger.tensor_statistics import STATISTICS
from bincounter.errors import UserError

log = logging.getLogger(__name__)


FOLDER = "debugger"
FILES = {
    "tensors.csv": ("epoch", "step", "kind", "name", "module", *STATISTICS, "update_ratio", "inactive"),
    "losses.csv": ("epoch", "step", "batch_loss", "train_loss", "epoch_loss", "val_loss"),
    "counts.csv": ("epoch", "step", "count", "weight", "trained", "validated", "right"),
}
"""Columns by file; docs/debugger.md describes them."""

VALUES = (*STATISTICS, "update_ratio", "inactive")
KINDS = ("gradient", "weight", "activation")


@dataclass(frozen=True, slots=True)
class Table:
    """Statistics of one kind of tensors in one step.

    Attributes:
        names: names of the tensors ``[N]``.
        modules: class of an activation's module, else empty ``[N]``.
        values: ``float32[N, 10]``, columns :data:`VALUES`; NaN where a column does not apply.
    """

    names: Sequence[str]
    modules: Sequence[str]
    values: np.ndarray

    def column(self, name: str) -> np.ndarray:
        """Return one statistic of all tensors, ``float32[N]``."""
        return self.values[:, VALUES.index(name)]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One recorded optimizer step.

    Attributes:
        epoch: epoch, counted from 0.
        step: number of optimizer steps before it.
        batch_loss: mean loss of its photos, in nats.
        train_loss: mean loss of the photos since the last recorded step, including its own.
        tables: tables by kind; kinds without tensors are missing.
    """

    epoch: int
    step: int
    batch_loss: float
    train_loss: float
    tables: Mapping[str, Table] = field(default_factory=dict)

    def rows(self) -> dict[str, list[str]]:
        """Return its lines by file."""
        place = f"{self.epoch},{self.step}"
        tensors = [
            f"{place},{kind},{_quoted(name)},{module},{_cells(kind, values)}"
            for kind, table in self.tables.items()
            for name, module, values in zip(table.names, table.modules, table.values.tolist(), strict=True)
        ]
        losses = [f"{place},{_number(self.batch_loss)},{_number(self.train_loss)},,"]
        return {"tensors.csv": tensors, "losses.csv": losses}


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """The end of an epoch.

    Attributes:
        epoch: epoch, counted from 0.
        step: its last optimizer step.
        epoch_loss: mean loss of its training photos, in nats.
        val_loss: mean loss of the validation photos, in nats; ``None`` if the epoch was not validated.
        counts: the support ``int[K]``.
        weights: class weights of the loss ``float[K]``.
        trained: photos of each count in training batches since the run began ``int[K]``.
        validated: photos of each count in this validation ``int[K]``.
        right: validated photos that were counted right ``int[K]``.
    """

    epoch: int
    step: int
    epoch_loss: float
    val_loss: float | None
    counts: np.ndarray
    weights: np.ndarray
    trained: np.ndarray
    validated: np.ndarray
    right: np.ndarray

    def rows(self) -> dict[str, list[str]]:
        """Return its lines by file."""
        place = f"{self.epoch},{self.step}"
        validated = "" if self.val_loss is None else _number(self.val_loss)
        columns = (self.counts, self.weights, self.trained, self.validated, self.right)
        counts = [
            f"{place},{count},{_number(weight)},{trained},{seen},{right}"
            for count, weight, trained, seen, right in zip(*(column.tolist() for column in columns), strict=True)
        ]
        return {"losses.csv": [f"{place},,,{_number(self.epoch_loss)},{validated}"], "counts.csv": counts}


Record = StepRecord | EpochRecord


def _number(value: float) -> str:
    return f"{value:.9g}"


def _cells(kind: str, values: list[float]) -> str:
    """Format cells, empty where a column does not apply, unlike NaN."""
    *statistics, ratio, inactive = values
    cells = [_number(value) for value in statistics]
    cells.append(_number(ratio) if kind == "weight" else "")
    cells.append(_number(inactive) if kind == "activation" and not math.isnan(inactive) else "")
    return ",".join(cells)


def _quoted(name: str) -> str:
    return name if not {",", '"', "\n"} & set(name) else '"' + name.replace('"', '""').replace("\n", " ") + '"'


def read_records(folder: Path) -> Iterator[Record]:
    """Yield the records of a run in order.

    An incomplete last line is skipped. Where one file is older than the others, as after an interrupted upload, its
    part of later records is empty.

    Args:
        folder: ``RUN/debugger``.

    Raises:
        UserError: records are missing, or a file is corrupt.
    """
    if not (folder / "losses.csv").is_file():
        raise UserError(f"{folder} has no records: train with debugger=tensors")
    try:
        tensors, counts = _StepReader(folder, "tensors.csv"), _StepReader(folder, "counts.csv")
        for row in _lines(folder, "losses.csv"):
            step = int(row["step"])
            yield _step_record(row, tensors.read(step)) if row["batch_loss"] else _epoch_record(row, counts.read(step))
    except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
        raise UserError(
            f"{folder} has a corrupt file ({error}): restore it from a copy, or train again with debugger=tensors"
        ) from error


class _StepReader:
    """Reader of a file's lines, step by step."""

    def __init__(self, folder: Path, name: str) -> None:
        self._groups = groupby(_lines(folder, name), key=lambda row: int(row["step"]))
        self._next = next(self._groups, None)

    def read(self, step: int) -> list[dict[str, str]]:
        """Return the lines of a step; call it with ascending steps."""
        while self._next is not None and self._next[0] < step:
            self._next = next(self._groups, None)
        return list(self._next[1]) if self._next is not None and self._next[0] == step else []


def _lines(folder: Path, name: str) -> Iterator[dict[str, str]]:
    """Yield the complete lines of a file.

    Raises:
        OSError: the file is missing.
        ValueError: the file has other columns, or a line of another length.
    """
    with (folder / name).open(encoding="utf-8", newline="") as file:
        reader = csv.reader(line for line in file if line.endswith("\n"))
        if next(reader, None) != list(FILES[name]):
            raise ValueError(f"{name} does not begin with the names of its columns")
        for cells in reader:
            if len(cells) != len(FILES[name]):
                raise ValueError(
                    f"line {reader.line_num} of {name} has {len(cells)} cells instead of {len(FILES[name])}"
                )
            yield dict(zip(FILES[name], cells, strict=True))


def _step_record(row: Mapping[str, str], tensors: Iterable[Mapping[str, str]]) -> StepRecord:
    tables = {}
    for kind, rows in groupby(tensors, key=lambda each: each["kind"]):
        of_kind = list(rows)
        values = np.array([[_float(each[name]) for name in VALUES] for each in of_kind], dtype=np.float32)
        tables[kind] = Table([each["name"] for each in of_kind], [each["module"] for each in of_kind], values)
    return StepRecord(int(row["epoch"]), int(row["step"]), _float(row["batch_loss"]), _float(row["train_loss"]), tables)


def _epoch_record(row: Mapping[str, str], counts: Sequence[Mapping[str, str]]) -> EpochRecord:
    return EpochRecord(
        int(row["epoch"]),
        int(row["step"]),
        _float(row["epoch_loss"]),
        _float(row["val_loss"]) if row["val_loss"] else None,
        _whole(counts, "count"),
        np.array([_float(each["weight"]) for each in counts], np.float32),
        _whole(counts, "trained"),
        _whole(counts, "validated"),
        _whole(counts, "right"),
    )


def _whole(counts: Sequence[Mapping[str, str]], name: str) -> np.ndarray:
    return np.array([int(each[name]) for each in counts], int)


def _float(text: str) -> float:
    return float(np.float32(text)) if text else math.nan


_PLACE = re.compile(r"\d+,(\d+),.*\n")  # epoch and step of a complete line
_TAIL = 4 * 2**20  # minimum length of the tails in checkpoints, in bytes


class RecordFiles:
    """Appends records to the files of a folder.

    A checkpoint holds the end position and the tail (last 4 to 8 MB) of each file. On resuming, lines after that
    position, from the lost part of the run, are cut off; missing lines are added from the tail (storage that copies
    a run's folder file by file may restore an older file). A checkpoint written without a recorder has no positions:
    lines of steps before it are kept, later ones cut off.

    Args:
        folder: ``RUN/debugger``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tails = dict.fromkeys(FILES, "")
        self._before = dict.fromkeys(FILES, 0)  # bytes of each file before its tail

    def begin(self, step: int = 0) -> None:
        """Restore the files to the loaded state; without one, keep the header and the lines of earlier steps.

        Args:
            step: number of optimizer steps of the run so far.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, columns in FILES.items():
            head = ",".join(columns) + "\n"
            if not self._tails[name]:
                self._tails[name] = head + _lines_before(step, self.folder / name)
            path, before = self.folder / name, self._before[name]
            with path.open("r+b" if path.exists() else "w+b") as file:
                size = file.seek(0, 2)
                if size < before:
                    log.warning("%s has lost %d bytes of records that precede the checkpoint's.", path, before - size)
                    before = self._before[name] = _end_of_last_line(path, size)
                    if not before:
                        self._tails[name] = head + self._tails[name]
                file.truncate(before)
                file.seek(before)
                file.write(self._tails[name].encode())

    def add(self, record: Record) -> None:
        """Append a record's lines, with one write per file."""
        for name, lines in record.rows().items():
            text = "".join(f"{line}\n" for line in lines)
            if not text:
                continue
            with (self.folder / name).open("ab", buffering=0) as file:
                file.write(text.encode())
            tail = self._tails[name] = self._tails[name] + text
            if len(tail) > 2 * _TAIL:  # twice, so that tails are seldom cut
                cut = tail.index("\n", len(tail) - _TAIL) + 1
                self._before[name] += len(tail[:cut].encode())
                self._tails[name] = tail[cut:]

    def state_dict(self) -> dict[str, Any]:
        """Return the end position and the tail of each file."""
        return {name: {"before": self._before[name], "tail": self._tails[name]} for name in FILES}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore the state of :meth:`state_dict`; :meth:`begin` restores the files."""
        for name in FILES:
            self._before[name], self._tails[name] = state[name]["before"], state[name]["tail"]


def _lines_before(step: int, path: Path) -> str:
    """Return the complete lines of steps before ``step``, without the header."""
    if not step or not path.is_file():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[1:]
    places = (_PLACE.match(line) for line in lines)
    kept = takewhile(lambda place: place is not None and int(place[1]) < step, places)
    return "".join(place.string for place in kept if place)


def _end_of_last_line(path: Path, size: int) -> int:
    return path.read_bytes()[:size].rfind(b"\n") + 1
