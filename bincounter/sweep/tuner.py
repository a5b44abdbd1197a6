"""The Hydra sweeper in which SageMaker chooses and carries out; hydra_plugins/bincounter registers it.

Hydra imports this module at the start of every app of the environment, so that everything heavy is imported on use.
"""

from dataclasses import dataclass
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class TunerPlugin:
    """``hydra/sweeper=bincounter_tuner``; settings are those of the ``hparams_search`` group."""

    _target_: str = "hydra_plugins.bincounter.TunerSweeper"
    settings: Any = "${hparams_search}"


class TunerSweeper(Sweeper):
    """Has SageMaker search: one hyperparameter tuning job."""

    def __init__(self, settings: DictConfig) -> None:
        self._settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what Hydra hands every sweeper."""
        raise NotImplementedError

    def sweep(self, arguments: list[str]) -> Any:
        """Search until the tuning job has ended."""
        raise NotImplementedError
