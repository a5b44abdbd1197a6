"""Settings of a search: which values are tried, how often, and by whom they are chosen."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig


def _open() -> Any:
    """A mapping that takes new keys without Hydra's ``+``."""
    return DictConfig({}, flags={"struct": False})


@dataclass
class SearchConfig:
    """What every search has."""

    space: dict[str, str] = field(default_factory=_open)  # key of the configuration -> interval, choice or range
    n_trials: int = 20  # in all, those of earlier starts of the same search included
    study_name: str | None = None  # null: from task_name and a digest of what is searched, so that a command goes on
    warm_start: list[str] = field(default_factory=list)  # past searches to learn from
    retrain_best: bool = False  # train the best values once more at the end, and score them on the test photos


@dataclass
class OptunaConfig(SearchConfig):
    """Optuna chooses; whatever launcher there is carries the trials out."""

    n_jobs: int = 1  # trials chosen and launched together
    storage: str | None = None  # any URL that Optuna takes; null: an SQLite file in the sweep's folder
    metrics: list[str] = field(default_factory=list)  # objectives; empty: optimized_metric alone
    sampler: Any = None  # open: an optuna sampler, a group of its own: hparams_search/sampler=tpe|random|grid|...
    pruner: Any = None  # open: an optuna pruner, a group of its own: hparams_search/pruner=none|median|hyperband
    max_failure_rate: float = 0.5  # share of failed trials above which the search ends
    trial: int | None = None  # set by the sweeper for each job: its number in the study


@dataclass
class TunerConfig(SearchConfig):
    """SageMaker chooses and carries out: one hyperparameter tuning job."""

    strategy: str = "Bayesian"  # Bayesian | Random | Hyperband | Grid
    early_stopping: bool = False  # SageMaker stops trials that promise little
    request: dict[str, Any] = field(default_factory=_open)  # merged into CreateHyperParameterTuningJob
