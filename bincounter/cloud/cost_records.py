"""Bills from the folders of runs, sweeps and endpoints; those that had not ended are described by AWS."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bincounter.cloud.aws_errors import translate_errors
from bincounter.cloud.cost_bills import (
    RUNNING,
    Bill,
    Costs,
    EndpointBill,
    LocalBill,
    RunBills,
    add_up,
    cost_in_usd,
    job_bill,
    state_of,
)
from bincounter.cloud.endpoints.endpoint_record import ENDPOINT_RECORD, ServingPeriod, read_periods
from bincounter.cloud.jobs import (
    EARLIER_JOBS,
    ENDED_STATUSES,
    JOB_RECORD,
    Job,
    description_of,
    is_local_endpoint,
    read_job,
)
from bincounter.cloud.tuning_job import TUNING_ENDED, TUNING_RECORD, load_tuning_job
from bincounter.config.quoting import shell_command
from bincounter.errors import BinCounterError, ConfigError, ResourceError, UserError
from bincounter.files import read_json

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

_CONFIG = "config.yaml"
_LAST_WRITTEN = ("metrics.json", "checkpoints/last.ckpt", "logs/metrics.csv", _CONFIG)  # by a run, the latest first


def read_costs(folders: Sequence[Path]) -> Costs:
    """Read the records of runs, of sweeps with their jobs inside, of tuning jobs and of endpoints.

    Args:
        folders: folders to read. One that cannot be read is named in the result's ``errors``, and the others are read.
    """
    reader = _Reader()
    for folder in folders:
        try:
            reader.read(folder)
        except OSError as error:
            reader.costs.errors.append(f"{error.filename or folder}: {error.strerror}")
    costs = reader.costs
    costs.groups = [group for group in costs.groups if group.runs]
    for group in costs.groups:
        group.total = add_up(group.runs, best=group.kind in ("sweep", "tuning job"))
    paid = [bill for bill in costs.endpoints if not bill.rehearsed]
    costs.total = add_up([bill for group in costs.groups for bill in group.runs]) | {
        "endpoints_cost_usd": sum(bill.cost_usd or 0 for bill in paid),
        "endpoints_cost_is_at_most": any(bill.cost_is_at_most for bill in paid),
        "endpoints_usd_per_hour": sum(bill.usd_per_hour or 0 for bill in paid),
    }
    return costs


class _Reader:
    def __init__(self) -> None:
        self.costs = Costs()
        self._accounts: dict[str, Account | BinCounterError] = {}
        self._seen: set[Path] = set()
        self._jobs: dict[str, Path] = {}

    def read(self, folder: Path) -> None:
        """Read the run, the sweep or the endpoints of a folder."""
        runs = [] if is_run(folder) else runs_inside(folder)
        if is_run(folder):
            if not self.costs.groups or self.costs.groups[0].kind != "runs":
                self.costs.groups.insert(0, RunBills("runs", None))
            self._read_run(folder, self.costs.groups[0])
        elif runs or (folder / TUNING_RECORD).is_file():
            self._read_sweep(folder, runs)
        elif not folder.is_dir():
            self.costs.errors.append(
                f"{folder} is not a folder: name the folder of a run or of a sweep, as the run printed it"
            )
        elif not _endpoint_records(folder):
            self.costs.errors.append(
                f"{folder} holds no record of a run, a sweep or an endpoint: name a folder that a run printed, or "
                "the endpoint/ folder of a run that bincounter deploy served"
            )
        self._read_endpoints(folder)

    def _read_sweep(self, folder: Path, runs: Sequence[Path]) -> None:
        group = RunBills("sweep" if is_sweep(folder, runs) else "folder", str(folder))
        self.costs.groups.append(group)
        try:
            tuning = load_tuning_job(folder)
        except UserError as error:
            self.costs.errors.append(str(error))
            tuning = None
        if tuning is not None:
            group.kind = "tuning job"
            if tuning.status not in TUNING_ENDED:
                self.costs.notes.append(
                    f"{tuning.name}, of {tuning.trials} trials, had not ended when it was last seen: repeat its "
                    "command to follow it; later trials are not counted here"
                )
        for run in runs:
            self._read_run(run, group)
            self._read_endpoints(run)

    def _read_run(self, folder: Path, group: RunBills) -> None:
        if folder.resolve() in self._seen:
            return
        self._seen.add(folder.resolve())
        try:
            bills = self._bills(folder)
        except BinCounterError as error:
            self.costs.errors.append(str(error))
            return
        for bill in bills:
            if bill.job is not None and self._jobs.setdefault(bill.job, folder) != folder:
                self.costs.notes.append(f"{folder} and {self._jobs[bill.job]} hold the same job, which is counted once")
            else:
                group.runs.append(bill)

    def _bills(self, folder: Path) -> list[Bill]:
        """Make the bills of a run: those of its earlier jobs, then its own.

        Raises:
            UserError: a record is damaged.
        """
        records = sorted((folder / EARLIER_JOBS).glob("*.json"))
        jobs = [replace(read_job(path), folder=folder) for path in records]
        earlier = [job_bill(job, *self._job_now(job)) for job in jobs]
        if (folder / JOB_RECORD).is_file():
            job = read_job(folder / JOB_RECORD)
            return [*earlier, job_bill(job, *self._job_now(job), _scores(folder / "metrics.json"), earlier)]
        return [*earlier] if earlier else [_local_bill(folder)]

    def _job_now(self, job: Job) -> tuple[Mapping[str, Any], str]:
        """Return description and state of a job, from AWS if it had not ended when it was last seen."""
        if (state := state_of(job.description)) != RUNNING:
            return job.description, state
        try:
            described = self._ask(
                job.region, lambda account: description_of(account, job.name), rehearsed=job.rehearsed
            )
        except BinCounterError as error:
            seen = datetime.fromtimestamp((job.folder / JOB_RECORD).stat().st_mtime, UTC)
            self.costs.notes.append(
                f"{job.name} was still running when it was last seen, {seen:%Y-%m-%d %H:%M} UTC, and AWS could "
                f"not be asked ({error}): {shell_command('python', '-m', 'bincounter', 'attach', job.folder)}"
            )
            return job.description, RUNNING
        if described is None:
            self.costs.notes.append(
                f"{job.name} ended with its rehearsal, unfinished"
                if job.rehearsed
                else f"{job.name} is unknown to AWS in {job.region} with these credentials"
            )
            return job.description, "cut off" if job.rehearsed else "unknown"
        if described["TrainingJobStatus"] in ENDED_STATUSES:
            fetch = shell_command("bincounter", "attach", job.folder)
            self.costs.notes.append(f"{job.name} has ended; fetch its results with: {fetch}")
        return described, state_of(described)

    def _read_endpoints(self, folder: Path) -> None:
        for path in _endpoint_records(folder):
            if path.resolve() in self._seen:
                continue
            self._seen.add(path.resolve())
            periods: dict[tuple[str, str, bool], list[ServingPeriod]] = {}
            try:
                for period in read_periods(path):
                    periods.setdefault((period.name, period.region, period.rehearsed), []).append(period)
                self.costs.endpoints += [self._endpoint_bill(path.parent, each) for each in periods.values()]
            except BinCounterError as error:
                self.costs.errors.append(str(error))

    def _endpoint_bill(self, folder: Path, periods: Sequence[ServingPeriod]) -> EndpointBill:
        last = periods[-1]
        state, now = (last.ending or "ended", 0.0) if last.ended else self._endpoint_now(last)
        scales = any(one.instance_count and one.usd_per_hour_most > one.usd_per_hour for one in periods)
        usd = sum(one.hours * (one.usd_per_hour_most if one.instance_count else one.usd_per_hour) for one in periods)
        return EndpointBill(
            folder=str(folder),
            name=last.name,
            region=last.region,
            kind=last.kind,
            capacity=last.capacity,
            state=state,
            rehearsed=last.rehearsed,
            since=periods[0].begun,
            until=last.ended,
            usd_per_hour=0.0 if last.rehearsed else now,
            price_origin=last.price_origin,
            # The end of one that was deleted or replaced elsewhere has no known time.
            cost_is_at_most=scales or (not last.ended and state in ("gone", "replaced", "not known")),
            requests_come_on_top=last.kind == "serverless",
            **cost_in_usd(usd, last.rehearsed),
        )

    def _endpoint_now(self, period: ServingPeriod) -> tuple[str, float | None]:
        """Return state and US dollars per hour of an endpoint without a recorded end."""
        from bincounter.cloud.endpoints.endpoint_state import describe

        try:
            described = self._ask(
                period.region, lambda account: describe(account, period.name), rehearsed=period.rehearsed
            )
        except BinCounterError as error:
            words = ("bincounter", "deploy", f"target={period.kind}", f"name={period.name}", "action=status")
            see = shell_command(*words, settings={"target.region": period.region})
            self.costs.notes.append(
                f"AWS could not be asked whether the endpoint {period.name} still exists ({error}): if it does, it "
                f"bills {period.usd_per_hour:.4g} USD/h; see {see}"
            )
            return "not known", None
        if described is None:
            self.costs.notes.append(
                f"The endpoint {period.name} no longer exists in {period.region}; the time of its end is not known"
            )
            return "gone", 0.0
        if described["EndpointConfigName"] != period.config:
            self.costs.notes.append(f"The endpoint {period.name} has another configuration by now")
            return "replaced", 0.0
        variants = described.get("ProductionVariants") or [{}]
        running = variants[0].get("CurrentInstanceCount", period.instance_count)
        share = running / period.instance_count if period.instance_count else 1.0
        return str(described["EndpointStatus"]), period.usd_per_hour * share

    def _ask(
        self, region: str, describe: Callable[["Account"], dict[str, Any] | None], *, rehearsed: bool
    ) -> dict[str, Any] | None:
        """Describe a job or an endpoint; ``None`` where it does not exist, as after the end of its rehearsal.

        Raises:
            BinCounterError: AWS gave no description; a region gets no more requests after a failed one.
        """
        if region not in self._accounts:
            self._accounts[region] = _connect(region)
        account = self._accounts[region]
        try:
            if isinstance(account, BinCounterError):
                raise account
            if is_local_endpoint(account) == rehearsed:
                return describe(account)
        except BinCounterError as error:
            self._accounts[region] = error
            if not rehearsed:
                raise
        if not rehearsed:
            raise ConfigError("AWS_ENDPOINT_URL is the address of a rehearsal, which does not know AWS's jobs")
        return None


def _connect(region: str) -> "Account | BinCounterError":
    import boto3

    from bincounter.cloud.account import Account

    try:
        with translate_errors("reading the AWS settings"):
            if boto3.Session().get_credentials() is None:
                raise ResourceError("no AWS credentials were found")
        return Account(region)
    except BinCounterError as error:
        return error


def is_run(folder: Path) -> bool:
    """Return True if a folder is that of a run."""
    return (folder / JOB_RECORD).is_file() or (folder / _CONFIG).is_file() or (folder / EARLIER_JOBS).is_dir()


def runs_inside(folder: Path) -> list[Path]:
    """List the runs of a sweep, those with numbers first, in their order."""
    runs = [child for child in folder.iterdir() if child.is_dir() and is_run(child)] if folder.is_dir() else []
    return sorted(runs, key=lambda run: (not run.name.isdecimal(), run.name.isdecimal() and int(run.name), run.name))


def is_sweep(folder: Path, runs: Sequence[Path]) -> bool:
    """Return True if a folder with these runs inside is that of a sweep."""
    records = any((folder / name).is_file() for name in ("study.db", TUNING_RECORD))
    return records or any(run.name.isdecimal() for run in runs)


def _endpoint_records(folder: Path) -> list[Path]:
    """List the endpoints' records of the folder of ``bincounter deploy``, or of a run."""
    return [path for path in (folder / ENDPOINT_RECORD, folder / "endpoint" / ENDPOINT_RECORD) if path.is_file()]


def _local_bill(folder: Path) -> LocalBill:
    """Make the bill of a run on this machine; begin and end come from its files."""
    started = (read_json(folder / "provenance.json", "bring it back from a copy") or {}).get("started")
    ended = next((path.stat().st_mtime for name in _LAST_WRITTEN if (path := folder / name).exists()), None)
    seconds = None
    try:
        if started and ended is not None:
            seconds = max(0.0, round(ended - datetime.fromisoformat(started).timestamp()))
    except (TypeError, ValueError):
        raise UserError(f"{folder / 'provenance.json'} is damaged (started): bring it back from a copy") from None
    state = "here" if (folder / "metrics.json").exists() else "here, unfinished"
    return LocalBill(folder=str(folder), state=state, wall_seconds=seconds, **_scores(folder / "metrics.json"))


def _scores(path: Path) -> dict[str, Any]:
    """Scores of a run by the keys of its bill; a side without an accuracy or a baseline does not count."""
    sides: dict[str, list[Any]] = {}
    found = read_json(path, "bring it back from a copy, or score the run again") or {}
    for side, scores in found.items():
        values = [scores.get(key) for key in ("accuracy", "majority_accuracy")] if isinstance(scores, dict) else [None]
        if side in ("val", "test") and all(isinstance(each, int | float) and math.isfinite(each) for each in values):
            sides[side] = values
    if not sides:
        return {}
    scored_on = "test" if "test" in sides else "val"
    accuracy, majority = sides[scored_on]
    return {
        "scored_on": scored_on,
        "accuracy_percent": 100 * accuracy,
        "majority_accuracy_percent": 100 * majority,
        "points": 100 * (accuracy - majority),
        "_rank": sides.get("val", sides[scored_on])[0],
    }
