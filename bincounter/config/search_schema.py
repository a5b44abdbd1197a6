"""Settings of a hyperparameter search, and their rules."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bincounter.config.checks import bounded, check_target, metric_mode, open_mapping, path_setting
from bincounter.errors import ConfigError

_MOST_PARENTS = 5  # of a tuning job
_NO_STUDY_NAME = "also names a folder: use letters, digits, dots, - and _"
STRATEGIES = ("Bayesian", "Random", "Hyperband", "Grid")


@dataclass
class SearchConfig:
    """Settings of every search."""

    space: dict[str, str] = open_mapping()  # searched settings, each with its interval, choice or range
    n_trials: int = bounded(20, ge=1)  # trials in total, those of earlier starts included
    # name of the search and its folder; null: from task_name and a digest of the search, so that a command resumes
    study_name: str | None = bounded(None, pattern=r"[A-Za-z0-9][A-Za-z0-9._-]*", hint=_NO_STUDY_NAME)
    warm_start: list[str] = path_setting([])  # folders of past searches, or names of tuning jobs, to learn from
    retrain_best: bool = False  # train the best values again at the end, and score the test photos


@dataclass
class OptunaConfig(SearchConfig):
    """Optuna chooses values; any launcher runs the trials."""

    n_jobs: int = bounded(1, ge=1)  # trials chosen and launched together
    storage: str | None = path_setting(None)  # URL of Optuna's storage; null: an SQLite file in the sweep's folder
    metrics: list[str] = field(default_factory=list)  # validation metrics to optimise; empty: optimized_metric alone
    sampler: Any = None  # a group of its own, hparams_search/sampler
    pruner: Any = None  # a group of its own, hparams_search/pruner
    max_failure_rate: float = bounded(0.5, ge=0, le=1)  # share of failed trials above which the search ends
    trial: int | None = None  # number of the trial; set by the sweeper, not by you


@dataclass
class TunerConfig(SearchConfig):
    """SageMaker chooses values and runs the trials: one hyperparameter tuning job."""

    # SageMaker's way to choose values
    strategy: str = bounded("Bayesian", choices=STRATEGIES)
    early_stopping: bool = False  # let SageMaker stop trials that are unlikely to win
    request: dict[str, Any] = open_mapping()  # further parameters of CreateHyperParameterTuningJob, by AWS's names


def check_search(search: Mapping[str, Any]) -> None:
    """Check the settings of a search; the space is read by the sweeper (bincounter.sweep.search_space).

    Args:
        search: ``hparams_search`` as plain containers.

    Raises:
        ConfigError: the first error.
    """
    if "strategy" in search:
        _tuner(search)
    else:
        _optuna(search)


def _tuner(search: Mapping[str, Any]) -> None:
    for name in search["warm_start"]:
        if not re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,31}", name):
            raise ConfigError(
                f"hparams_search.warm_start={name} is not the name of a tuning job: take it from a sweep's tuning.json"
            )
    if len(search["warm_start"]) > _MOST_PARENTS:
        raise ConfigError(f"hparams_search.warm_start names more than {_MOST_PARENTS} tuning jobs: name fewer")
    if search["early_stopping"] and search["strategy"] == "Hyperband":
        raise ConfigError(
            "hparams_search.strategy=Hyperband stops trials by itself: leave hparams_search.early_stopping out"
        )


def _optuna(search: Mapping[str, Any]) -> None:
    for metric in search["metrics"]:
        metric_mode(metric, key="hparams_search.metrics")
    if len(set(search["metrics"])) < len(search["metrics"]):
        raise ConfigError(f"hparams_search.metrics={search['metrics']} names a metric twice: name each once")
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError("hparams_search=optuna needs Optuna: pip install 'bincounter[sweep]'") from None
    check_target("hparams_search.sampler", search["sampler"], given=("search_space",))
    if search["pruner"]:
        check_target("hparams_search.pruner", search["pruner"], given=("max_resource",))
        if len(search["metrics"]) > 1:
            raise ConfigError(
                f"hparams_search.pruner ends trials by one metric, and hparams_search.metrics names "
                f"{len(search['metrics'])}: leave one of the two out"
            )
