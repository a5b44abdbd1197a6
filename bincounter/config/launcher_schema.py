"""Settings of ``launcher``, and the rules between them.

Names are those of the SageMaker SDK where it has one. Parts of the request without a setting go into ``request``, which
is merged into CreateTrainingJob unchanged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

from bincounter.config.aws_names import (
    LARGEST_VOLUME,
    bucket_field,
    check_environment,
    check_request,
    image_field,
    instance_field,
    prefix_field,
    role_field,
    s3_folder,
)
from bincounter.config.checks import bounded, open_mapping
from bincounter.errors import ConfigError
from bincounter.hub import is_hub

_LONGEST_RUN = 28 * 24 * 3600  # seconds; what SageMaker allows without a raised quota is 5 days, with one 28
_NAME_LENGTH = 63
_SETTLED = {  # parts of the request that have a setting, which the price ceiling and other checks read
    "TrainingJobName": "task_name",
    "HyperParameters": "overrides",
    "RoleArn": "launcher.role",
    "Environment": "launcher.environment",
    "EnableManagedSpotTraining": "launcher.spot",
    "CheckpointConfig": "launcher.checkpoint_uri",
    "AlgorithmSpecification.TrainingImage": "launcher.image",
    "AlgorithmSpecification.TrainingInputMode": "launcher.input_mode",
    "ResourceConfig.InstanceType": "launcher.instance_type",
    "ResourceConfig.InstanceCount": "launcher.instance_count",
    "ResourceConfig.InstanceGroups": "launcher.instance_type and launcher.instance_count",
    "ResourceConfig.VolumeSizeInGB": "launcher.volume_size",
    "StoppingCondition.MaxRuntimeInSeconds": "launcher.max_run",
    "StoppingCondition.MaxWaitTimeInSeconds": "launcher.max_wait",
    "OutputDataConfig.S3OutputPath": "launcher.bucket and launcher.prefix",
}


@dataclass
class LocalConfig:
    """The run happens locally, in this process."""


@dataclass
class SageMakerConfig:
    """The run is a SageMaker training job."""

    region: str | None = None  # AWS region; null: that of AWS_REGION or the profile
    role: str | None = role_field()  # name or ARN of the execution role, see docs/sagemaker.md
    image: str | None = image_field()  # URI of a training image; null: AWS's own of framework_version
    image_has_smdebug: bool = False  # that image can run debugger=smdebug, which AWS's own cannot
    framework_version: str = "2.14"  # PyTorch version of AWS's image
    instance_type: str = instance_field("ml.g5.xlarge")  # of the machines
    instance_count: int = bounded(1, ge=1)  # machines per job
    volume_size: int = bounded(50, ge=1, le=LARGEST_VOLUME)  # GB of disk on each instance
    spot: bool = False  # managed spot: cheaper, and interrupted at times
    max_run: int = bounded(4 * 3600, ge=1)  # seconds of training after which the job is stopped
    max_wait: int | None = None  # seconds, waiting for spot capacity included; null: twice max_run
    bucket: str | None = bucket_field()  # bucket of code, checkpoints and models; null: sagemaker-<region>-<account>
    prefix: str = prefix_field()  # folder in that bucket
    # s3:// folder of the run's files, to resume from if it has some; null: one for each job
    checkpoint_uri: str | None = bounded(None, **s3_folder())
    # File: photos are copied to the machine first | FastFile: they are streamed
    input_mode: str = bounded("File", choices=("File", "FastFile"))
    environment: dict[str, str] = open_mapping()  # environment variables of the container
    max_parallel_jobs: int = bounded(4, ge=1)  # jobs of a multirun that run at a time
    wait: bool = True  # follow the job to its end; false: submit, and print how to attach later
    max_cost_usd: float = bounded(25.0, gt=0, finite=False)  # USD that all jobs may cost; a higher ceiling is refused
    # USD per hour of one instance; null: by the table in bincounter/cloud/prices.yaml
    usd_per_hour: float | None = bounded(None, gt=0, finite=False)
    request: dict[str, Any] = open_mapping()  # further parameters of CreateTrainingJob, by AWS's names


@dataclass
class RehearsalConfig(SageMakerConfig):
    """The same job, run on this machine by a local control plane."""

    # seconds from the first checkpoint of each attempt to its interruption
    interruptions: list[float] = field(default_factory=list)


@dataclass
class ContainerConfig(RehearsalConfig):
    """Inside a job: settings of the submitted command are accepted and have no effect."""


def runs_locally(launcher: Any) -> bool:
    """Return True if a composed ``launcher`` runs in this process."""
    return OmegaConf.get_type(launcher) in (LocalConfig, ContainerConfig)


def check_one_run(launcher: Mapping[str, Any], jobs: int) -> None:
    """Check that jobs do not share the folder of one run.

    Args:
        launcher: settings that the jobs have in common, not those of the local one.
        jobs: number of all jobs of the command.

    Raises:
        ConfigError: they would.
    """
    if jobs > 1 and launcher["checkpoint_uri"]:
        raise ConfigError(
            f"launcher.checkpoint_uri={launcher['checkpoint_uri']} keeps one run, not {jobs}: leave "
            "it out, so that each job has its own folder"
        )


def check_launcher(cfg: Mapping[str, Any]) -> None:
    """Check the rules of SageMaker, before anything is uploaded or paid for.

    Args:
        cfg: a whole configuration as plain containers; its ``launcher`` is not the local one.

    Raises:
        ConfigError: the first error.
    """
    launcher = cfg["launcher"]
    if launcher["checkpoint_uri"] and cfg["hparams_search"]:
        raise ConfigError("launcher.checkpoint_uri is for one run, and a search has many: remove it")
    if launcher["max_run"] > _LONGEST_RUN:
        raise ConfigError(f"launcher.max_run={launcher['max_run']} is out of range: it is in seconds, at most 28 days")
    _request(launcher["request"])
    if "interruptions" in launcher and not launcher["wait"]:
        raise ConfigError(
            "launcher.wait=false leaves jobs running, and a rehearsal ends with its command: remove it, or keep a "
            "rehearsal running with bincounter rehearsal and use launcher=sagemaker_spot"
        )
    if any(seconds < 0 for seconds in launcher.get("interruptions", ())):
        raise ConfigError(
            f"launcher.interruptions={launcher['interruptions']} has a negative number of seconds: write 0 or more"
        )
    _spot(launcher)
    check_environment("launcher.environment", launcher["environment"], longest=512)
    _run(cfg, launcher)


def _request(request: Mapping[str, Any]) -> None:
    for path, setting in _SETTLED.items():
        group, _, name = path.rpartition(".")
        inside = request.get(group, {}) if group else request
        if isinstance(inside, Mapping) and name in inside:
            raise ConfigError(f"launcher.request.{path} has a setting of its own: use {setting}")

    check_request("launcher.request", request)
    if request.get("EnableNetworkIsolation"):
        raise ConfigError(
            "launcher.request.EnableNetworkIsolation keeps a job from its code and requirements, which it gets itself: "
            "use VpcConfig to bound what it reaches"
        )
    if "ShardedByS3Key" in str(request.get("InputDataConfig", "")):
        raise ConfigError(
            "launcher.request.InputDataConfig with ShardedByS3Key gives each instance other photos, and so another "
            "split: use FullyReplicated"
        )


def keep_alive(launcher: Mapping[str, Any]) -> int:
    """Seconds that a warm pool keeps and bills the instances after the job."""
    resources = launcher["request"].get("ResourceConfig")
    seconds = resources.get("KeepAlivePeriodInSeconds") if isinstance(resources, Mapping) else None
    return seconds if isinstance(seconds, int) else 0


def _spot(launcher: Mapping[str, Any]) -> None:
    if launcher["spot"] and keep_alive(launcher):
        raise ConfigError(
            "launcher.request.ResourceConfig.KeepAlivePeriodInSeconds (a warm pool) and launcher.spot=true exclude "
            "each other at AWS: use launcher=sagemaker for a warm pool, or leave it out"
        )
    if launcher["max_wait"] is None:
        return
    if not launcher["spot"]:
        raise ConfigError(
            "launcher.max_wait is for spot alone: leave it out, or set launcher.spot=true (launcher=sagemaker_spot)"
        )
    if launcher["max_wait"] < launcher["max_run"]:
        raise ConfigError(
            f"launcher.max_wait={launcher['max_wait']} is shorter than launcher.max_run={launcher['max_run']}: it "
            "counts the run and the waiting before it, so make it at least as long"
        )


def _run(cfg: Mapping[str, Any], launcher: Mapping[str, Any]) -> None:
    """Reject settings that a training job cannot have."""
    if not cfg["train"]:
        raise ConfigError("train=false scores a checkpoint, which runs locally: remove the launcher")
    if cfg["ckpt_path"]:
        raise ConfigError(
            f"ckpt_path={cfg['ckpt_path']} is on this machine: a job resumes with launcher.checkpoint_uri=s3://..., "
            "the folder of the earlier job's run"
        )
    if cfg["debugger"]["kind"] == "smdebug":
        _smdebug(launcher)
    _weights(cfg["model"]["weights"])
    if cfg["trainer"].get("accelerator") == "mps":
        raise ConfigError("trainer=mps is an Apple GPU, which SageMaker does not have: use trainer=gpu or trainer=auto")
    if len(cfg["task_name"]) > _NAME_LENGTH:
        raise ConfigError(f"task_name is longer than {_NAME_LENGTH} characters, which no job name can be: shorten it")
    if launcher["instance_count"] > 1 and cfg["model"]["trained"] == "gradual":
        raise ConfigError(
            "model.trained=gradual changes what several instances have to exchange as they run: use "
            "model.trained=last_stages, or launcher.instance_count=1"
        )


def _weights(weights: str | None) -> None:
    """Reject weights of this machine; a job fetches those of the hub itself."""
    if weights is None or is_hub(weights):
        return
    from bincounter.model.backbones import is_file_name  # here: it imports torchvision

    if is_file_name(weights):
        raise ConfigError(
            f"model.weights={weights} is a file of this machine, which a job does not see: use a torchvision name, a "
            "model that bincounter push has uploaded (hf://owner/name), or null"
        )


def _smdebug(launcher: Mapping[str, Any]) -> None:
    """Reject an image without smdebug, whose last release knows numpy before 2.3 and protobuf before 3.21 only."""
    own = "launcher.image=URI of one of your own that holds it, with launcher.image_has_smdebug=true"
    if launcher["image"] is None:
        raise ConfigError(
            f"debugger=smdebug: AWS's image of PyTorch {launcher['framework_version']} cannot run smdebug, which needs "
            f"numpy before 2.3 and protobuf before 3.21: use debugger=tensors, which runs everywhere, or {own}"
        )
    if not launcher["image_has_smdebug"]:
        raise ConfigError(
            "debugger=smdebug needs smdebug, numpy before 2.3 and protobuf before 3.21 in launcher.image, which "
            "cannot be checked from here: set launcher.image_has_smdebug=true if it has them, or use debugger=tensors"
        )
