"""Monitor of a tuning job: logs its trials as they run, and fetches them at the end."""

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bincounter.cloud import jobs
from bincounter.cloud.aws_errors import describe_failure
from bincounter.cloud.job_log import KEPT_MEMBERS, follow_job
from bincounter.cloud.job_runner import ask_to_stop
from bincounter.cloud.jobs import Job, fetch_run, format_cost, is_local_endpoint
from bincounter.cloud.polling import wait_until
from bincounter.cloud.tuning_job import TUNING_ENDED, TuningJob, describe, list_trials, stop
from bincounter.errors import BinCounterError, ConfigError, Interrupted
from bincounter.number_format import format_score

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

log = logging.getLogger(__name__)

_AT_ONCE = 100  # SageMaker's limit of a tuning job's training jobs at a time
# Enough to compare trials; only the best trial's run is fetched whole.
_SMALL = ("config.yaml", "overrides.txt", "provenance.json", "metrics.json", "logs/metrics.csv")


@dataclass
class Trial:
    """Training job of a tuning job.

    Attributes:
        job: with its folder, whose name is the trial's number.
        summary: its entry in ListTrainingJobsForHyperParameterTuningJob.
    """

    job: Job
    summary: Mapping[str, Any]

    @property
    def objective(self) -> float | None:
        """Value of the objective metric, if there is one."""
        final = self.summary.get("FinalHyperParameterTuningJobObjectiveMetric")
        return None if final is None else float(final["Value"])

    @property
    def metric(self) -> str:
        """Name of the objective metric, if there is a value."""
        final = self.summary.get("FinalHyperParameterTuningJobObjectiveMetric") or {}
        return str(final.get("MetricName", "objective"))

    @property
    def tuned(self) -> Mapping[str, str]:
        """Hyperparameters that SageMaker chose, as texts."""
        return self.summary.get("TunedHyperParameters", {})


class TuningJobMonitor:
    """Follow a tuning job.

    Args:
        account: that it runs in.
        tuning: the job.
        folder: of the search.
        overrides: turns tuned hyperparameters into the overrides of the trial's run.
        rehearsed: whether it ends with this command.
    """

    def __init__(
        self,
        account: "Account",
        tuning: TuningJob,
        folder: Path,
        overrides: Callable[[Mapping[str, str]], list[str]],
        *,
        rehearsed: bool,
    ) -> None:
        self._account, self._tuning, self._folder, self._overrides = account, tuning, folder, overrides
        self._rehearsed = rehearsed
        self._leave = threading.Event()
        self._trials: dict[str, Trial] = {}
        self._ended: set[str] = set()
        self._unlisted = False  # the trials could not be listed, which was logged
        self._described: dict[str, Any] = {}

    def follow(self) -> tuple[dict[str, Any], list[Trial]]:
        """Log the trials until the tuning job ends.

        Returns:
            DescribeHyperParameterTuningJob, and the trials in the order of their creation.

        Raises:
            Interrupted: by Ctrl-C; the tuning job still runs.
            BinCounterError: it cannot be described.
        """
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            try:
                return self._until_its_end(pool)
            except Interrupted:
                raise
            except BinCounterError as error:
                over = self._described.get("HyperParameterTuningJobStatus") in TUNING_ENDED
                state = (
                    "has ended: the same command fetches its trials"
                    if over
                    else "may still run, and be billed: the same command follows it"
                )
                raise type(error)(f"{error}. {self._tuning.name} {state}") from None
            finally:
                self._leave.set()

    def _until_its_end(self, pool: ThreadPoolExecutor) -> tuple[dict[str, Any], list[Trial]]:
        futures: list[Future[None]] = []

        def step() -> tuple[bool, bool]:
            self._described = describe(self._account, self._tuning.name)
            new = self._new_trials()
            futures.extend(pool.submit(self._show, trial) for trial in new)
            return self._described["HyperParameterTuningJobStatus"] in TUNING_ENDED, bool(new)

        ended = stopping = False
        while not ended:
            try:  # Ctrl-C comes while AWS is asked to stop the job, too
                if stopping:
                    self._stop()
                stopping = False
                ended = wait_until(step, self._leave, local=is_local_endpoint(self._account))
            except KeyboardInterrupt:
                if not self._rehearsed and not ask_to_stop(len(self._trials) - len(self._ended)):
                    name = self._tuning.name
                    raise Interrupted(
                        f"Interrupted: the tuning job {name} still runs, and is billed; the same command follows it"
                    ) from None
                stopping = True
        wait(futures)
        self._update_trials()
        return self._described, list(self._trials.values())

    def _new_trials(self) -> list[Trial]:
        """Update the trials; without permission to list them, the tuning job is followed without its trials."""
        try:
            return self._update_trials()
        except ConfigError as error:
            if not self._unlisted:
                log.warning("%s. The tuning job is followed without its trials.", error)
            self._unlisted = True
            return []

    def _update_trials(self) -> list[Trial]:
        """Update the trials by the list of training jobs; return the new ones."""
        new = []
        for number, summary in enumerate(list_trials(self._account, self._tuning.name)):
            name = summary["TrainingJobName"]
            if name not in self._trials:
                self._trials[name] = Trial(self._job(name, number, summary), summary)
                new.append(self._trials[name])
            self._trials[name].summary = summary
            if summary["TrainingJobStatus"] in jobs.ENDED_STATUSES and name not in self._ended:
                self._log_end(self._trials[name])
                self._ended.add(name)  # last: a request that failed is repeated
        return new

    def _job(self, name: str, number: int, summary: Mapping[str, Any]) -> Job:
        described = jobs.describe(self._account, name)
        job = Job(
            name=name,
            number=number,
            folder=self._folder / str(number),
            region=self._tuning.region,
            # The container adds the job's name, since all trials of a tuning job share the definition's URI.
            checkpoint_uri=f"{described['CheckpointConfig']['S3Uri'].rstrip('/')}/{name}",
            overrides=self._overrides(summary.get("TunedHyperParameters", {})),
            usd_per_hour=self._tuning.usd_per_hour,
            description={key: described[key] for key in KEPT_MEMBERS if key in described},
            instance_type=self._tuning.instance_type,
            instance_count=self._tuning.instance_count,
            price_origin=self._tuning.price_origin,
            rehearsed=self._tuning.rehearsed,
        )
        job.fetched = jobs.is_fetched(job)  # by bincounter attach
        job.save()
        values = " ".join(f"{key}={value}" for key, value in summary.get("TunedHyperParameters", {}).items())
        log.info("trial %d: %s\n  %s", number, values, self._account.console_link(name))
        return job

    def _show(self, trial: Trial) -> None:
        """Log a training job's states and lines, unless it had ended before this command began."""
        if trial.job.description.get("TrainingJobStatus") in jobs.ENDED_STATUSES:
            return
        try:
            follow_job(self._account, trial.job, self._leave, several=True)
        except BinCounterError as error:
            log.warning("trial %d cannot be followed: %s", trial.job.number, error)
        trial.job.save()

    def _log_end(self, trial: Trial) -> None:
        status, value = trial.summary["TrainingJobStatus"], trial.objective
        described = jobs.describe(self._account, trial.job.name)
        trial.job.description = {key: described[key] for key in KEPT_MEMBERS if key in described}
        trial.job.save()
        objective = "" if value is None else f", {trial.metric} {format_score(trial.metric, value, unit=True)}"
        reason = f": {describe_failure(described.get('FailureReason', ''))}" if status == "Failed" else ""
        log.info("trial %d: %s, %s%s%s", trial.job.number, status, format_cost(trial.job), objective, reason)

    def _stop(self) -> None:
        """Stop the tuning job; one that cannot be stopped is still followed."""
        log.info("Stopping; results are fetched as the trials end.")
        try:
            stop(self._account, self._tuning.name)
        except BinCounterError as error:
            log.warning("%s. %s still runs, and is billed: press Ctrl-C to try again.", error, self._tuning.name)


def fetch_runs(account: "Account", found: list[Trial], best: str | None) -> None:
    """Download the best trial's run, and the files of the other trials that a comparison needs."""
    for trial in found:
        whole = trial.job.name == best
        try:
            fetch_run(account, trial.job, None if whole else lambda name: name in _SMALL)
        except (BinCounterError, OSError) as error:
            log.warning("trial %d could not be fetched: %s", trial.job.number, error)


def format_total_cost(found: list[Trial]) -> str:
    """Format time and cost of all trials."""
    described = [trial.job.description for trial in found]
    trained, billed = (
        sum(each.get(f"{kind}TimeInSeconds") or 0 for each in described) for kind in ("Training", "Billable")
    )
    usd = sum((trial.job.description.get("BillableTimeInSeconds") or 0) * trial.job.usd_per_hour for trial in found)
    return f"{len(found)} trials: {trained} s of training, {billed} s billed, {usd / 3600:.4f} USD"
