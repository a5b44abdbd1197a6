"""Search by SageMaker's tuner, stored as an Optuna study."""

import datetime
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, TrialState, create_trial

from bincounter.cloud import job_plan
from bincounter.cloud.account import Account
from bincounter.cloud.aws_errors import describe_failure
from bincounter.cloud.job_runner import RunningJob
from bincounter.cloud.jobs import is_local_endpoint
from bincounter.cloud.sagemaker_launcher import REPOSITORY, is_rehearsal, rehearsal_environment
from bincounter.cloud.submission import Submission, show_cost
from bincounter.cloud.tuning_job import (
    TUNING_ENDED,
    TUNING_RECORD,
    Tuning,
    TuningJob,
    load_tuning_job,
    submit,
    tuning_job_exists,
    tuning_name,
    tuning_request,
)
from bincounter.cloud.tuning_monitor import Trial, TuningJobMonitor, fetch_runs, format_total_cost
from bincounter.config.checks import plain_of
from bincounter.config.overrides import drop_overrides
from bincounter.config.quoting import override_of
from bincounter.errors import ConfigError, ResourceError
from bincounter.sweep.distributions import from_sagemaker, params_of, to_optuna, to_sagemaker
from bincounter.sweep.retraining import report_results, retrain_best
from bincounter.sweep.search_plan import Plan, check_batch_sizes, most_epochs
from bincounter.sweep.search_space import Interval, Parameter, log_search_space
from bincounter.sweep.study import changed_parts, recreate_study, silence_optuna, storage_url
from bincounter.sweep.trial_queue import SweeperLock
from bincounter.sweep.trials import billed_attributes
from bincounter.training.results import read_log

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader

log = logging.getLogger(__name__)


def search(plan: Plan, config: DictConfig, loader: "ConfigLoader", launcher: Launcher) -> None:
    """Run or resume a search and print its result.

    Args:
        plan: the search.
        config: the composed configuration, Hydra's part included.
        loader: composes configurations.
        launcher: runs ``retrain_best``.

    Raises:
        BinCounterError: SageMaker rejects the request, the tuning job failed, or Ctrl-C.
    """
    silence_optuna()
    job_plan.check_config_is_tracked(config)
    settings = plain_of(config.launcher)
    tuner = _Tuner(plan, settings, job_plan.compose_job(loader, config, _base(plan), 0), is_rehearsal(config.launcher))
    job_plan.plan_run(tuner.base, loader, config)
    log_search_space(plan.parameters)
    if plan.cfg.dry_run:
        with rehearsal_environment(rehearsed=tuner.rehearsed):
            tuner.show_request()
        return
    with SweeperLock(plan.folder) as ownership:
        with ownership.exclusive():  # another process of the same search waits, then finds the study
            study = tuner.fetched_study() or tuner.run()
        if study is None:
            return
        report_results(plan, study)
        if plan.settings["retrain_best"]:
            retrain_best(plan, study, launcher, ownership)
    print(plan.folder, flush=True)


def _base(plan: Plan) -> list[str]:
    """Return the overrides shared by all trials, by default without the test photos."""
    return [*plan.others, *([] if len(drop_overrides(plan.others, "test")) < len(plan.others) else ["test=false"])]


class _Tuner:
    """Tuning job of one search."""

    def __init__(self, plan: Plan, settings: Mapping[str, Any], base: job_plan.PlannedJob, rehearsed: bool) -> None:
        self._plan, self._settings, self.base, self.rehearsed = plan, settings, base, rehearsed
        self._url = storage_url(None, plan.folder)
        ranges = to_sagemaker(plan.parameters, plan.settings["strategy"])
        self._tuning = Tuning(
            strategy=plan.settings["strategy"],
            metric=plan.metrics[0],
            direction=plan.directions[0].capitalize(),
            ranges=ranges,
            trials=_trial_count(plan, ranges),
            at_once=settings["max_parallel_jobs"],
            epochs=most_epochs(plan.parameters, plan.cfg),
            seed=plan.cfg.seed,
            early_stopping=plan.settings["early_stopping"],
            parents=plan.settings["warm_start"],
            extra=plan.settings["request"],
        )

    def fetched_study(self) -> optuna.Study | None:
        """Return the study of an ended and fetched tuning job, else ``None``."""
        folder = self._plan.folder
        job = load_tuning_job(folder)
        if job is None:
            if (folder / "study.db").exists():
                raise ConfigError(f"{folder} holds a search by Optuna: set another paths.output_dir")
            return None
        self._check_identity(job)
        if job.status not in TUNING_ENDED:
            return None
        if job.status == "Failed":
            raise self._failed(job, "sweep.html lists the errors of its trials")
        return optuna.load_study(study_name=self._plan.name, storage=self._url)

    def run(self) -> optuna.Study | None:
        """Submit or find the tuning job and follow it; return ``None`` with ``launcher.wait=false``."""
        plan = self._plan
        with rehearsal_environment(rehearsed=self.rehearsed):
            account, job = self._existing_job()
            if job is None:
                check_batch_sizes(plan)
                job = self._submitted(account)
            if not self._settings["wait"]:
                log.info("%s is running; the same command with launcher.wait=true follows it.", job.name)
                return None
            monitor = TuningJobMonitor(account, job, plan.folder, self._overrides, rehearsed=self.rehearsed)
            described, trials = monitor.follow()
            best = described.get("BestTrainingJob", {}).get("TrainingJobName")
            fetch_runs(account, trials, best)
        study, status = write_study(plan, self._url, trials, best), described["HyperParameterTuningJobStatus"]
        replace(job, status=status).save(plan.folder)
        log.info("%s %s: %s", job.name, status, format_total_cost(trials))
        if status == "Failed":
            report_results(plan, study)
            raise self._failed(job, described.get("FailureReason", "SageMaker gives no reason"))
        return study

    def _existing_job(self) -> tuple[Account, TuningJob | None]:
        """Return the account, and the tuning job submitted by an earlier start, if any."""
        record = self._plan.folder / TUNING_RECORD
        job = load_tuning_job(self._plan.folder)
        account = Account(self._settings["region"] if job is None else job.region)
        if job is None or tuning_job_exists(account, job):
            return account, job
        if not self.rehearsed:  # it may still run, and be billed, in another account
            raise ConfigError(
                f"{record} names the tuning job {job.name}, which this account does not have in {job.region}: use the "
                "credentials it was started with, or remove that file"
            )
        record.unlink()  # of a rehearsal that has ended
        return account, None

    @staticmethod
    def _failed(job: TuningJob, reason: str) -> ResourceError:
        return ResourceError(
            f"the tuning job {job.name} failed ({reason}): correct the cause, then start it again with "
            "another hparams_search.study_name"
        )

    def show_request(self) -> None:
        """Print the request."""
        account = Account(self._settings["region"], dry=True)
        (task,) = self._submission(account).tasks([self.base], dry=True)
        print(account.shown(self._request(task)))
        account.log_placeholders()

    def _submission(self, account: Account) -> Submission:
        submission = Submission(account, self._settings, REPOSITORY, rehearsed=self.rehearsed)
        show_cost(self._settings, self._tuning.trials + bool(self._plan.settings["retrain_best"]))
        return submission

    def _submitted(self, account: Account) -> TuningJob:
        requests: list[dict[str, Any]] = []

        def checked(tasks: Sequence[RunningJob]) -> None:
            requests.append(self._request(tasks[0]))

        (task,) = self._submission(account).tasks([self.base], dry=False, checked=checked)
        job = TuningJob(
            name=requests[0]["HyperParameterTuningJobName"],
            study=self._plan.name,
            region=account.region,
            trials=self._tuning.trials,
            usd_per_hour=task.job.usd_per_hour,
            identity=dict(self._plan.signature),
            instance_type=task.job.instance_type,
            instance_count=task.job.instance_count,
            price_origin=task.job.price_origin,
            rehearsed=is_local_endpoint(account),
        )
        submit(account, job, requests[0], self._plan.folder)
        log.info("%s: %d trials, %d at a time", job.name, job.trials, min(self._tuning.at_once, job.trials))
        return job

    def _request(self, task: RunningJob) -> dict[str, Any]:
        assert task.request is not None
        return tuning_request(task.request, self._tuning, tuning_name(self._plan.name))

    def _check_identity(self, job: TuningJob) -> None:
        """Check that a recorded tuning job is of this search."""
        plan = self._plan
        changed = changed_parts(job.identity, plan.signature)
        if job.study != plan.name or changed:
            raise ConfigError(
                f"{plan.folder} holds the search {job.study} of {job.name}, which has another "
                f"{' and '.join(changed) or 'name'}: repeat its command unchanged, or set another paths.output_dir or "
                "hparams_search.study_name"
            )
        if self._tuning.trials > job.trials:
            raise ConfigError(
                f"hparams_search.n_trials={self._tuning.trials} is above the {job.trials} of {job.name}, and SageMaker "
                f"cannot extend a tuning job: warm start from it with 'hparams_search.warm_start=[{job.name}]' and "
                "another hparams_search.study_name"
            )

    def _overrides(self, tuned: Mapping[str, str]) -> list[str]:
        values = from_sagemaker(tuned, self._plan.parameters)
        return [
            *drop_overrides(_base(self._plan), "hparams_search"),
            *(override_of(key, each) for key, each in values.items()),
        ]


def _trial_count(plan: Plan, ranges: Mapping[str, Any]) -> int:
    """Return the number of trials; a grid has one per combination."""
    asked: int = plan.settings["n_trials"]
    if plan.settings["strategy"] != "Grid":
        return asked
    combinations = math.prod(len(each["Values"]) for each in ranges["CategoricalParameterRanges"])
    if combinations > asked:
        raise ConfigError(
            f"hparams_search.strategy=Grid tries all {combinations} combinations, and hparams_search.n_trials is "
            f"{asked}: raise it, or list fewer values"
        )
    return combinations


_STATES = {"Completed": TrialState.COMPLETE, "Stopped": TrialState.PRUNED}


def write_study(plan: Plan, url: str, trials: Sequence[Trial], best: str | None) -> optuna.Study:
    """Write the study of an ended tuning job.

    Args:
        plan: the search.
        url: URL of the storage; a study of the same name is replaced.
        trials: the tuning job's trials, in order of their start.
        best: name of SageMaker's best training job.
    """
    study = recreate_study(plan, url)
    for trial in trials:
        study.add_trial(_frozen_trial(plan, trial, best=trial.job.name == best))
    return study


def _frozen_trial(plan: Plan, trial: Trial, *, best: bool) -> FrozenTrial:
    status, value = trial.summary["TrainingJobStatus"], trial.objective
    state = TrialState.FAIL if value is None else _STATES.get(status, TrialState.FAIL)
    if best:  # also a job that SageMaker stopped early
        state = TrialState.COMPLETE
    frozen = create_trial(
        state=state,
        value=None if state == TrialState.FAIL else value,
        params=params_of(_clip(from_sagemaker(trial.tuned, plan.parameters), plan.parameters), plan.parameters),
        distributions=to_optuna(plan.parameters),
        intermediate_values=_metric_by_epoch(trial.job.folder, plan.metrics[0]),
        user_attrs=_attributes(trial),
    )
    frozen.datetime_start, frozen.datetime_complete = _times(trial.summary)
    return frozen


def _clip(values: Mapping[str, Any], parameters: Sequence[Parameter]) -> dict[str, Any]:
    """Clip values to their bounds: SageMaker's decimal text may exceed them by its last digit."""
    bounds = {each.key: each for each in parameters if isinstance(each, Interval)}
    return {
        key: min(max(value, bounds[key].low), bounds[key].high) if key in bounds else value
        for key, value in values.items()
    }


def _attributes(trial: Trial) -> dict[str, Any]:
    found = {"folder": str(trial.job.folder), "job": trial.job.name, **billed_attributes(trial.job)}
    if trial.summary["TrainingJobStatus"] == "Failed":
        found["error"] = describe_failure(trial.job.description.get("FailureReason", ""))
    return found


def _metric_by_epoch(folder: Path, metric: str) -> dict[int, float]:
    """Return the metric by epoch, counted from 1; empty if the trial's log was not fetched."""
    return {int(epoch) + 1: value for epoch, _, value in read_log(folder).get(metric, ()) if math.isfinite(epoch)}


def _times(summary: Mapping[str, Any]) -> tuple[datetime.datetime, datetime.datetime]:
    """Return start and end in local time, as Optuna stores them."""
    begun = summary.get("TrainingStartTime", summary["CreationTime"])
    ended = summary.get("TrainingEndTime", begun)
    return begun.astimezone().replace(tzinfo=None), ended.astimezone().replace(tzinfo=None)
