"""Plan of a launch: its jobs, composed and validated before anything is sent."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict

from bincounter.cloud.hyperparameters import decode_overrides, encode_overrides
from bincounter.cloud.instances import gpu_count
from bincounter.cloud.jobs import JOB_RECORD
from bincounter.config.aws_names import is_mlflow_arn
from bincounter.config.checks import plain_of
from bincounter.config.launcher_schema import check_one_run
from bincounter.config.overrides import LAUNCH_KEYS, drop_overrides
from bincounter.config.quoting import override_of
from bincounter.config.validate import validate
from bincounter.data.s3.address import is_remote
from bincounter.errors import ConfigError
from bincounter.hub import is_hub
from bincounter.redaction import mask_argument
from bincounter.training.run_folder import COMMIT_FILE, code_commit

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader

log = logging.getLogger(__name__)

_NOT_SHIPPED = (*LAUNCH_KEYS, "paths")
_A_RUN = (JOB_RECORD, "checkpoints/last.ckpt", "checkpoints/best.ckpt")


@dataclass
class PlannedJob:
    """Job of a launch.

    Attributes:
        number: in the multirun.
        overrides: as the sweeper gave them.
        config: their composed configuration, Hydra's part included.
        folder: of the run, on this machine.
        shipped: overrides that the container composes.
        source: an ``s3://`` URI of the photos, a local folder to upload first, or ``None``.
        channel: whether SageMaker provides the photos; the run fetches them itself otherwise.
        extra: content of further files for the code archive, by their path in it.
        extras: extras of the package that the run needs.
        of_search: whether a search launches it; an earlier, killed command may have filled its folder.
        checkpoint_uri: of a run to resume, instead of ``launcher.checkpoint_uri``.
        debugger: settings as plain containers.
        profiler: settings as plain containers.
    """

    number: int
    overrides: list[str]
    config: DictConfig
    folder: Path
    shipped: list[str] = field(default_factory=list)
    source: str | None = None
    channel: bool = False
    extra: dict[str, bytes] = field(default_factory=dict)
    extras: list[str] = field(default_factory=list)
    of_search: bool = False
    checkpoint_uri: str | None = None
    debugger: dict[str, Any] = field(default_factory=dict)
    profiler: dict[str, Any] = field(default_factory=dict)

    @property
    def of_trial(self) -> bool:
        """Return True for a trial of an Optuna study, False for the retraining of its best one."""
        return OmegaConf.select(self.config, "hparams_search.trial", default=None) is not None

    @property
    def local_source(self) -> Path | None:
        """Return the folder to upload before the job can start."""
        return Path(self.source) if self.source and not is_remote(self.source) else None

    def ship_source(self, uri: str) -> None:
        """Replace the local folder of the photos by its address in a bucket."""
        self.source = uri
        self.shipped = [*drop_overrides(self.shipped, "data.source"), override_of("data.source", uri)]


def compose_job(loader: "ConfigLoader", config: DictConfig, overrides: Sequence[str], number: int) -> PlannedJob:
    """Compose one job."""
    sweep = loader.load_sweep_config(config, list(overrides))
    trial = OmegaConf.select(sweep, "hparams_search.trial", default=None)
    if trial is not None:
        number = trial  # instead of its place in the batch
    with open_dict(sweep):
        sweep.hydra.job.id = sweep.hydra.job.num = number
    folder = Path(sweep.hydra.sweep.dir) / str(sweep.hydra.sweep.subdir)
    return PlannedJob(number, list(overrides), sweep, folder)


def task_config(planned: PlannedJob) -> DictConfig:
    """Return the job's configuration without Hydra's part."""
    cfg = planned.config.copy()
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def check_config_is_tracked(config: DictConfig) -> None:
    """Check that no configuration file is outside the code archive.

    Raises:
        ConfigError: a folder of the search path is.
    """
    for source in config.hydra.runtime.config_sources:
        if source.provider == "command-line" or source.provider.startswith("hydra.searchpath"):
            raise ConfigError(
                f"The configuration in {source.path} would be missing in the container: move it to conf/ of a checkout "
                "and git add it"
            )


def plan_run(planned: PlannedJob, loader: "ConfigLoader", config: DictConfig) -> None:
    """Validate a run and complete its plan.

    Raises:
        ConfigError: it cannot run as a training job.
    """
    cfg = task_config(planned)
    _refuse_secrets(planned.overrides)
    validate(cfg)
    plain = plain_of(cfg)
    _check_devices(plain)
    planned.extra[COMMIT_FILE] = json.dumps(code_commit()).encode()
    planned.source = plain["data"]["source"]
    planned.shipped = drop_overrides(planned.overrides, *_NOT_SHIPPED)
    planned.debugger, planned.profiler = plain["debugger"], plain["profiler"]
    planned.extras = needed_extras(plain)
    ids = plain["data"]["layout"].get("ids")
    if isinstance(ids, str) and not is_remote(ids):
        _ship_file(planned, "data.layout.ids", Path(ids))
    if plain["data"]["corrections"] is not None:
        _ship_file(planned, "data.corrections", Path(plain["data"]["corrections"]))
    # An id list names a few of a million objects: the run fetches them itself.
    planned.channel = planned.source is not None and not ids
    _check_recomposition(planned, cfg, loader, config)


def needed_extras(plain: Mapping[str, Any]) -> list[str]:
    """Return the extras of the package that a run imports.

    Args:
        plain: its configuration, as plain containers.
    """
    loggers, model = plain["logger"] or {}, plain["model"]
    needed = {
        **{name: bool(loggers.get(name)) for name in ("mlflow", "wandb")},
        "sagemaker-mlflow": any(is_mlflow_arn((node or {}).get("tracking_uri")) for node in loggers.values()),
        "timm": ".timm_backbones." in model["backbone"]["_target_"],
        "weights": model["weights"] == "package",
        "hub": is_hub(model["weights"]),
    }
    return [name for name, is_needed in needed.items() if is_needed]


def check_together(planned: Sequence[PlannedJob], settings: Mapping[str, Any], *, before: int = 0) -> None:
    """Check that the jobs of a launch do not conflict.

    Args:
        planned: the jobs.
        settings: ``launcher`` of the launch.
        before: number of jobs in earlier launches of the same sweep.

    Raises:
        ConfigError: jobs share a folder, differ in launcher settings, or are too many at a time.
    """
    if len({one.folder for one in planned}) < len(planned):
        raise ConfigError(f"{len(planned)} jobs would share the folder {planned[0].folder}: add -m for a sweep")
    check_one_run(settings, before + len(planned))
    if not settings["wait"] and len(planned) > settings["max_parallel_jobs"]:
        raise ConfigError(
            f"launcher.wait=false starts all {len(planned)} jobs at once, and launcher.max_parallel_jobs is "
            f"{settings['max_parallel_jobs']}: raise it, or remove launcher.wait"
        )
    for one in planned:
        own = OmegaConf.to_container(one.config.launcher, resolve=True)
        different = [key for key in settings if own[key] != settings[key]]  # type: ignore[call-overload,index]
        if different:
            raise ConfigError(f"launcher.{different[0]} is one for all jobs of a launch: start a launch for each value")
        taken = [name for name in _A_RUN if (one.folder / name).exists() and not one.of_search]
        if taken:
            raise ConfigError(f"{one.folder} already holds a run ({taken[0]}): name another paths.output_dir")


def _check_devices(plain: Mapping[str, Any]) -> None:
    """Check that the instance has the GPUs that the run uses."""
    launcher, trainer = plain["launcher"], plain["trainer"]
    available = gpu_count(launcher["instance_type"])
    if available is None:
        return
    if trainer["accelerator"] in ("gpu", "cuda") and available == 0:
        raise ConfigError(
            f"launcher.instance_type={launcher['instance_type']} has no GPU and trainer.accelerator is "
            f"{trainer['accelerator']}: use trainer=cpu, or an instance with one, such as ml.g5.xlarge"
        )
    devices = trainer.get("devices")
    if isinstance(devices, int) and available and devices > available:
        raise ConfigError(
            f"trainer.devices={devices} is more than the {available} of launcher.instance_type="
            f"{launcher['instance_type']}: use a larger instance"
        )
    if trainer["accelerator"] != "cpu" and isinstance(devices, int) and devices < available:
        log.warning(
            "%s has %d GPUs and trainer.devices=%d uses fewer: use trainer=ddp.",
            launcher["instance_type"],
            available,
            devices,
        )
    if trainer["accelerator"] == "cpu" and available:
        log.warning("trainer=cpu leaves the GPU of %s idle: use trainer=gpu.", launcher["instance_type"])


def _ship_file(planned: PlannedJob, key: str, path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"{key}={path} is not a file: name one, or drop the setting")
    name = f"{key.rpartition('.')[2]}/{path.name}"  # in the code archive
    planned.extra[name] = path.read_bytes()
    planned.shipped = [*drop_overrides(planned.shipped, key), override_of(key, name)]


def _refuse_secrets(overrides: Sequence[str]) -> None:
    """Check overrides for secrets: everybody who may describe a job reads them. Files are checked when packed."""
    named = [override.partition("=")[0] for override in overrides if mask_argument(override) != override]
    if named:
        raise ConfigError(
            f"{named[0]} looks like a secret, and everybody who may describe a job can read its request: leave it "
            "out, and let the job read it by its role (AWS Secrets Manager), or use logger=csv"
        )


def _check_recomposition(planned: PlannedJob, cfg: DictConfig, loader: "ConfigLoader", config: DictConfig) -> None:
    """Check that the container will compose the same configuration from the hyperparameters."""
    shipped = [*decode_overrides(encode_overrides(planned.shipped)), "launcher=container"]
    recomposed = loader.load_sweep_config(config, shipped)
    expected, found = (
        {
            str(key): value
            for key, value in OmegaConf.to_container(node, resolve=False).items()  # type: ignore[union-attr]
            if key not in (*_NOT_SHIPPED, "hydra")
        }
        for node in (cfg, recomposed)
    )
    for node in (expected, found):
        for part, name in ((node["data"]["layout"], "ids"), (node["data"], "corrections")):
            part.pop(name, None)  # shipped under another name
    different = [key for key in expected if expected[key] != found.get(key)]
    if different:
        raise ConfigError(
            f"{different[0]} would differ in the container, since its overrides depend on their order: write them as "
            "one (a.b={c: 1}), or put them into a file under conf/experiment"
        )
