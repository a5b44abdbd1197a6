"""Queue of bins for reviewers: leases, answers on disk, undo, and what was found against what was expected."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bincounter.data.corrections import HEADER, Correction, CorrectionsLog, last_answers
from bincounter.errors import UserError
from bincounter.files import write_table
from bincounter.names import escape_name
from bincounter.review.audit_table import AuditRow, AuditTable
from bincounter.serving.application.answers import Problem

LEASE = 300.0
"""Seconds for which a bin is shown to no other reviewer, after the page that shows it was last heard of."""


@dataclass(frozen=True, slots=True)
class Reviewer:
    """A person at a page.

    Attributes:
        session: of the page, which holds leases.
        name: for the table.
    """

    session: str
    name: str


def standing_answers(table: AuditTable, corrections: Sequence[Correction]) -> dict[str, Correction]:
    """Return the answer of each bin by row id, unless the bin's record has changed since.

    An answer of a table without bins or records is for all records of its photo.
    """
    rows, by_photo = table.reviewable, defaultdict[str, list[str]](list)
    for id_, row in rows.items():
        by_photo[row.photo].append(id_)
    ids = {row.key: [id_] for id_, row in rows.items()}
    return {
        id_: given
        for key, given in last_answers(corrections).items()
        for id_ in ids.get(key, by_photo[given.photo] if given.partial else ())
        if given.expected == rows[id_].expected or (given.partial and given.expected is None)
    }


def write_wrong_records(path: Path, table: AuditTable, corrections: Sequence[Correction]) -> tuple[int, int]:
    """Write the records that people found to be wrong, in the order of the table, those of a bin and photo each.

    Photos without a record are left out.

    Returns:
        Number of these records, and of answers of bins or records that the table does not have.
    """
    answers = standing_answers(table, corrections)
    found = [(row, answers[row.id]) for row in table.lines if row.id in answers]
    wrong = [(row, answer) for row, answer in found if row.is_wrong(answer.counted)]
    rows = ((*row.key, row.record, given.counted, given.reviewer, given.time) for row, given in wrong)
    write_table(path, HEADER[:-1], rows)
    return len(wrong), len(set(last_answers(corrections).values()) - set(answers.values()))


class ReviewQueue:
    """Bins of an audited table, each given to one reviewer at a time.

    Args:
        table: the bins, in the order in which they are shown; those without a photo are left out.
        log: of the answers; bins that it holds are done, if they were recorded as they are now.
        clock: of the leases, seconds.

    Attributes:
        outdated: number of bins whose answer in the log is of another record, such as that of an earlier audit.
    """

    def __init__(self, table: AuditTable, log: CorrectionsLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._rows, self._log, self._clock = table.reviewable, log, clock
        self._answers = standing_answers(table, log.corrections)
        keys = {row.key for row in self._rows.values()}
        self.outdated = len(keys & last_answers(log.corrections).keys()) - len(self._answers)
        # Answers that can be taken back; those before a restart belong to the reviewer of that name.
        self._given = {id_: Reviewer("", given.reviewer) for id_, given in self._answers.items()}
        self._open = dict.fromkeys(id_ for id_ in self._rows if id_ not in self._answers)
        self._leases: dict[str, tuple[str, float]] = {}

    @property
    def path(self) -> Path:
        """The table of answers."""
        return self._log.path

    def row(self, id_: str) -> AuditRow | None:
        """Return the row of an id; ``None`` if no bin with a photo has it."""
        return self._rows.get(id_)

    def next(self, reviewer: Reviewer) -> str | None:
        """Lease the bin that the session has already, else the next that nobody has; ``None`` if none is left."""
        self._drop_ended()
        held = (id_ for id_, (session, _) in self._leases.items() if session == reviewer.session)
        found = next(held, None) or next((id_ for id_ in self._open if id_ not in self._leases), None)
        if found is not None:
            self._lease(found, reviewer)
        return found

    def answer(self, reviewer: Reviewer, id_: str, counted: int) -> None:
        """Write the count of a bin to the disk; the same count again, whose reply was lost, is taken as that.

        Raises:
            Problem: 404 there is no such bin; 409 it is answered already; 500 the answer could not be written.
        """
        row = self._known(id_)
        if other := self._answers.get(id_):
            if other.counted == counted and self._is_own(id_, reviewer):
                return
            named = escape_name(row.bin or row.photo)
            by = f" by {escape_name(other.reviewer)}" if other.reviewer else ""
            raise Problem(409, f"Bin {named} is answered already, {other.counted}{by}: take the next.")
        self._answers[id_] = self._write(row, reviewer, counted)
        self._given[id_] = reviewer
        self._open.pop(id_, None)
        self._leases.pop(id_, None)

    def renew(self, reviewer: Reviewer, id_: str) -> bool:
        """Keep a bin that is on screen for its session; return False if it is done or another has it by now.

        Raises:
            Problem: 404 there is no such bin.
        """
        self._known(id_)
        self._drop_ended()
        if is_free := self._is_free(id_, reviewer):
            self._lease(id_, reviewer)
        return is_free

    def skip(self, reviewer: Reviewer, id_: str) -> None:
        """Show a bin again after all others.

        Raises:
            Problem: 404 there is no such bin.
        """
        self._known(id_)
        if self._is_free(id_, reviewer):
            self._leases.pop(id_, None)
            self._open.pop(id_)
            self._open[id_] = None

    def undo(self, reviewer: Reviewer) -> None:
        """Take back the last answer of a reviewer, and lease its bin to them.

        Raises:
            Problem: 409 there is none; 500 it could not be written.
        """
        id_ = next((id_ for id_ in reversed(self._given) if self._is_own(id_, reviewer)), None)
        if id_ is None:
            raise Problem(409, "There is no answer of yours to take back; count this bin.")
        self._write(self._rows[id_], reviewer, self._answers[id_].counted, undone=True)
        del self._given[id_], self._answers[id_]
        self._open = {id_: None, **self._open}
        self._leases = {other: lease for other, lease in self._leases.items() if lease[0] != reviewer.session}
        self._lease(id_, reviewer)

    def progress(self) -> dict[str, float]:
        """Return what was done, what was found, and what the audit expected of the bins that are done."""
        self._drop_ended()
        done = [(self._rows[id_], answer.counted) for id_, answer in self._answers.items()]
        judged = [(row, counted) for row, counted in done if row.record_wrong is not None]
        off = [counted - row.expected for row, counted in done if row.expected is not None]
        return {
            "done": len(done),
            "bins": len(self._rows),
            "leased": len(self._leases),
            "judged": len(judged),
            "wrong": sum(row.is_wrong(counted) for row, counted in done),
            "wrong_judged": sum(row.is_wrong(counted) for row, counted in judged),
            "wrong_expected": sum(row.record_wrong or 0.0 for row, _ in judged),
            "missing": -sum(units for units in off if units < 0),
            "extra": sum(units for units in off if units > 0),
        }

    def _is_free(self, id_: str, reviewer: Reviewer) -> bool:
        """Return True if the bin is not done, and no other session has it."""
        return id_ in self._open and self._leases.get(id_, (reviewer.session, 0))[0] == reviewer.session

    def _is_own(self, id_: str, reviewer: Reviewer) -> bool:
        by = self._given[id_]
        return by.session == reviewer.session or (not by.session and by.name == reviewer.name)

    def _known(self, id_: str) -> AuditRow:
        if id_ not in self._rows:
            raise Problem(404, "The table has no such bin; reload the page.")
        return self._rows[id_]

    def _lease(self, id_: str, reviewer: Reviewer) -> None:
        self._leases[id_] = reviewer.session, self._clock() + LEASE

    def _drop_ended(self) -> None:
        now = self._clock()
        self._leases = {id_: lease for id_, lease in self._leases.items() if lease[1] > now}

    def _write(self, row: AuditRow, reviewer: Reviewer, counted: int, *, undone: bool = False) -> Correction:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        correction = Correction(row.bin, row.photo, row.expected, counted, reviewer.name, now, undone)
        try:
            self._log.append(correction)
        except (OSError, UserError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise Problem(500, f"The answer is not saved ({reason}); remedy that, and answer again.") from error
        return correction
