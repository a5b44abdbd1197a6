"""Registers bincounter's launcher and sweepers with Hydra; their code is in bincounter/cloud and bincounter/sweep."""

from hydra.core.config_store import ConfigStore

from bincounter.cloud import sagemaker_launcher
from bincounter.sweep import sweepers


# Hydra finds plug-ins in hydra_plugins only.
class SageMakerLauncher(sagemaker_launcher.SageMakerLauncher):
    """See bincounter.cloud.sagemaker_launcher."""


class OptunaSweeper(sweepers.OptunaSweeper):
    """See bincounter.sweep.sweepers."""


class TunerSweeper(sweepers.TunerSweeper):
    """See bincounter.sweep.sweepers."""


for group, name, node in (
    ("launcher", "bincounter", sagemaker_launcher.LauncherPlugin),
    ("sweeper", "bincounter_optuna", sweepers.OptunaPlugin),
    ("sweeper", "bincounter_tuner", sweepers.TunerPlugin),
):
    ConfigStore.instance().store(group=f"hydra/{group}", name=name, node=node, provider="bincounter")
