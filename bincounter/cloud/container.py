"""Inside a training container: its folders, its hosts, DDP over them."""

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
    """``/opt/ml``, or where a rehearsal has it."""
    return Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))


def described(base: Path, name: str) -> Mapping[str, Any]:
    """One of the files in ``input/config``; nothing where there is none.

    Args:
        base: of the container.
        name: ``hyperparameters``, ``inputdataconfig`` or ``resourceconfig``.
    """
    path = base / "input" / "config" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def run_folder(base: Path) -> Path:
    """Where the run is kept; SageMaker brings it to S3, and back when an interrupted job starts anew.

    The training jobs of a tuning job may all be given one place in S3, so each has a folder of its own there.

    Raises:
        ConfigError: this is one of them, and its name is not in the environment.
    """
    if "_tuning_objective_metric" not in described(base, "hyperparameters"):
        return base / "checkpoints"
    name = os.environ.get("TRAINING_JOB_NAME")
    if not name:
        raise ConfigError(
            "TRAINING_JOB_NAME is not set, so the folder of this training job cannot be told from those of the others "
            "of its tuning job: use an image in which SageMaker's training toolkit runs the job"
        )
    return base / "checkpoints" / name


def channel(base: Path) -> Path | None:
    """The folder that holds the photos, if they came by a channel: that called ``bins``, or the only one.

    Raises:
        ConfigError: there are several, and none is called ``bins``.
    """
    names = sorted(described(base, "inputdataconfig"))
    if not names:
        return None
    if "bins" not in names and len(names) > 1:
        raise ConfigError(
            f"the job has the input channels {', '.join(names)}: call the one with the photos bins, or give only one"
        )
    return base / "input" / "data" / ("bins" if "bins" in names else names[0])


@dataclass(frozen=True)
class Instances:
    """The instances of a job.

    Attributes:
        hosts: their names, sorted, so that all of them count alike.
        rank: this one's number, from 0.
        interface: the network interface that joins them, if it is named.
    """

    hosts: tuple[str, ...]
    rank: int
    interface: str | None

    @classmethod
    def read(cls, base: Path) -> "Instances":
        """From ``resourceconfig.json``.

        Raises:
            ConfigError: there is none, so that this is no training job.
        """
        config = described(base, "resourceconfig")
        if not config:
            raise ConfigError(
                f"there is no resourceconfig.json under {base}, so this is no SageMaker training job: go on with a run "
                "of several instances by launcher.checkpoint_uri=..., or start a new one here"
            )
        hosts = tuple(sorted(config["hosts"]))
        return cls(hosts, hosts.index(config["current_host"]), config.get("network_interface_name"))


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
