"""Tuning jobs and their record tuning.json: CreateHyperParameterTuningJob, describe, stop."""

import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bincounter.cloud.api_shapes import check_request, merge, service_model
from bincounter.cloud.aws_errors import create_once, describe_if_exists, stop_unless_ended, translate_errors
from bincounter.errors import ConfigError
from bincounter.files import look_up, read_file, write_json

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

TUNING_RECORD = "tuning.json"  # in the search's folder
TUNING_ENDED = ("Completed", "Failed", "Stopped", "DeleteFailed")
_NAME_LENGTH = 32  # SageMaker's limit
_SEEDS = 2**31
_MOST_TRIALS, _MOST_AT_ONCE = 750, 100
# Members that a tuning job has elsewhere, or that SageMaker sets.
_NOT_IN_DEFINITION = ("TrainingJobName", "HyperParameters", "Tags")
_ASKED_BY = {"DebugHookConfig": "debugger=smdebug", "ProfilerConfig": "profiler.sagemaker_interval"}
# Parts of the request that have a setting; some of them would evade the price ceiling.
_RESERVED_PARAMETERS = {
    "HyperParameterTuningJobName": "hparams_search.study_name",
    "HyperParameterTuningJobConfig.Strategy": "hparams_search.strategy",
    "HyperParameterTuningJobConfig.HyperParameterTuningJobObjective": "optimized_metric",
    "HyperParameterTuningJobConfig.ParameterRanges": "hparams_search.space",
    "HyperParameterTuningJobConfig.ResourceLimits.MaxNumberOfTrainingJobs": "hparams_search.n_trials",
    "HyperParameterTuningJobConfig.ResourceLimits.MaxParallelTrainingJobs": "launcher.max_parallel_jobs",
    "HyperParameterTuningJobConfig.TrainingJobEarlyStoppingType": "hparams_search.early_stopping",
    "HyperParameterTuningJobConfig.RandomSeed": "seed",
    "TrainingJobDefinition": "launcher.*, and launcher.request for what has none",
    "TrainingJobDefinitions": "launcher.*: a search has one definition",
    "WarmStartConfig.ParentHyperParameterTuningJobs": "hparams_search.warm_start",
}


@dataclass(frozen=True)
class TuningJob:
    """Tuning job and the search that it runs.

    Attributes:
        name: of the job.
        study: name of the search.
        region: of the job.
        trials: requested number of trials.
        usd_per_hour: of all instances of one trial, on demand.
        identity: signature of the search, see bincounter.sweep.search_plan.
        status: ``InProgress``, or the final status.
        instance_type: of a trial, such as ``ml.g5.xlarge``; empty in a record that an earlier version wrote.
        instance_count: instances of a trial.
        price_origin: source of ``usd_per_hour``.
        rehearsed: whether it runs on this machine, so that nothing is paid.
    """

    name: str
    study: str
    region: str
    trials: int
    usd_per_hour: float
    identity: Mapping[str, Any]
    status: str = "InProgress"
    instance_type: str = ""
    instance_count: int = 1
    price_origin: str = ""
    rehearsed: bool = False

    def save(self, folder: Path) -> None:
        """Write ``tuning.json`` into the search's folder."""
        write_json(folder / TUNING_RECORD, vars(self))


def load_tuning_job(folder: Path) -> TuningJob | None:
    """Read the tuning job of a search's folder; ``None`` where there is none.

    Raises:
        UserError: its record is corrupt.
    """
    advice = "bring it back from a copy, or remove it, which forgets its job"
    return read_file(folder / TUNING_RECORD, lambda file: TuningJob(**json.load(file)), advice)


def submit(account: "Account", job: TuningJob, request: dict[str, Any], folder: Path) -> None:
    """Send CreateHyperParameterTuningJob; the record is written first, and deleted if the job was not created.

    Raises:
        NotAnswered: it may have been created.
        BinCounterError: it was not.
    """
    job.save(folder)
    client = account.sagemaker
    create_once(
        lambda: client.create_hyper_parameter_tuning_job(**request),
        lambda: client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=job.name),
        f"submitting {job.name}",
        later="the same command follows it, and is billed once; it reports if there is none",
        undo=(folder / TUNING_RECORD).unlink,
    )


def tuning_job_exists(account: "Account", job: TuningJob) -> bool:
    """Return True if SageMaker knows a tuning job, in this account and the job's region."""
    ask = partial(account.sagemaker.describe_hyper_parameter_tuning_job, HyperParameterTuningJobName=job.name)
    return describe_if_exists(ask, f"describing {job.name}") is not None


def describe(account: "Account", name: str) -> dict[str, Any]:
    """Return DescribeHyperParameterTuningJob."""
    with translate_errors(f"describing {name}"):
        return account.sagemaker.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)


def list_trials(account: "Account", name: str) -> list[dict[str, Any]]:
    """List the summaries of a tuning job's training jobs, in the order of their creation."""
    with translate_errors(f"listing the training jobs of {name}"):
        pages = account.sagemaker.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job").paginate(
            HyperParameterTuningJobName=name, SortBy="CreationTime", SortOrder="Ascending"
        )
        found = [summary for page in pages for summary in page["TrainingJobSummaries"]]
    return sorted(found, key=lambda summary: (summary["CreationTime"], summary["TrainingJobName"]))


def stop(account: "Account", name: str) -> None:
    """Send StopHyperParameterTuningJob; a tuning job that has ended is left alone."""
    stop_unless_ended(lambda: account.sagemaker.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name), name)


@dataclass(frozen=True)
class Tuning:
    """Settings of a tuning job's search.

    Attributes:
        strategy: ``Bayesian``, ``Random``, ``Hyperband`` or ``Grid``.
        metric: the objective.
        direction: ``Maximize`` or ``Minimize``.
        ranges: ``ParameterRanges``.
        trials: training jobs in all.
        at_once: training jobs at a time.
        epochs: the most that a trial has.
        seed: of the choice.
        early_stopping: whether SageMaker stops poor trials.
        parents: names of earlier tuning jobs to learn from.
        extra: merged into the request.
    """

    strategy: str
    metric: str
    direction: str
    ranges: Mapping[str, Any]
    trials: int
    at_once: int
    epochs: int
    seed: int
    early_stopping: bool
    parents: Sequence[str]
    extra: Mapping[str, Any]


def tuning_name(study: str) -> str:
    """Make a unique name: study, time, random digits."""
    ending = f"-{time.strftime('%m%d%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    # Policies allow names with our prefix alone (docs/sagemaker.md); its training jobs' names begin with it.
    name = re.sub(r"[^a-zA-Z0-9]+", "-", f"bincounter-{study}").strip("-")
    return name[: _NAME_LENGTH - len(ending)].rstrip("-") + ending


def tuning_request(training: Mapping[str, Any], tuning: Tuning, name: str) -> dict[str, Any]:
    """Make and check the request for a tuning job.

    Args:
        training: CreateTrainingJob of the search's base run, without the searched hyperparameters.
        tuning: the search.
        name: of the tuning job.

    Raises:
        ConfigError: SageMaker does not accept such a search.
    """
    _refuse_reserved(tuning.extra)
    if tuning.trials > _MOST_TRIALS:
        raise ConfigError(f"hparams_search.n_trials={tuning.trials} is above a tuning job's {_MOST_TRIALS}: lower it")
    request: dict[str, Any] = {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobConfig": _config(tuning),
        "TrainingJobDefinition": _definition(training, name),
    }
    if tuning.parents:
        parents = [{"HyperParameterTuningJobName": parent} for parent in tuning.parents]
        # Another command line is another algorithm to SageMaker, so that the identical kind would be refused.
        request["WarmStartConfig"] = {
            "ParentHyperParameterTuningJobs": parents,
            "WarmStartType": "TransferLearning",
        }
    if "Tags" in training:
        request["Tags"] = training["Tags"]
    request = merge(request, tuning.extra)
    check_request(request, "CreateHyperParameterTuningJob", setting="hparams_search.request")
    return request


def _config(tuning: Tuning) -> dict[str, Any]:
    config: dict[str, Any] = {
        "Strategy": tuning.strategy,
        "HyperParameterTuningJobObjective": {"Type": tuning.direction, "MetricName": tuning.metric},
        "ResourceLimits": {
            "MaxNumberOfTrainingJobs": tuning.trials,
            "MaxParallelTrainingJobs": min(tuning.at_once, tuning.trials, _MOST_AT_ONCE),
        },
        "ParameterRanges": {kind: list(ranges) for kind, ranges in tuning.ranges.items() if ranges},
        "TrainingJobEarlyStoppingType": "Auto" if tuning.early_stopping else "Off",
    }
    if tuning.strategy == "Hyperband":
        # A job that reaches the largest resource is stopped: one more than it has lets it end by itself.
        config["StrategyConfig"] = {"HyperbandStrategyConfig": {"MinResource": 1, "MaxResource": tuning.epochs + 1}}
    if tuning.strategy != "Grid":
        config["RandomSeed"] = tuning.seed % _SEEDS
    return config


def _definition(training: Mapping[str, Any], name: str) -> dict[str, Any]:
    definition = {key: value for key, value in training.items() if key not in _NOT_IN_DEFINITION}
    known = service_model().operation_model("CreateHyperParameterTuningJob").input_shape
    for key in definition:
        if key not in known.members["TrainingJobDefinition"].members:
            asked = _ASKED_BY.get(key, f"launcher.request.{key}")
            raise ConfigError(
                f"{asked} is not available to the trials of a tuning job: leave it out, or use hparams_search=optuna"
            )
    definition["StaticHyperParameters"] = training["HyperParameters"]
    folder = training["OutputDataConfig"]["S3OutputPath"].rstrip("/")
    # Each trial has its own folder below it (see bincounter.cloud.container).
    definition["CheckpointConfig"] = {**training["CheckpointConfig"], "S3Uri": f"{folder}/{name}/checkpoints"}
    return definition


def _refuse_reserved(extra: Mapping[str, Any]) -> None:
    for path, setting in _RESERVED_PARAMETERS.items():
        if look_up(extra, path) is not None:
            raise ConfigError(f"hparams_search.request.{path} has its own setting: use {setting}")
