"""Registers what Hydra has to know of bincounter; the code is in bincounter/cloud."""

from hydra.core.config_store import ConfigStore

from bincounter.cloud import launcher


class SageMakerLauncher(launcher.SageMakerLauncher):
    """Here since Hydra takes plugins from hydra_plugins alone."""


for name, node in {
    "bincounter": launcher.BinCounterPlugin,
    "sagemaker": launcher.SageMakerPlugin,
    "sagemaker_rehearsal": launcher.RehearsalPlugin,
}.items():
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="bincounter")
