"""Training container: its folders, its hosts, DDP over the hosts."""

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import LightningEnvironment

from bincounter.errors import ConfigError


def base_folder() -> Path:
    """Return the base folder: ``/opt/ml``, or its place in a rehearsal."""
    return Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))


def read_input_config(base: Path, name: str) -> Mapping[str, Any]:
    """Read a file of ``input/config``; empty where it is missing.

    Args:
        base: of the container.
        name: ``hyperparameters``, ``inputdataconfig`` or ``resourceconfig``.
    """
    path = base / "input" / "config" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def run_folder(base: Path) -> Path:
    """Folder of the run. SageMaker copies it to S3, and back when an interrupted job starts again.

    The training jobs of a tuning job may share one place in S3, so each has its own folder there.

    Raises:
        ConfigError: this is such a job, and its name is not in the environment.
    """
    if "_tuning_objective_metric" not in read_input_config(base, "hyperparameters"):
        return base / "checkpoints"
    name = os.environ.get("TRAINING_JOB_NAME")
    if not name:
        raise ConfigError(
            "TRAINING_JOB_NAME is not set, and without it the training jobs of a tuning job would share one folder: "
            "use an image in which SageMaker's training toolkit runs the job"
        )
    return base / "checkpoints" / name


def channel(base: Path) -> Path | None:
    """Folder of the input channel with the photos, if there is one: ``bins``, or the only channel.

    Raises:
        ConfigError: there are several, none of them ``bins``.
    """
    names = sorted(read_input_config(base, "inputdataconfig"))
    if not names:
        return None
    if "bins" not in names and len(names) > 1:
        raise ConfigError(
            f"The job has the input channels {', '.join(names)}: name the one with the photos bins, or use only one"
        )
    return base / "input" / "data" / ("bins" if "bins" in names else names[0])


@dataclass(frozen=True)
class Instances:
    """Instances of a job.

    Attributes:
        hosts: their names, sorted, so that ranks are the same on all of them.
        rank: number of this instance, from 0.
        interface: network interface between them, if it is named.
    """

    hosts: tuple[str, ...]
    rank: int
    interface: str | None

    @classmethod
    def read(cls, base: Path) -> "Instances":
        """Read ``resourceconfig.json``.

        Raises:
            ConfigError: it is missing, so that this is not a training job.
        """
        config = read_input_config(base, "resourceconfig")
        if not config:
            raise ConfigError(
                f"{base} has no resourceconfig.json, so this is not a SageMaker training job: resume a run of several "
                "instances with launcher.checkpoint_uri=..., or start a new one here"
            )
        hosts = tuple(sorted(config["hosts"]))
        return cls(hosts, hosts.index(config["current_host"]), config.get("network_interface_name"))


class SageMakerEnvironment(LightningEnvironment):
    """Lightning's cluster environment over the instances of a training job; each starts its own processes.

    Raises:
        ConfigError: this is not a training job.
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
        """Port of a job, the same on all instances; a rehearsal has several jobs on one machine."""
        job = os.environ.get("TRAINING_JOB_NAME", "")
        # Below the ports that systems assign themselves.
        return int(os.environ.get("MASTER_PORT", 12_000 + zlib.crc32(job.encode()) % 20_000))

    def node_rank(self) -> int:
        """Number of this instance, from 0."""
        return self._instances.rank
