"""What a launch would do, job by job: composed, validated, and written as requests before anything is sent."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict

from bincounter.cloud.hyperparameters import decode, encode
from bincounter.cloud.instances import gpus
from bincounter.cloud.jobs import RECORD
from bincounter.config.overrides import HERE, without
from bincounter.config.validate import validate
from bincounter.data.s3.address import is_remote
from bincounter.errors import ConfigError
from bincounter.redaction import masked_argument
from bincounter.training.run_folder import SHIPPED, commit

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader

log = logging.getLogger(__name__)

_NOT_SHIPPED = (*HERE, "paths")
_A_RUN = (RECORD, "checkpoints/last.ckpt", "checkpoints/best.ckpt")
_IDS = "ids"  # folder in the archive that an id list is shipped in
_EXTRAS = ("mlflow", "wandb")  # loggers that are extras of the package


@dataclass
class Planned:
    """One job of a launch.

    Attributes:
        number: in the multirun.
        overrides: as the sweeper gave them.
        of_search: whether a search launches it, of which an earlier, killed command may have filled the folder.
        config: what they compose, Hydra's part included.
        folder: of the run, on this machine.
        shipped: the overrides that the container recomposes.
        source: where the photos are: an ``s3://`` URI, a local folder to upload first, or ``None``.
        channel: whether SageMaker hands the photos over; the run fetches them by itself otherwise.
        extra: files to ship beside what git tracks.
        loggers: extras of the package that the run needs.
        checkpoint_uri: of a run to go on with, other than ``launcher.checkpoint_uri``.
        debugger: settings as plain containers.
        profiler: the same.
    """

    number: int
    overrides: list[str]
    config: DictConfig
    folder: Path
    shipped: list[str] = field(default_factory=list)
    source: str | None = None
    channel: bool = False
    extra: dict[str, bytes] = field(default_factory=dict)
    loggers: list[str] = field(default_factory=list)
    of_search: bool = False
    checkpoint_uri: str | None = None
    debugger: dict[str, Any] = field(default_factory=dict)
    profiler: dict[str, Any] = field(default_factory=dict)

    @property
    def local_source(self) -> Path | None:
        """The folder to upload before the job can start."""
        return Path(self.source) if self.source and not is_remote(self.source) else None

    def ship_source(self, uri: str) -> None:
        """Name the photos' place in a bucket instead of a folder of this machine."""
        self.source = uri
        self.shipped = [*without(self.shipped, "data.source"), f"data.source={uri}"]


def compose(loader: "ConfigLoader", config: DictConfig, overrides: Sequence[str], number: int) -> Planned:
    """One job as Hydra composes it."""
    sweep = loader.load_sweep_config(config, list(overrides))
    trial = OmegaConf.select(sweep, "hparams_search.trial", default=None)
    if trial is not None:
        number = trial  # whatever place it has in its batch
    with open_dict(sweep):
        sweep.hydra.job.id = sweep.hydra.job.num = number
    folder = Path(sweep.hydra.sweep.dir) / str(sweep.hydra.sweep.subdir)
    return Planned(number, list(overrides), sweep, folder)


def task_config(planned: Planned) -> DictConfig:
    """The job's configuration without Hydra's part."""
    cfg = planned.config.copy()
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def refuse_what_is_not_shipped(config: DictConfig) -> None:
    """Refuse configuration files that no checkout of the repository holds.

    Raises:
        ConfigError: naming the folder.
    """
    for source in config.hydra.runtime.config_sources:
        if source.provider in ("command-line", "hydra.searchpath in main"):
            raise ConfigError(
                f"the configuration in {source.path} would be missing over there: move it to conf/ and git add it"
            )


def plan_run(planned: Planned, loader: "ConfigLoader", config: DictConfig) -> None:
    """Validate a run and settle what is shipped for it.

    Raises:
        ConfigError: the run cannot be carried out by a training job.
    """
    cfg = task_config(planned)
    _refuse_secrets(planned.overrides)
    validate(cfg)
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    _check_devices(plain)
    planned.extra[SHIPPED] = json.dumps(commit()).encode()
    planned.source = plain["data"]["source"]
    planned.shipped = without(planned.overrides, *_NOT_SHIPPED)
    planned.debugger, planned.profiler = plain["debugger"], plain["profiler"]
    planned.loggers = [name for name in _EXTRAS if (plain["logger"] or {}).get(name)]
    ids = plain["data"]["layout"].get("ids")
    if isinstance(ids, str) and not is_remote(ids):
        _ship_ids(planned, Path(ids))
    # An id list names a few of a million objects: the run fetches those alone.
    planned.channel = planned.source is not None and not ids
    _check_recomposition(planned, cfg, loader, config)


def check_together(planned: Sequence[Planned], settings: Mapping[str, Any]) -> None:
    """Refuse jobs that would get into each other's way, or that the launch cannot give what they ask for.

    Args:
        planned: the jobs of one launch.
        settings: the launch's ``launcher``.

    Raises:
        ConfigError: the first thing that is wrong.
    """
    if len({one.folder for one in planned}) < len(planned):
        raise ConfigError(f"{len(planned)} jobs would share the folder {planned[0].folder}: add -m for a sweep")
    if len(planned) > 1 and settings["checkpoint_uri"]:
        raise ConfigError(
            f"launcher.checkpoint_uri={settings['checkpoint_uri']} keeps one run, not {len(planned)}: leave "
            "it out, so that each job has a folder of its own"
        )
    if not settings["wait"] and len(planned) > settings["max_parallel_jobs"]:
        raise ConfigError(
            f"launcher.wait=false starts all {len(planned)} jobs at once, and launcher.max_parallel_jobs is "
            f"{settings['max_parallel_jobs']}: raise it, or drop wait"
        )
    for one in planned:
        own = OmegaConf.to_container(one.config.launcher, resolve=True)
        different = [key for key in settings if own[key] != settings[key]]  # type: ignore[call-overload,index]
        if different:
            raise ConfigError(f"launcher.{different[0]} is one for all jobs of a launch: start one for each value")
        taken = [name for name in _A_RUN if (one.folder / name).exists() and not one.of_search]
        if taken:
            raise ConfigError(f"{one.folder} already holds a run ({taken[0]}): name another paths.output_dir")


def _check_devices(plain: Mapping[str, Any]) -> None:
    """A GPU run needs an instance with as many."""
    launcher, trainer = plain["launcher"], plain["trainer"]
    there = gpus(launcher["instance_type"])
    if there is None:
        return
    if trainer["accelerator"] in ("gpu", "cuda") and there == 0:
        raise ConfigError(
            f"launcher.instance_type={launcher['instance_type']} has no GPU and trainer.accelerator is "
            f"{trainer['accelerator']}: use trainer=cpu, or an instance with one, such as ml.g5.xlarge"
        )
    devices = trainer.get("devices")
    if isinstance(devices, int) and there and devices > there:
        raise ConfigError(
            f"trainer.devices={devices} is more than the {there} of launcher.instance_type="
            f"{launcher['instance_type']}: use a larger instance"
        )
    if trainer["accelerator"] != "cpu" and isinstance(devices, int) and devices < there:
        log.warning(
            "%s has %d GPUs and trainer.devices=%d uses fewer: use trainer=ddp.",
            launcher["instance_type"],
            there,
            devices,
        )
    if trainer["accelerator"] == "cpu" and there:
        log.warning("trainer=cpu leaves the GPU of %s idle: use trainer=gpu.", launcher["instance_type"])


def _ship_ids(planned: Planned, path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"data.layout.ids={path} is no file: name the id list, as in data.layout.ids=file_list.json")
    name = f"{_IDS}/{path.name}"
    planned.extra[name] = path.read_bytes()
    planned.shipped = [*without(planned.shipped, "data.layout.ids"), f"data.layout.ids='{name}'"]


def _refuse_secrets(overrides: Sequence[str]) -> None:
    """Whoever may describe a job reads its request; what stands in files is searched when they are packed."""
    named = [override.partition("=")[0] for override in overrides if masked_argument(override) != override]
    if named:
        raise ConfigError(
            f"{named[0]} looks like a secret, and a job's request can be read by whoever may describe it: leave it "
            "out, and let the job read it by its role (AWS Secrets Manager), or use logger=csv"
        )


def _check_recomposition(planned: Planned, cfg: DictConfig, loader: "ConfigLoader", config: DictConfig) -> None:
    """What the container will compose from the hyperparameters has to be what was composed here."""
    shipped = [*decode(encode(planned.shipped)), "launcher=container"]
    there = loader.load_sweep_config(config, shipped)
    expected, found = (
        {
            str(key): value
            for key, value in OmegaConf.to_container(node, resolve=False).items()  # type: ignore[union-attr]
            if key not in (*_NOT_SHIPPED, "hydra")
        }
        for node in (cfg, there)
    )
    for node in (expected, found):
        node["data"]["layout"].pop("ids", None)  # shipped under another name
    different = [key for key in expected if expected[key] != found.get(key)]
    if different:
        raise ConfigError(
            f"{different[0]} would be another in the container: its overrides depend on their order, so write them as "
            "one (a.b={c: 1}), or put them into a file under conf/experiment"
        )
