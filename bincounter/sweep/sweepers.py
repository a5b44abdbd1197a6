"""The two Hydra sweepers.

Hydra imports this module at the start of every app of the environment, so that everything heavy is imported on use.

Hydra imports this module at the start of every app of the environment, so that everything heavy is imported on use.
"""

import logging
import sys
from dataclasses import dataclass, field
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from bincounter.config.search_schema import OptunaConfig, TunerConfig
from bincounter.errors import BinCounterError, ConfigError


@dataclass
class OptunaPlugin:
    """``hydra/sweeper=bincounter_optuna``, for any Hydra app; train.py has its settings under ``hparams_search``."""

    _target_: str = "hydra_plugins.bincounter.OptunaSweeper"
    _recursive_: bool = False  # samplers are made trial by trial
    settings: OptunaConfig = field(default_factory=OptunaConfig)


class OptunaSweeper(Sweeper):
    """Asks an Optuna study for values, has the launcher try them, and tells the study what came of it.

    Args:
        settings: see :class:`bincounter.config.search_schema.OptunaConfig`.
    """

    def __init__(self, settings: DictConfig) -> None:
        self._settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what Hydra hands every sweeper."""
        from hydra.core.plugins import Plugins

        from bincounter.sweep.trials import RecordedTask

        self._context, self._config = hydra_context, config
        kind = OmegaConf.get_type(config, "hparams_search") if "hparams_search" in config else None
        self._own = kind is OptunaConfig
        if self._own:
            self._settings = config.hparams_search
        _hide_storage(config)
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=RecordedTask(task_function), config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Search until there are ``n_trials``.

        Raises:
            BinCounterError: in train.py, whose command line answers it; other apps end with its sentence.
        """
        if not logging.getLogger().hasHandlers():  # Hydra sets logging up for each job, not for the search
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        try:
            self._search(arguments)
        except BinCounterError as error:
            if self._own:
                raise
            print(f"Error: {error}", file=sys.stderr)
            raise SystemExit(error.exit_code) from None

    def _search(self, arguments: list[str]) -> None:
        from bincounter.sweep.search_plan import read_plan

        plan = read_plan(self._config, self._settings, arguments, self._context.config_loader)
        from bincounter.sweep.optuna_search import search  # only now: wrong spaces are refused quickly

        search(plan, self._launcher)


def _hide_storage(config: DictConfig) -> None:
    """Keep a database's URL, which may hold a password, out of what Hydra writes down of every job."""
    overrides = config.hydra.overrides.hydra
    with read_write(config), open_dict(config):
        config.hydra.overrides.hydra = [
            each for each in overrides if not each.startswith("hydra.sweeper.settings.storage=")
        ]


@dataclass
class TunerPlugin:
    """``hydra/sweeper=bincounter_tuner``; settings are those of the ``hparams_search`` group."""

    _target_: str = "hydra_plugins.bincounter.TunerSweeper"
    settings: Any = "${hparams_search}"


class TunerSweeper(Sweeper):
    """Has SageMaker search: one hyperparameter tuning job.

    Args:
        settings: see :class:`bincounter.config.search_schema.TunerConfig`.
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
        from bincounter.sweep.search_plan import read_plan

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
