"""``Bill``; bills of runs, sweeps and endpoints read from their folders, AWS asked where needed."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bincounter.cloud.endpoints.endpoint_record import ENDPOINT_RECORD, Period, load_periods
from bincounter.cloud.instances import saving_percent
from bincounter.cloud.jobs import EARLIER, ENDED, RECORD, Job, answered_here, read
from bincounter.cloud.tuning_job import TUNING_ENDED, TUNING_RECORD, load_tuning_job
from bincounter.errors import BinCounterError, ConfigError, ResourceError, UserError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

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
    trained, billed = _summed_seconds(spot)
    scored = [bill for bill in counted if bill.score is not None]
    all_trained, all_billed = _summed_seconds(known)
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


def _summed_seconds(bills: Sequence[Bill]) -> tuple[float, float]:
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


class Rehearsed(BinCounterError):
    """It was on a control plane of this machine that is no more, and it has ended with it."""


class Aws:
    """Asks; an account that did not answer is not asked again."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account | BinCounterError] = {}

    def training_job(self, job: Job) -> dict[str, Any] | None:
        """DescribeTrainingJob; ``None`` where the account knows no such job.

        Raises:
            BinCounterError: nobody could be asked.
        """
        from bincounter.cloud.endpoints.endpoint_state import found

        return self._answer(
            job.region,
            lambda account: found(
                lambda: account.sagemaker.describe_training_job(TrainingJobName=job.name), f"asking for {job.name}"
            ),
            rehearsed=job.rehearsed,
        )

    def endpoint(self, name: str, region: str, *, rehearsed: bool) -> dict[str, Any] | None:
        """DescribeEndpoint; ``None`` where the account knows no such endpoint.

        Raises:
            BinCounterError: nobody could be asked.
        """
        from bincounter.cloud.endpoints.endpoint_state import describe

        return self._answer(region, lambda account: describe(account, name), rehearsed=rehearsed)

    def _answer(
        self, region: str, ask: "Callable[[Account], dict[str, Any] | None]", *, rehearsed: bool
    ) -> dict[str, Any] | None:
        account = self._account(region, rehearsed=rehearsed)
        try:
            return ask(account)
        except BinCounterError as error:
            self._accounts[region] = error
            raise Rehearsed if rehearsed else error from None

    def _account(self, region: str, *, rehearsed: bool) -> "Account":
        if region not in self._accounts:
            try:
                self._accounts[region] = _account(region)
            except BinCounterError as error:
                self._accounts[region] = error
        account = self._accounts[region]
        here = not isinstance(account, BinCounterError) and answered_here(account)
        if rehearsed and not here:
            raise Rehearsed
        if isinstance(account, BinCounterError):
            raise account
        if here and not rehearsed:
            raise ConfigError("AWS_ENDPOINT_URL leads to a rehearsal, which knows nothing of AWS")
        return account


def _account(region: str) -> "Account":
    import boto3

    from bincounter.cloud.account import Account
    from bincounter.cloud.aws_errors import answered_by_aws

    with answered_by_aws("reading the AWS settings"):
        if boto3.Session().get_credentials() is None:
            raise ResourceError("no AWS credentials are at hand")
    return Account(region)


UNKNOWN = "not known"


@dataclass(frozen=True)
class EndpointBill:
    """What one endpoint bills, and has billed while it served one archive.

    Attributes:
        folder: of the archive.
        name: of the endpoint.
        region: that it is in.
        kind: ``realtime``, ``serverless`` or ``async``.
        capacity: what it was given last.
        state: AWS's, such as ``InService``; ``deleted``, ``replaced``, ``failed`` or ``gone``; or :data:`UNKNOWN`.
        since: when it began to serve the archive.
        until: when it ended, where that is known.
        usd_per_hour: that it bills now; ``None`` where that is not known.
        usd: US dollars by now, requests to a serverless one not counted.
        at_most: whether ``usd`` is an upper bound, since it scales or may have ended before.
        price_origin: where the price is from, in words.
        rehearsed: whether it was on this machine, so that nothing was paid.
    """

    folder: Path
    name: str
    region: str
    kind: str
    capacity: str
    state: str
    since: datetime
    until: datetime | None
    usd_per_hour: float | None
    usd: float
    at_most: bool
    price_origin: str
    rehearsed: bool


def records(folder: Path) -> list[Path]:
    """The endpoints' records of a folder that deploy.py has left, or of a run."""
    return [path for path in (folder / ENDPOINT_RECORD, folder / "endpoint" / ENDPOINT_RECORD) if path.is_file()]


def endpoint_bills(path: Path, aws: Aws, notes: list[str]) -> list[EndpointBill]:
    """The bills of the endpoints of a record.

    Args:
        path: of the record.
        aws: is asked for those that nobody here has ended.
        notes: is given what there is to say beside the figures.

    Raises:
        UserError: the record is damaged.
    """
    of: dict[tuple[str, str, bool], list[Period]] = {}
    for period in load_periods(path):
        of.setdefault((period.name, period.region, period.rehearsed), []).append(period)
    return [_bill(path.parent, periods, aws, notes) for periods in of.values()]


def _bill(folder: Path, periods: list[Period], aws: Aws, notes: list[str]) -> EndpointBill:
    last = periods[-1]
    state, now, ended_unseen = (last.ending or "ended", 0.0, False) if last.ended else _endpoint_now(last, aws, notes)
    scales = any(one.instance_count and one.usd_per_hour_most > one.usd_per_hour for one in periods)
    return EndpointBill(
        folder=folder,
        name=last.name,
        region=last.region,
        kind=last.kind,
        capacity=last.capacity,
        state=state,
        since=datetime.fromisoformat(periods[0].begun),
        until=datetime.fromisoformat(last.ended) if last.ended else None,
        usd_per_hour=now,
        usd=sum(one.hours * (one.usd_per_hour_most if one.instance_count else one.usd_per_hour) for one in periods),
        at_most=scales or ended_unseen,
        price_origin=last.price_origin,
        rehearsed=last.rehearsed,
    )


def _endpoint_now(period: Period, aws: Aws, notes: list[str]) -> tuple[str, float | None, bool]:
    """State, US dollars per hour now, and whether it may have ended at a time that is not known."""
    try:
        there = aws.endpoint(period.name, period.region, rehearsed=period.rehearsed)
    except Rehearsed:
        return "gone", 0.0, True
    except BinCounterError as error:
        see = f"python deploy.py target={period.kind} name={period.name} action=status"
        notes.append(
            f"AWS could not be asked whether the endpoint {period.name} is still there ({error}): if it is, it bills "
            f"{period.usd_per_hour:.4g} USD/h; see {see}"
        )
        return UNKNOWN, None, True
    if there is None:
        notes.append(f"The endpoint {period.name} is gone in {period.region}; when it was deleted is not known here")
        return "gone", 0.0, True
    if there["EndpointConfigName"] != period.config:
        notes.append(f"The endpoint {period.name} has been given another configuration elsewhere")
        return "replaced", 0.0, True
    variants = there.get("ProductionVariants") or [{}]
    running = variants[0].get("CurrentInstanceCount", period.instance_count)
    share = running / period.instance_count if period.instance_count else 1.0
    return str(there["EndpointStatus"]), period.usd_per_hour * share, False


@dataclass
class Group:
    """Runs that are shown, and added up, together.

    Attributes:
        kind: ``runs``, ``sweep`` or ``tuning job``.
        folder: of the sweep; ``None`` for runs that were named one by one.
        bills: of the runs, in the order of their numbers.
    """

    kind: str
    folder: Path | None
    bills: list[Bill] = field(default_factory=list)


@dataclass
class Found:
    """What :func:`find` found.

    Attributes:
        groups: the runs that were named one by one, then the sweeps.
        endpoints: of all that was named.
        notes: what there is to say beside the figures.
        errors: a sentence for each folder that could not be read.
    """

    groups: list[Group] = field(default_factory=list)
    endpoints: list[EndpointBill] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def bills(self) -> list[Bill]:
        """Those of all groups."""
        return [bill for group in self.groups for bill in group.bills]


def find(folders: Sequence[Path]) -> Found:
    """Read the records of runs, of sweeps with their jobs inside, of tuning jobs and of endpoints.

    Args:
        folders: of them. One that cannot be read is named in the result's ``errors``, and the others are read.
    """
    search = _Search()
    for folder in folders:
        search.look(folder)
    return search.found


class _Search:
    def __init__(self) -> None:
        self.found = Found()
        self._aws = Aws()
        self._seen: set[Path] = set()
        self._jobs: dict[str, Path] = {}

    def look(self, folder: Path) -> None:
        try:
            self._look(folder)
        except OSError as error:
            self.found.errors.append(f"{error.filename or folder}: {error.strerror}")

    def _look(self, folder: Path) -> None:
        with_records = records(folder)
        inside = [] if is_run(folder) else _runs_inside(folder)
        if is_run(folder):
            self._take(folder, self._runs())
        elif inside or (folder / TUNING_RECORD).is_file():
            self._sweep(folder, inside)
        elif not with_records:
            self.found.errors.append(_nothing_in(folder))
        self._endpoints(with_records)

    def _runs(self) -> Group:
        """The group of runs that are named one by one, which comes first."""
        if not self.found.groups or self.found.groups[0].kind != "runs":
            self.found.groups.insert(0, Group("runs", None))
        return self.found.groups[0]

    def _sweep(self, folder: Path, runs: Sequence[Path]) -> None:
        group = Group("sweep", folder)
        try:
            tuning = load_tuning_job(folder)
        except UserError as error:
            self.found.errors.append(str(error))
            tuning = None
        if tuning is not None:
            group.kind = "tuning job"
            if tuning.status not in TUNING_ENDED:
                self.found.notes.append(
                    f"{tuning.name}, of {tuning.trials} trials, had not ended when it was last heard of: the command "
                    "that began it follows it, and trials begun since then are not counted here"
                )
        self.found.groups.append(group)
        for run in runs:
            self._take(run, group)
            self._endpoints(records(run))

    def _take(self, folder: Path, group: Group) -> None:
        if folder.resolve() in self._seen:
            return
        self._seen.add(folder.resolve())
        notes: list[str] = []
        try:
            bills = bills_of(folder, self._aws, notes)
        except BinCounterError as error:
            self.found.errors.append(str(error))
            return
        self.found.notes += notes
        for bill in bills:
            if bill.job is not None and bill.job in self._jobs:
                self.found.notes.append(f"{folder} and {self._jobs[bill.job]} hold the same job, which is counted once")
                continue
            if bill.job is not None:
                self._jobs[bill.job] = folder
            group.bills.append(bill)

    def _endpoints(self, paths: Sequence[Path]) -> None:
        for path in paths:
            if path.resolve() in self._seen:
                continue
            self._seen.add(path.resolve())
            try:
                self.found.endpoints += endpoint_bills(path, self._aws, self.found.notes)
            except BinCounterError as error:
                self.found.errors.append(str(error))


def _runs_inside(folder: Path) -> list[Path]:
    """The runs of a sweep, those with numbers first, in their order."""
    if not folder.is_dir():
        return []
    runs = [child for child in folder.iterdir() if child.is_dir() and is_run(child)]
    return sorted(
        runs, key=lambda run: (not run.name.isdecimal(), int(run.name) if run.name.isdecimal() else 0, run.name)
    )


def _nothing_in(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is no folder: name the folder of a run or of a sweep, as train.py printed it"
    return (
        f"{folder} holds no record of a run, a sweep or an endpoint: name a folder that train.py printed, or the "
        "endpoint/ folder of a run that deploy.py served"
    )


CONFIG = "config.yaml"
_STATES = {"Completed": "completed", "Failed": "failed", "Stopped": "stopped"}
_LAST_SIGNS = ("metrics.json", "checkpoints/last.ckpt", "logs/metrics.csv", CONFIG)  # of a run, the surest first


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return (folder / RECORD).is_file() or (folder / CONFIG).is_file() or (folder / EARLIER).is_dir()


def bills_of(folder: Path, aws: Aws, notes: list[str]) -> list[Bill]:
    """The bills of one run: those of its earlier jobs, then its own.

    Args:
        folder: of the run.
        aws: is asked for a job that had not ended when it was last heard of.
        notes: is given what there is to say beside the figures.

    Raises:
        UserError: a record is damaged.
    """
    records = sorted((folder / EARLIER).glob("*.json"))
    earlier = [_job_bill(replace(read(path), folder=folder), aws, notes) for path in records]
    scores = _scores(folder / "metrics.json")
    if (folder / RECORD).is_file():
        job = read(folder / RECORD)
        bill = _job_bill(job, aws, notes)
        before = [one.usd for one in earlier if one.rehearsed == bill.rehearsed]  # nothing was paid for a rehearsal
        known = [usd for usd in before if usd is not None]
        return [*earlier, replace(bill, **scores, usd_before=sum(known) if len(known) == len(before) else None)]
    if (folder / CONFIG).is_file() and not earlier:
        return [_bill_of_run_here(folder, scores)]
    return earlier


def _job_bill(job: Job, aws: Aws, notes: list[str]) -> Bill:
    told: Mapping[str, Any] = job.description
    state = _state(told)
    if state == RUNNING:
        told, state = _job_now(job, aws, notes)
    if state == "stopped" and job.pruned:
        state = "pruned"
    try:
        trained, billed = (_seconds(told.get(f"{kind}TimeInSeconds")) for kind in ("Training", "Billable"))
        if state == RUNNING:
            trained = _seconds_so_far(told)
        elif trained is None and billed is None and not told.get("TrainingStartTime") and state in _STATES.values():
            trained = billed = 0.0  # it ended before it was given an instance
    except (TypeError, ValueError):
        raise UserError(f"{job.folder / RECORD} is damaged (its seconds): get it anew with attach") from None
    return Bill(
        folder=job.folder,
        job=job.name,
        state=state,
        training_seconds=trained,
        billable_seconds=billed,
        spot=bool(told.get("EnableManagedSpotTraining")),
        instance_type=job.instance_type,
        instance_count=job.instance_count,
        usd_per_hour=job.usd_per_hour,
        price_origin=job.price_origin or "as it was recorded",
        rehearsed=job.rehearsed,
    )


def _state(told: Mapping[str, Any]) -> str:
    return _STATES.get(str(told.get("TrainingJobStatus")), RUNNING)


def _job_now(job: Job, aws: Aws, notes: list[str]) -> tuple[Mapping[str, Any], str]:
    """What is known now of a job that had not ended when it was last heard of, and its state."""
    try:
        told = aws.training_job(job)
        if told is None and job.rehearsed:
            raise Rehearsed
    except Rehearsed:
        notes.append(f"{job.name} ended with its rehearsal, unfinished")
        return job.description, "cut off"
    except BinCounterError as error:
        heard = datetime.fromtimestamp((job.folder / RECORD).stat().st_mtime, UTC)
        notes.append(
            f"{job.name} was still running when it was last heard of, {heard:%Y-%m-%d %H:%M} UTC, and AWS could not be "
            f"asked ({error}): python -m bincounter attach {job.folder}"
        )
        return job.description, RUNNING
    if told is None:
        notes.append(f"{job.name} is unknown to AWS in {job.region} with these credentials")
        return job.description, "unknown"
    if told["TrainingJobStatus"] in ENDED:
        notes.append(f"{job.name} has ended; what it has is fetched by: python -m bincounter attach {job.folder}")
    return told, _state(told)


def _seconds_so_far(told: Mapping[str, Any]) -> float | None:
    """Seconds since a job was given its instances, should it still run."""
    started = told.get("TrainingStartTime")
    if not started:
        return None
    moment = started if isinstance(started, datetime) else datetime.fromisoformat(str(started))
    return max(0.0, round((datetime.now(UTC) - moment).total_seconds()))


def _seconds(value: Any) -> float | None:
    """Seconds as SageMaker tells them.

    Raises:
        ValueError: they cannot be that.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(value)
    return value


def _bill_of_run_here(folder: Path, scores: Mapping[str, Any]) -> Bill:
    """A run that this machine carried out; its files say when it began and when it wrote last."""
    started = _json(folder / "provenance.json").get("started")
    signs: Iterable[Path] = (folder / name for name in _LAST_SIGNS)
    ended = next((sign.stat().st_mtime for sign in signs if sign.exists()), None)
    seconds = None
    try:
        if started and ended is not None:
            seconds = max(0.0, round(ended - datetime.fromisoformat(started).timestamp()))
    except (TypeError, ValueError):
        raise UserError(f"{folder / 'provenance.json'} is damaged (started): bring it back from a copy") from None
    state = "here" if (folder / "metrics.json").exists() else "here, unfinished"
    return Bill(
        folder=folder, job=None, state=state, training_seconds=seconds, val=scores.get("val"), test=scores.get("test")
    )


def _scores(path: Path) -> dict[str, Any]:
    """What a run scored, by ``val`` and ``test``; a side without an accuracy or a baseline is left out."""
    scores = {}
    for side, told in _json(path).items():
        if side not in ("val", "test"):
            continue
        accuracy, majority = (_fraction(told, name) for name in ("accuracy", "majority_accuracy"))
        if accuracy is not None and majority is not None:
            scores[side] = Score(side, accuracy, majority)
    return scores


def _fraction(told: Any, name: str) -> float | None:
    value = told.get(name) if isinstance(told, dict) else None
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _json(path: Path) -> dict[str, Any]:
    """A JSON file with an object in it, or an empty one where it is missing.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: bring it back from a copy, or score the run again")
    return content
