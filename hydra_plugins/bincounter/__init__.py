"""Registers what Hydra has to know of bincounter; the code is in bincounter/cloud and bincounter/sweep."""

from hydra.core.config_store import ConfigStore

from bincounter.cloud import sagemaker_launcher
from bincounter.sweep import sweepers


# Here since Hydra takes plugins from hydra_plugins alone.
class SageMakerLauncher(sagemaker_launcher.SageMakerLauncher):
    """See bincounter.cloud.sagemaker_launcher."""


class OptunaSweeper(sweepers.OptunaSweeper):
    """See bincounter.sweep.sweepers."""


class TunerSweeper(sweepers.TunerSweeper):
    """See bincounter.sweep.sweepers."""


for group, name, node in (
    ("launcher", "bincounter", sagemaker_launcher.BinCounterPlugin),
    ("sweeper", "bincounter_optuna", sweepers.OptunaPlugin),
    ("sweeper", "bincounter_tuner", sweepers.TunerPlugin),
):
    ConfigStore.instance().store(group=f"hydra/{group}", name=name, node=node, provider="bincounter")
