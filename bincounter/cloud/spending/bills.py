"""What runs took, cost and gained, and their sums."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bincounter.cloud.prices import saving_percent

RUNNING = "still running"


class NoPoint(StrEnum):
    """Why there is no cost per point."""

    HERE = "carried out here, where no price is known"
    UNKNOWN = "its cost is not known yet"
    UNSCORED = "no score"
    NO_GAIN = "not above the majority baseline"


@dataclass(frozen=True)
class Score:
    """Accuracy on one side of the photos.

    Attributes:
        side: ``test`` or ``val``.
        accuracy: 0 to 1.
        majority: accuracy of the majority baseline on the same photos, 0 to 1.
    """

    side: str
    accuracy: float
    majority: float

    @property
    def points(self) -> float:
        """Percentage points above the baseline."""
        return 100 * (self.accuracy - self.majority)


@dataclass(frozen=True)
class Bill:
    """What one training job, or one run on this machine, took and cost.

    Attributes:
        folder: of the run.
        job: name of the training job; ``None`` for a run that was carried out here.
        state: ``completed``, ``failed``, ``stopped``, ``pruned``, :data:`RUNNING`, or another word for what is known.
        training_seconds: of the job, attempts on spot capacity together; of a run that was carried out here, wall time
            since it was last started.
        billable_seconds: of the job; ``None`` where that is not known.
        spot: whether it ran on spot capacity.
        instance_type: such as ``ml.g5.xlarge``; empty where that is not known.
        instance_count: how many of them.
        usd_per_hour: of all instances, on demand.
        price_origin: where that is from, in words.
        rehearsed: whether it was on this machine, so that nothing was paid.
        val: score on the validation photos.
        test: score on the test photos.
        usd_before: what earlier jobs of the same run cost; ``None`` where that is not known.
    """

    folder: Path
    job: str | None
    state: str
    training_seconds: float | None = None
    billable_seconds: float | None = None
    spot: bool = False
    instance_type: str = ""
    instance_count: int = 1
    usd_per_hour: float = 0.0
    price_origin: str = ""
    rehearsed: bool = False
    val: Score | None = None
    test: Score | None = None
    usd_before: float | None = 0.0

    @property
    def usd(self) -> float | None:
        """US dollars for the billable seconds, which nobody paid for a rehearsal; ``None`` where they are not known."""
        return None if self.billable_seconds is None else self.billable_seconds / 3600 * self.usd_per_hour

    @property
    def usd_at_most(self) -> float | None:
        """Of a job that still runs, US dollars that the seconds so far can have cost."""
        if self.state != RUNNING or self.training_seconds is None:
            return None
        return self.training_seconds / 3600 * self.usd_per_hour

    @property
    def saving(self) -> float | None:
        """Percent of the training seconds that spot capacity spared; ``None`` where there was none."""
        if not self.spot or self.training_seconds is None or self.billable_seconds is None:
            return None
        return saving_percent(self.training_seconds, self.billable_seconds)

    @property
    def score(self) -> Score | None:
        """That on the test photos, or else on the validation photos."""
        return self.test or self.val

    @property
    def per_point(self) -> float | NoPoint:
        """US dollars per point, see the package's docstring; or why there is no such figure."""
        if self.job is None:
            return NoPoint.HERE
        known = self.usd is not None and self.usd_before is not None
        return _per_point(self.usd + self.usd_before if known else None, self.score)  # type: ignore[operator]


@dataclass(frozen=True)
class Total:
    """Sums over training jobs: those that were paid, or, if all were rehearsed, those.

    Attributes:
        jobs: how many.
        rehearsed: whether they were rehearsed.
        left_out: rehearsed jobs that are in no sum, since others were paid.
        unknown: jobs whose billable seconds are not known, and are in no sum either.
        training_seconds: of all.
        billable_seconds: of all.
        saving: percent of the training seconds of those on spot capacity; ``None`` where none was.
        usd: US dollars.
        usd_saved: US dollars that those on spot capacity would have cost more on demand.
        runs_here: that were carried out on this machine.
        seconds_here: their wall time.
        best: the run with the best validation accuracy, or test accuracy where a run has no other.
    """

    jobs: int
    rehearsed: bool
    left_out: int
    unknown: int
    training_seconds: float
    billable_seconds: float
    saving: float | None
    usd: float
    usd_saved: float
    runs_here: int
    seconds_here: float
    best: Bill | None

    @property
    def per_point(self) -> float | NoPoint:
        """US dollars per point that the best run gained, see the package's docstring; or why there is none."""
        if not self.jobs:
            return NoPoint.HERE
        return _per_point(None if self.unknown else self.usd, self.best.score if self.best else None)


def add_up(bills: Sequence[Bill]) -> Total:
    """The sums over some bills."""
    jobs = [bill for bill in bills if bill.job is not None]
    here = [bill for bill in bills if bill.job is None]
    paid = [bill for bill in jobs if not bill.rehearsed]
    counted = paid or jobs
    known = [bill for bill in counted if bill.billable_seconds is not None]
    spot = [bill for bill in known if bill.saving is not None]
    trained, billed = _seconds(spot)
    scored = [bill for bill in counted if bill.score is not None]
    all_trained, all_billed = _seconds(known)
    return Total(
        jobs=len(counted),
        rehearsed=bool(jobs) and not paid,
        left_out=len(jobs) - len(counted),
        unknown=len(counted) - len(known),
        training_seconds=all_trained,
        billable_seconds=all_billed,
        saving=saving_percent(trained, billed) if spot else None,
        usd=sum(bill.usd or 0.0 for bill in known),
        usd_saved=sum(
            ((bill.training_seconds or 0.0) - (bill.billable_seconds or 0.0)) / 3600 * bill.usd_per_hour
            for bill in spot
        ),
        runs_here=len(here),
        seconds_here=sum(bill.training_seconds or 0.0 for bill in here),
        best=max(scored, key=_by_validation, default=None),
    )


def _seconds(bills: Sequence[Bill]) -> tuple[float, float]:
    """Training and billable seconds."""
    return sum(bill.training_seconds or 0.0 for bill in bills), sum(bill.billable_seconds or 0.0 for bill in bills)


def _by_validation(bill: Bill) -> float:
    score = bill.val or bill.test
    return score.accuracy if score else -1.0


def _per_point(usd: float | None, score: Score | None) -> float | NoPoint:
    if usd is None:
        return NoPoint.UNKNOWN
    if score is None:
        return NoPoint.UNSCORED
    return usd / score.points if score.points > 0 else NoPoint.NO_GAIN
