"""The Hydra sweeper in which SageMaker chooses and carries out; hydra_plugins/bincounter registers it.

Hydra imports this module at the start of every app of the environment, so that everything heavy is imported on use.
"""

import logging
import sys
from dataclasses import dataclass
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from bincounter.config.search import TunerConfig
from bincounter.errors import ConfigError


@dataclass
class TunerPlugin:
    """``hydra/sweeper=bincounter_tuner``; settings are those of the ``hparams_search`` group."""

    _target_: str = "hydra_plugins.bincounter.TunerSweeper"
    settings: Any = "${hparams_search}"


class TunerSweeper(Sweeper):
    """Has SageMaker search: one hyperparameter tuning job.

    Args:
        settings: see :class:`bincounter.config.search.TunerConfig`.
    """

    def __init__(self, settings: DictConfig) -> None:
        self._settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what Hydra hands every sweeper."""
        from hydra.core.plugins import Plugins

        self._context, self._config = hydra_context, config
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Search until the tuning job has ended.

        Raises:
            BinCounterError: the search is wrong, the tuning job failed, or Ctrl-C left it to itself.
        """
        if not logging.getLogger().hasHandlers():  # Hydra sets logging up for each job, not for the search
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
            logging.getLogger("botocore").setLevel(logging.WARNING)
        if OmegaConf.get_type(self._config, "hparams_search") is not TunerConfig:
            raise ConfigError("hydra/sweeper=bincounter_tuner is chosen by hparams_search=sagemaker_tuner: say that")
        from bincounter.sweep.plan import read_plan

        plan = read_plan(self._config, self._settings, arguments, self._context.config_loader)
        if plan.here:
            raise ConfigError(
                "hparams_search=sagemaker_tuner runs at SageMaker: leave launcher=local out, or use "
                "hparams_search=optuna, which searches here"
            )
        if self._config.launcher.checkpoint_uri is not None:
            raise ConfigError("launcher.checkpoint_uri keeps one run, and a search has many: leave it out")
        from bincounter.sweep.tuner_search import search

        search(plan, self._config, self._context.config_loader, self._launcher)
