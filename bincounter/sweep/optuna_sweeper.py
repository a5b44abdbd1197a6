"""The Hydra sweeper in which Optuna chooses; hydra_plugins/bincounter registers it.

Hydra imports this module at the start of every app of the environment, so that everything heavy is imported on use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class OptunaPlugin:
    """``hydra/sweeper=bincounter_optuna``; settings are those of the ``hparams_search`` group."""

    _target_: str = "hydra_plugins.bincounter.OptunaSweeper"
    settings: Any = "${hparams_search}"


class OptunaSweeper(Sweeper):
    """Asks an Optuna study for values, has the launcher try them, and tells the study what came of it."""

    def __init__(self, settings: DictConfig) -> None:
        self._settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what Hydra hands every sweeper."""
        raise NotImplementedError

    def sweep(self, arguments: list[str]) -> Any:
        """Search until there are ``n_trials``."""
        raise NotImplementedError


_ = Sequence
