"""The two Hydra sweepers: Optuna and SageMaker's tuner.

Hydra imports this module at the start of every app of the environment, so heavy imports are inside functions.
"""

import logging
import sys
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from bincounter.config.search_schema import OptunaConfig, SearchConfig, TunerConfig
from bincounter.errors import ConfigError

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher

    from bincounter.sweep.search_plan import Plan


class _SearchSweeper(Sweeper):
    """Sweeper of ``bincounter train``, with the settings of ``hparams_search``."""

    _option: str  # of hydra/sweeper
    _search: str  # option of hparams_search that chooses it
    _schema: type[SearchConfig]  # of that option
    _context: HydraContext
    _config: DictConfig
    _launcher: "Launcher"

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context and create the launcher."""
        from hydra.core.plugins import Plugins

        from bincounter.sweep.trials import RecordedTask

        self._context, self._config = hydra_context, config
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=RecordedTask(task_function), config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the search to its end.

        Raises:
            ConfigError: a wrong setting or space.
            ResourceError: the search failed.
            Interrupted: Ctrl-C.
        """
        if not logging.getLogger().hasHandlers():  # Hydra configures logging for each job, not for the sweeper
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
            logging.getLogger("botocore").setLevel(logging.WARNING)
        if OmegaConf.get_type(self._config.get("hparams_search")) is not self._schema:
            raise ConfigError(f"hydra/sweeper={self._option} is set by hparams_search={self._search}: write that")
        from bincounter.sweep.search_plan import read_plan

        self._run(read_plan(self._config, arguments, self._context.config_loader))

    @abstractmethod
    def _run(self, plan: "Plan") -> None:
        """Run a search whose plan was checked."""


@dataclass
class OptunaPlugin:
    """Schema of ``hydra/sweeper=bincounter_optuna``; the ``hparams_search`` group has the settings."""

    _target_: str = "hydra_plugins.bincounter.OptunaSweeper"


class OptunaSweeper(_SearchSweeper):
    """Sweeper that runs jobs with values chosen by an Optuna study."""

    _option, _search, _schema = "bincounter_optuna", "optuna", OptunaConfig

    def _run(self, plan: "Plan") -> None:
        from bincounter.sweep.optuna_search import search  # after the plan, whose errors come sooner without it

        search(plan, self._launcher)


@dataclass
class TunerPlugin:
    """Schema of ``hydra/sweeper=bincounter_tuner``; the ``hparams_search`` group has the settings."""

    _target_: str = "hydra_plugins.bincounter.TunerSweeper"


class TunerSweeper(_SearchSweeper):
    """Sweeper that runs one hyperparameter tuning job on SageMaker."""

    _option, _search, _schema = "bincounter_tuner", "sagemaker_tuner", TunerConfig

    def _run(self, plan: "Plan") -> None:
        if plan.local:
            raise ConfigError(
                "hparams_search=sagemaker_tuner runs on SageMaker: remove launcher=local, or use "
                "hparams_search=optuna, which searches on this machine"
            )
        from bincounter.sweep.tuner_search import search

        search(plan, self._config, self._context.config_loader, self._launcher)
