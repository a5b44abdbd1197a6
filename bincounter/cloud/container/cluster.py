"""DDP over the instances of a training job."""

import os
import zlib

from lightning.fabric.plugins.environments import LightningEnvironment

from bincounter.cloud.container.instance import Instances, base_folder


class SageMakerEnvironment(LightningEnvironment):
    """Tells Lightning which instance this is and where the first one is; each starts its own further processes.

    Raises:
        ConfigError: this is no training job.
    """

    def __init__(self) -> None:
        super().__init__()
        self._instances = Instances.read(base_folder())

    @property
    def main_address(self) -> str:
        """Name of the first instance."""
        return self._instances.hosts[0]

    @property
    def main_port(self) -> int:
        """The same on all instances, and another one for each job, since a rehearsal has several on one machine."""
        job = os.environ.get("TRAINING_JOB_NAME", "")
        # Below what systems deal out by themselves.
        return int(os.environ.get("MASTER_PORT", 12_000 + zlib.crc32(job.encode()) % 20_000))

    def node_rank(self) -> int:
        """Number of this instance, from 0."""
        return self._instances.rank
