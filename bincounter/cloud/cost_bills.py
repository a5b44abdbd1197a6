"""Bills of runs, sweeps and endpoints, and their sums. The fields are the keys of ``bincounter cost --json``."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from bincounter.cloud.instances import saving_percent
from bincounter.cloud.jobs import JOB_RECORD, Job
from bincounter.errors import UserError

RUNNING = "still running"
NO_SCORE, NO_GAIN = "no score", "not above the majority baseline"
_STATES = {"Completed": "completed", "Failed": "failed", "Stopped": "stopped"}
SCORE_KEYS = ("scored_on", "accuracy_percent", "majority_accuracy_percent", "points")


@dataclass(frozen=True, kw_only=True)
class Bill:
    """Common part of all bills of runs.

    Attributes:
        folder: of the run.
        job: name of the training job; ``None`` for a run on this machine.
        carried_out: ``here`` or ``sagemaker``.
        state: ``completed``, ``failed``, ``stopped``, ``pruned``, :data:`RUNNING`, or another word.
        rehearsed: whether the job was on this machine, so that nothing was paid.
        scored_on: ``test``, or ``val`` where there is no score on the test photos; ``None`` without any.
        accuracy_percent: on those photos.
        majority_accuracy_percent: of the majority baseline on the same photos.
        points: percentage points above that baseline.
    """

    folder: str
    job: str | None = None
    carried_out: str = "here"
    state: str
    rehearsed: bool = False
    scored_on: str | None = None
    accuracy_percent: float | None = None
    majority_accuracy_percent: float | None = None
    points: float | None = None
    _rank: float | None = None  # accuracy that the best of a sweep is chosen by: on the validation photos, if possible


@dataclass(frozen=True, kw_only=True)
class LocalBill(Bill):
    """Run on this machine.

    Attributes:
        wall_seconds: since it was last started.
    """

    wall_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class JobBill(Bill):
    """Training job.

    Attributes:
        instance_type: such as ``ml.g5.xlarge``.
        instance_count: how many of them.
        training_seconds: attempts on spot capacity together.
        billable_seconds: as SageMaker bills them.
        spot: whether it ran on spot capacity.
        spot_saving_percent: of the training seconds.
        usd_per_hour: of all instances, on demand.
        price_origin: source of the price.
        cost_usd: for the billable seconds; 0 for a rehearsal.
        rehearsed_cost_usd: cost that a rehearsal would have had.
        cost_so_far_at_most_usd: of a job that still runs.
        usd_per_point: for each point, earlier jobs of the run included.
        rehearsed_usd_per_point: the same for a rehearsal.
        usd_per_point_missing: reason for a missing figure.
    """

    carried_out: str = "sagemaker"
    instance_type: str | None
    instance_count: int | None
    training_seconds: float | None
    billable_seconds: float | None
    spot: bool
    spot_saving_percent: float | None
    usd_per_hour: float
    price_origin: str
    cost_usd: float | None
    rehearsed_cost_usd: float | None
    cost_so_far_at_most_usd: float | None
    usd_per_point: float | None
    rehearsed_usd_per_point: float | None
    usd_per_point_missing: str | None

    @property
    def usd(self) -> float | None:
        """US dollars for the billable seconds; for a rehearsal, the cost that it would have had."""
        return self.rehearsed_cost_usd if self.rehearsed else self.cost_usd


@dataclass(frozen=True)
class EndpointBill:
    """Endpoint while it served one archive.

    Attributes:
        folder: of the archive.
        name: of the endpoint.
        region: AWS region of the endpoint.
        kind: ``realtime``, ``serverless`` or ``async``.
        capacity: such as ``1 x ml.m5.xlarge``.
        state: AWS's, such as ``InService``; ``deleted``, ``replaced``, ``failed``, ``gone`` or ``not known``.
        rehearsed: whether it was on this machine, so that nothing was paid.
        since: when it began to serve the archive, in ISO 8601.
        until: when it ended, where that is known.
        usd_per_hour: billed now; ``None`` where that is not known.
        price_origin: source of the price.
        cost_usd: by now, without requests to a serverless one; 0 for a rehearsal.
        rehearsed_cost_usd: cost that a rehearsal would have had.
        cost_is_at_most: whether the cost is an upper bound, since it scales or may have ended before.
        requests_come_on_top: whether requests are billed beside the time.
    """

    folder: str
    name: str
    region: str
    kind: str
    capacity: str
    state: str
    rehearsed: bool
    since: str
    until: str | None
    usd_per_hour: float | None
    price_origin: str
    cost_usd: float | None
    rehearsed_cost_usd: float | None
    cost_is_at_most: bool
    requests_come_on_top: bool


@dataclass
class RunBills:
    """Group of runs with one sum: a sweep's, a tuning job's, a folder's, or those that were named one by one.

    Attributes:
        kind: ``runs``, ``sweep``, ``tuning job``, or ``folder`` of runs that do not belong together.
        folder: of the sweep or the runs; ``None`` for ``runs``.
        runs: their bills, in the order of their numbers.
        total: see :func:`add_up`.
    """

    kind: str
    folder: str | None
    runs: list[Bill] = field(default_factory=list)
    total: dict[str, Any] = field(default_factory=dict)


@dataclass
class Costs:
    """Costs found in folders: bills, sums, notes and errors.

    Attributes:
        groups: the runs that were named one by one, then the sweeps.
        endpoints: of all folders.
        total: of all runs and endpoints.
        notes: remarks on the figures.
        errors: a sentence for each folder that could not be read.
    """

    groups: list[RunBills] = field(default_factory=list)
    endpoints: list[EndpointBill] = field(default_factory=list)
    total: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return everything in plain containers, for JSON."""
        return asdict(self, dict_factory=lambda pairs: {key: value for key, value in pairs if key[0] != "_"})


def state_of(described: Mapping[str, Any]) -> str:
    """Return the state of a training job from its description."""
    return _STATES.get(str(described.get("TrainingJobStatus")), RUNNING)


def job_bill(
    job: Job,
    described: Mapping[str, Any],
    state: str,
    scores: Mapping[str, Any] = MappingProxyType({}),
    earlier: Sequence[JobBill] = (),
) -> JobBill:
    """Make the bill of a training job.

    Args:
        job: its record.
        described: DescribeTrainingJob, as far as it is known.
        state: see :class:`Bill`.
        scores: of the run, by the keys of its bill.
        earlier: bills of the run's earlier jobs; the cost of a point includes them.

    Raises:
        UserError: the seconds in the record cannot be seconds.
    """
    try:
        trained, billed = (_seconds(described.get(f"{kind}TimeInSeconds")) for kind in ("Training", "Billable"))
        started = described.get("TrainingStartTime")
        if state == RUNNING:
            since = datetime.fromisoformat(str(started)) if started else None
            trained = None if since is None else max(0.0, round((datetime.now(UTC) - since).total_seconds()))
        elif trained is None and billed is None and not started and state in _STATES.values():
            trained = billed = 0.0  # it ended before it was given an instance
    except (TypeError, ValueError):
        raise UserError(f"{job.folder / JOB_RECORD} is damaged (its seconds): get it anew with attach") from None
    spot = bool(described.get("EnableManagedSpotTraining"))
    usd = None if billed is None else billed / 3600 * job.usd_per_hour
    # A point costs what all jobs of the run did; nothing was paid for a rehearsal.
    all_usd = [usd, *(bill.usd for bill in earlier if bill.rehearsed == job.rehearsed)]
    known_usd = [each for each in all_usd if each is not None]
    at_most = trained / 3600 * job.usd_per_hour if state == RUNNING and trained is not None else None
    return JobBill(
        folder=str(job.folder),
        job=job.name,
        state="pruned" if state == "stopped" and job.pruned else state,
        rehearsed=job.rehearsed,
        instance_type=job.instance_type or None,
        instance_count=job.instance_count if job.instance_type else None,
        training_seconds=trained,
        billable_seconds=billed,
        spot=spot,
        spot_saving_percent=saving_percent(trained, billed)
        if spot and trained is not None and billed is not None
        else None,
        usd_per_hour=job.usd_per_hour,
        price_origin=job.price_origin or "as it was recorded",
        cost_so_far_at_most_usd=0.0 if job.rehearsed and at_most is not None else at_most,
        **cost_in_usd(usd, job.rehearsed),
        **scores,
        **_per_point(sum(known_usd) if len(known_usd) == len(all_usd) else None, scores.get("points"), job.rehearsed),
    )


def add_up(bills: Sequence[Bill], *, best: bool = False) -> dict[str, Any]:
    """Add up bills: the paid jobs, or, if all were rehearsed, those; jobs of unknown cost are in no sum.

    Args:
        bills: of runs.
        best: also return the run with the best validation accuracy, and the cost of each of its points.
    """
    jobs = [bill for bill in bills if isinstance(bill, JobBill)]
    local = [bill for bill in bills if isinstance(bill, LocalBill)]
    paid = [bill for bill in jobs if not bill.rehearsed]
    counted = paid or jobs
    rehearsed = bool(jobs) and not paid
    known = [bill for bill in counted if bill.billable_seconds is not None]
    spot = [bill for bill in known if bill.spot_saving_percent is not None]
    saved = [((bill.training_seconds or 0) - (bill.billable_seconds or 0)) / 3600 * bill.usd_per_hour for bill in spot]
    usd = sum(bill.usd or 0.0 for bill in known)
    total = {
        "jobs": len(counted),
        "rehearsed": rehearsed,
        "rehearsed_jobs_left_out": len(jobs) - len(counted),
        "jobs_of_unknown_cost": len(counted) - len(known),
        "training_seconds": sum(bill.training_seconds or 0.0 for bill in known),
        "billable_seconds": sum(bill.billable_seconds or 0.0 for bill in known),
        "spot_saving_percent": saving_percent(
            sum(bill.training_seconds or 0.0 for bill in spot), sum(bill.billable_seconds or 0.0 for bill in spot)
        )
        if spot
        else None,
        **cost_in_usd(usd, rehearsed),
        "spot_saving_usd": 0.0 if rehearsed else sum(saved),
        "runs_here": len(local),
        "wall_seconds_here": sum(bill.wall_seconds or 0.0 for bill in local),
    }
    if not best:
        return total
    first = max(counted, key=lambda bill: -1.0 if bill._rank is None else bill._rank, default=None)
    score = {key: getattr(first, key, None) for key in SCORE_KEYS}
    per_point = _per_point(usd if len(known) == len(counted) else None, score["points"], rehearsed)
    if not jobs:
        per_point["usd_per_point_missing"] = "ran on this machine, no price known"
    return {**total, "best_run": first.folder if first and first.points is not None else None, **score, **per_point}


def cost_in_usd(usd: float | None, rehearsed: bool) -> dict[str, Any]:
    """Return the cost by the keys of a bill, which differ for a rehearsal."""
    return {"cost_usd": 0.0 if rehearsed else usd, "rehearsed_cost_usd": usd if rehearsed else None}


def _per_point(usd: float | None, points: float | None, rehearsed: bool) -> dict[str, Any]:
    """Return US dollars for each point, or the reason for a missing figure, by the keys of a bill."""
    missing = "rehearsed, nothing was paid" if rehearsed else None
    value = None
    if usd is None:
        missing = "its cost is not known yet"
    elif points is None:
        missing = NO_SCORE
    elif points <= 0:
        missing = NO_GAIN
    else:
        value = usd / points
    return {
        "usd_per_point": None if rehearsed else value,
        "rehearsed_usd_per_point": value if rehearsed else None,
        "usd_per_point_missing": missing,
    }


def _seconds(value: Any) -> float | None:
    """Check seconds of a description.

    Raises:
        ValueError: they cannot be seconds.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(value)
    return value
