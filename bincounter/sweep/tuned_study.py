"""The trials of a tuning job as an Optuna study: SageMaker's search is shown as Optuna's own is."""

import csv
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from bincounter.cloud.aws_errors import explain_failure
from bincounter.cloud.tuning.course import Trial
from bincounter.sweep.distributions import params_of, to_optuna
from bincounter.sweep.plan import Plan
from bincounter.sweep.ranges import from_sagemaker
from bincounter.sweep.space import Interval, Parameter
from bincounter.sweep.study import begin_study

_STATES = {"Completed": TrialState.COMPLETE, "Stopped": TrialState.PRUNED}


def keep_trials(plan: Plan, url: str, trials: Sequence[Trial], best: str | None) -> optuna.Study:
    """Write the study of a tuning job that has ended.

    Args:
        plan: of the search.
        url: of the storage; a study of that name is replaced.
        trials: of the tuning job, in the order they were begun.
        best: the training job that SageMaker calls the best.
    """
    study = begin_study(plan, url)
    for trial in trials:
        study.add_trial(_frozen(plan, trial, best=trial.job.name == best))
    return study


def _frozen(plan: Plan, trial: Trial, *, best: bool) -> FrozenTrial:
    status, value = trial.summary["TrainingJobStatus"], trial.objective
    state = TrialState.FAIL if value is None else _STATES.get(status, TrialState.FAIL)
    if best:  # SageMaker compares those that it stopped early too
        state = TrialState.COMPLETE
    frozen = create_trial(
        state=state,
        value=None if state == TrialState.FAIL else value,
        params=params_of(_within(from_sagemaker(trial.tuned, plan.parameters), plan.parameters), plan.parameters),
        distributions=to_optuna(plan.parameters),
        intermediate_values=_epochs(trial.job.folder, plan.metrics[0]),
        user_attrs=_attributes(trial),
    )
    frozen.datetime_start, frozen.datetime_complete = _times(trial.summary)
    return frozen


def _within(values: Mapping[str, Any], parameters: Sequence[Parameter]) -> dict[str, Any]:
    """Values inside their bounds: as decimal text, SageMaker's may lie beyond one by its last digit."""
    bounds = {each.key: each for each in parameters if isinstance(each, Interval)}
    return {
        key: min(max(value, bounds[key].low), bounds[key].high) if key in bounds else value
        for key, value in values.items()
    }


def _attributes(trial: Trial) -> dict[str, Any]:
    described = trial.job.description
    found: dict[str, Any] = {"folder": str(trial.job.folder), "job": trial.job.name}
    if described.get("TrainingTimeInSeconds") is not None:
        found["seconds"] = described["TrainingTimeInSeconds"]
    billed = described.get("BillableTimeInSeconds")
    if billed is not None:
        found |= {"billed_seconds": billed, "usd": round(billed / 3600 * trial.job.usd_per_hour, 6)}
    if trial.summary["TrainingJobStatus"] == "Failed":
        found["error"] = explain_failure(described.get("FailureReason", ""))
    return found


def _epochs(folder: Path, metric: str) -> dict[int, float]:
    """The metric after each epoch, counted from 1, where the trial's log was fetched."""
    path = folder / "logs" / "metrics.csv"
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {int(row["epoch"]) + 1: float(row[metric]) for row in csv.DictReader(file) if row.get(metric)}


def _times(summary: Mapping[str, Any]) -> tuple[datetime.datetime, datetime.datetime]:
    """Begin and end, in local time as Optuna has them."""
    begun = summary.get("TrainingStartTime", summary["CreationTime"])
    ended = summary.get("TrainingEndTime", begun)
    return begun.astimezone().replace(tzinfo=None), ended.astimezone().replace(tzinfo=None)
