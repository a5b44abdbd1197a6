"""One audit: photos counted in a stream, records judged, ``audit.csv`` written; a killed audit resumes."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from bincounter.audit.audit_columns import audit_columns
from bincounter.audit.posterior import RecordJudge
from bincounter.audit.stock_records import Stock, StockRecord
from bincounter.data.photo_store import decoder_digest
from bincounter.errors import Interrupted, ResourceError, UserError
from bincounter.files import atomic_write, lock, translate_disk_full
from bincounter.model.answer import position
from bincounter.names import TableWriter, escape_name
from bincounter.progress import track
from bincounter.training.predictor import Prediction

log = logging.getLogger(__name__)

_BATCH = 32  # photos, as of a predictor: a resumed audit puts the same ones into one batch, so that no answer differs


@dataclass(frozen=True)
class Counting:
    """Model that counts the photos of an audit.

    Attributes:
        key: changes with the model.
        judge: of records, by the distributions of this model.
        answers: paths of photos -> a prediction for each, in their order.
        trained_on: ids of the photos that the model was trained on.
        answer: which count is answered, see :mod:`bincounter.model.answer`.
    """

    key: str
    judge: RecordJudge
    answers: Callable[[Iterable[str]], Iterator[Prediction]]
    trained_on: Sequence[str] = ()
    answer: str = "mode"


@dataclass
class Audit:
    """Judged records.

    Attributes:
        stock: the records.
        counts: the support of the model, ascending ``[K]``.
        probabilities: distributions of the model, float ``[N, K]``; NaN without a prediction.
        answer: which count is answered, see :mod:`bincounter.model.answer`.
        record_wrong: probability that the record is wrong, float ``[N]``; NaN if it was not judged.
        direction: ``missing`` or ``extra`` ``[N]``; empty if it was not judged.
        units_off: expected true count minus the recorded one, float ``[N]``; NaN if it was not judged.
        order: rows of the table ``[N]``: judged records by descending ``record_wrong``, then the others.
        uncounted: number of photos that were not counted for a reason outside of them, such as a lack of memory.
    """

    stock: Stock
    counts: Sequence[int]
    probabilities: np.ndarray
    answer: str
    record_wrong: np.ndarray = field(init=False)
    direction: np.ndarray = field(init=False)
    units_off: np.ndarray = field(init=False)
    order: np.ndarray = field(init=False)
    uncounted: int = 0

    def judge(self, judge: RecordJudge) -> None:
        """Judge the records that have a prediction and no reason against it."""
        records = self.stock.records
        at = np.array([row for row, record in enumerate(records) if not record.reason], dtype=int)
        self.record_wrong, self.units_off = np.full((2, len(records)), np.nan)
        self.direction = np.full(len(records), "", dtype="<U7")
        recorded = [int(records[row].expected) for row in at]
        verdicts = judge.for_stock(recorded).judge(self.probabilities[at], recorded)
        self.record_wrong[at], self.direction[at] = verdicts.record_wrong, verdicts.direction
        self.units_off[at] = verdicts.units_off
        self.order = np.argsort(-self.record_wrong, kind="stable")  # NaN last

    @property
    def judged(self) -> np.ndarray:
        """Probabilities of the judged records to be wrong, descending."""
        return self.record_wrong[self.order[: np.count_nonzero(~np.isnan(self.record_wrong))]]

    def count(self, row: int) -> tuple[int, float] | None:
        """Return the answered count and the mean; ``None`` without them."""
        probabilities = self.probabilities[row]
        if np.isnan(probabilities[0]):
            return None
        return self.counts[position(probabilities.tolist(), self.answer)], float(probabilities @ np.array(self.counts))


def run_audit(
    stock: Stock, counting: Counting, output: Path, finish: Callable[[Audit], object] = lambda audit: None
) -> Audit:
    """Count the photos of the records, judge the records, and write the table.

    Predictions are appended to a work file beside the table as they come, and a killed audit by the same model resumes
    there. The file is removed once all is written, unless photos were not counted for a reason outside of them: the
    next audit reads these alone.

    Args:
        stock: records with their photos found; those that are not judged get their reason.
        counting: the model.
        output: path of ``audit.csv``.
        finish: is called once the table is written, to write what belongs to it.

    Raises:
        UserError: another audit writes this table.
        ResourceError: the disk is full, or the model cannot be reached.
        Interrupted: by Ctrl-C.
    """
    counts, records = counting.judge.counts, stock.records
    audit = Audit(stock, counts, np.full((len(records), len(counts)), np.nan), counting.answer)
    wanted = {record.file: row for row, record in enumerate(records) if not record.reason}
    for row in wanted.values():
        if records[row].expected not in counts:
            known = ", ".join(map(str, counts))
            records[row].reason = f"the model does not know the count {records[row].expected}, only {known}"
    work = output.with_name(f"{output.name}.part")
    with translate_disk_full(output.parent), _WorkFile(work, f"{counting.key} {decoder_digest()}").opened() as file:
        left = [photo for photo in wanted if not file.take(photo, audit.probabilities[wanted[photo]])]
        left.sort(key=file.failed.__contains__)  # last, so that batches stay the same
        if len(left) < len(wanted):
            log.info("%s: %d of %d photos were counted before", escape_name(work), len(wanted) - len(left), len(wanted))
        for answer in track(counting.answers(left), "Counting photos", len(left)):
            row = wanted[answer.photo]
            audit.probabilities[row] = file.append(answer, counts)
            audit.uncounted += answer.passing
            if answer.count is None:
                records[row].reason = records[row].reason or answer.error
        audit.judge(counting.judge)
        _write(output, audit)
        finish(audit)
    if not audit.uncounted:
        work.unlink(missing_ok=True)
    return audit


class _WorkFile:
    """Predictions of an audit in progress, a line of JSON each: photo, size, time of change, probabilities.

    A photo that could not be counted has no probabilities, and is read again by a resumed audit. Predictions depend on
    the photo and on the model alone, so that an audit of other records takes them, too.

    Args:
        path: of the file.
        model: changes with the model.

    Attributes:
        failed: photos that could not be counted before.
    """

    def __init__(self, path: Path, model: str) -> None:
        self._path, self._head = path, {"model": model}
        self._known: dict[str, list[Any]] = {}
        self.failed: set[str] = set()
        self._file: IO[bytes]

    @contextmanager
    def opened(self) -> Iterator["_WorkFile"]:
        """Lock and read the file, or begin it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch()
        with self._path.open("r+b") as self._file:
            if not lock(self._file, wait=0):
                raise UserError(f"{self._path} is in use by another audit: wait for it, or name another --output")
            self._file.truncate(self._read())
            self._file.seek(0, os.SEEK_END)
            if not self._file.tell():
                self._write(self._head)
            try:
                yield self
            except KeyboardInterrupt:
                raise Interrupted("Interrupted: run the same command again, and it resumes") from None
            except ResourceError as error:
                raise ResourceError(f"{error}; the same command resumes the audit") from error

    def _read(self) -> int:
        """Read the whole batches of a file of the same model; return the bytes that they take."""
        ends, lines = [], []
        for line in self._file:
            try:
                lines.append(json.loads(line))
            except ValueError:  # the last line of a killed audit
                break
            ends.append(self._file.tell())
        if not lines or lines[0] != self._head:
            if lines:
                log.info("%s is of another model: the audit starts anew", escape_name(self._path))
            return 0
        whole = (len(lines) - 1) // _BATCH * _BATCH
        self._known = {line[0]: line for line in lines[1 : whole + 1]}
        self.failed = {photo for photo, line in self._known.items() if line[3] is None}
        return ends[whole]

    def take(self, photo: str, row: np.ndarray) -> bool:
        """Fill in the probabilities of a photo, if they are known and its file is unchanged."""
        found = self._known.pop(photo, None)
        if found is None or found[3] is None or found[1:3] != _state(photo):
            return False
        row[:] = found[3]
        return True

    def append(self, answer: Prediction, counts: Sequence[int]) -> list[float]:
        """Write the answer for a photo; return its probabilities, NaN for an error."""
        row = [answer.probabilities[count] for count in counts] if answer.count is not None else None
        self._write([answer.photo, *_state(answer.photo), row])
        return row or [np.nan] * len(counts)

    def _write(self, line: Any) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()


def _state(photo: str) -> list[int]:
    try:
        status = Path(photo).stat()
    except OSError:
        return [0, 0]
    return [status.st_size, status.st_mtime_ns]


def _write(path: Path, audit: Audit) -> None:
    """Write ``audit.csv``."""
    with atomic_write(path) as file:
        writer = TableWriter(file)
        writer.writerow([*audit_columns(audit.counts), *audit.stock.carried])
        for row in audit.order:
            record: StockRecord = audit.stock.records[row]
            counted = audit.count(row)
            cells = ["", "", *("" for _ in audit.counts)]
            if counted:
                shares = [f"{share:.6g}" for share in audit.probabilities[row]]
                cells = [str(counted[0]), f"{counted[1]:.4f}", *shares]
            verdict = ["", "", ""]
            if not np.isnan(audit.record_wrong[row]):
                verdict = [f"{audit.record_wrong[row]:.6g}", audit.direction[row], f"{audit.units_off[row]:.4f}"]
            given = [record.bin, record.photo, record.expected]
            writer.writerow([*given, *cells, *verdict, record.reason, *record.carried])
