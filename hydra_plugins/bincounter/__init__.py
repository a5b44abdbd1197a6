"""Registers what Hydra has to know of bincounter; the code is in bincounter/cloud and bincounter/sweep."""

from hydra.core.config_store import ConfigStore

from bincounter.cloud import launcher
from bincounter.sweep import optuna_sweeper, tuner


# Here since Hydra takes plugins from hydra_plugins alone.
class SageMakerLauncher(launcher.SageMakerLauncher):
    """See bincounter.cloud.launcher."""


class OptunaSweeper(optuna_sweeper.OptunaSweeper):
    """See bincounter.sweep.optuna_sweeper."""


class TunerSweeper(tuner.TunerSweeper):
    """See bincounter.sweep.tuner."""


for group, name, node in (
    ("launcher", "bincounter", launcher.BinCounterPlugin),
    ("launcher", "sagemaker", launcher.SageMakerPlugin),
    ("launcher", "sagemaker_rehearsal", launcher.RehearsalPlugin),
    ("sweeper", "bincounter_optuna", optuna_sweeper.OptunaPlugin),
    ("sweeper", "bincounter_tuner", tuner.TunerPlugin),
):
    ConfigStore.instance().store(group=f"hydra/{group}", name=name, node=node, provider="bincounter")
