"""The two Hydra sweepers: Optuna and SageMaker's tuner.

Hydra imports this module at the start of every app of the environment, so heavy imports are inside functions.
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
    """Schema of ``hydra/sweeper=bincounter_optuna``, for any Hydra app; our own has it under ``hparams_search``."""

    _target_: str = "hydra_plugins.bincounter.OptunaSweeper"
    _recursive_: bool = False  # a sampler is created for each trial
    settings: OptunaConfig = field(default_factory=OptunaConfig)


class OptunaSweeper(Sweeper):
    """Sweeper that runs jobs with values chosen by an Optuna study.

    Args:
        settings: see :class:`bincounter.config.search_schema.OptunaConfig`.
    """

    def __init__(self, settings: DictConfig) -> None:
        self._settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context and create the launcher."""
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
        """Run trials until there are ``n_trials``.

        Raises:
            BinCounterError: in ``bincounter train``, which prints it; other apps exit with its message.
        """
        from bincounter.sweep.search_plan import read_plan

        _configure_logging()
        try:
            plan = read_plan(self._config, self._settings, arguments, self._context.config_loader)
            from bincounter.sweep.optuna_search import search  # after the plan, whose errors come sooner without it

            search(plan, self._launcher)
        except BinCounterError as error:
            if self._own:
                raise
            print(f"Error: {error}", file=sys.stderr)
            raise SystemExit(error.exit_code) from None


def _configure_logging() -> None:
    if not logging.getLogger().hasHandlers():  # Hydra configures logging for each job, not for the sweeper
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        logging.getLogger("botocore").setLevel(logging.WARNING)


def _hide_storage(config: DictConfig) -> None:
    """Remove a database's URL, which may hold a password, from the files that Hydra writes for every job."""
    overrides = config.hydra.overrides.hydra
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.overrides.hydra = [
            each for each in overrides if not each.startswith("hydra.sweeper.settings.storage=")
        ]


@dataclass
class TunerPlugin:
    """Schema of ``hydra/sweeper=bincounter_tuner``; the ``hparams_search`` group has the settings."""

    _target_: str = "hydra_plugins.bincounter.TunerSweeper"
    settings: Any = "${hparams_search}"


class TunerSweeper(Sweeper):
    """Sweeper that runs one hyperparameter tuning job on SageMaker.

    Args:
        settings: see :class:`bincounter.config.search_schema.TunerConfig`.
    """

    def __init__(self, settings: DictConfig) -> None:
        self._settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context and create the launcher."""
        from hydra.core.plugins import Plugins

        self._context, self._config = hydra_context, config
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the tuning job and wait for its end.

        Raises:
            ConfigError: a wrong setting or space.
            ResourceError: the tuning job failed.
            Interrupted: Ctrl-C ended the wait.
        """
        _configure_logging()
        if OmegaConf.get_type(self._config, "hparams_search") is not TunerConfig:
            raise ConfigError("hydra/sweeper=bincounter_tuner is set by hparams_search=sagemaker_tuner: write that")
        from bincounter.sweep.search_plan import read_plan

        plan = read_plan(self._config, self._settings, arguments, self._context.config_loader)
        if plan.local:
            raise ConfigError(
                "hparams_search=sagemaker_tuner runs on SageMaker: remove launcher=local, or use "
                "hparams_search=optuna, which searches on this machine"
            )
        from bincounter.sweep.tuner_search import search

        search(plan, self._config, self._context.config_loader, self._launcher)
