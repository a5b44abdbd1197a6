"""What deploy.py does and where: the settings of ``conf/deploy.yaml`` and ``conf/target``; rules: ``deploy_rules.py``.

The names are those of the SageMaker SDK where it has one. What has no setting of its own goes into ``request``, a
mapping per API object that is merged into the request as it stands.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf


def _open() -> Any:
    """A mapping that takes new keys without Hydra's ``+``."""
    return DictConfig({}, flags={"struct": False})


@dataclass
class LimitsConfig:
    """What an endpoint takes before it refuses; written into the archive."""

    max_body_mb: float = 25.0  # of one request, in units of 1e6 bytes; real-time endpoints pass no more than that on
    max_instances: int = 32  # photos of one JSON request
    max_batch: int = 8  # photos the model sees at once; more outgrow a CPU's caches, and may suit a GPU
    max_queue: int = 128  # photos that wait for the model; more are refused at once with 503
    timeout_s: float = 30.0  # seconds until a request is given up with 504
    url_hosts: list[str] = field(default_factory=list)  # hosts photos may be fetched from by https; none: no URLs


@dataclass
class ParityConfig:
    """The photos that must score the same in training and in the archive before anything is served."""

    photos: int = 64  # 0: nothing is compared
    source: str | None = None  # a photo, a folder or an s3:// URI; null: the run's own photos, else rendered demo bins


@dataclass
class PlacesConfig:
    """Where things are read and kept; relative ones start at the folder the command was given in."""

    data_dir: str = "data"  # photos of buckets, and demo bins
    cache_dir: str = "${.data_dir}/cache"  # unpacked archives, and which servers run here; safe to delete
    log_dir: str = "logs"  # the runs


@dataclass
class LocalTargetConfig:
    """A server on 127.0.0.1, in this terminal until Ctrl-C."""

    port: int = 8080  # 0 takes a free one


@dataclass
class SageMakerTargetConfig:
    """What the endpoints of SageMaker have in common."""

    region: str | None = None  # null: that of AWS_REGION or the profile
    role: str | None = None  # name or ARN of the execution role, see docs/sagemaker.md
    image: str | None = None  # URI of a serving image; null: AWS's own of the stack
    stack: str = "ray"  # ray: AWS's Ray Serve image | pytorch: the older PyTorch inference image (PyTorch 2.6)
    bucket: str | None = None  # for archives and outputs; null: sagemaker-<region>-<account>
    prefix: str = "bincounter"  # in that bucket
    environment: dict[str, str] = field(default_factory=_open)  # of the container
    wait: bool = True  # until the endpoint is in service, or has failed
    max_usd_per_hour: float = 5.0  # more is refused
    request: dict[str, Any] = field(default_factory=_open)  # by API object: merged into its request


@dataclass
class RealtimeTargetConfig(SageMakerTargetConfig):
    """Instances that are always there."""

    instance_type: str = "ml.m5.xlarge"
    instance_count: int = 1
    usd_per_hour: float | None = None  # of one instance; null: that of the table in bincounter/cloud/prices.yaml


@dataclass
class AsyncTargetConfig(RealtimeTargetConfig):
    """Instances that take requests from S3 and answer there."""

    output_uri: str | None = None  # s3:// folder of answers; null: <bucket>/<prefix>/<endpoint>/output
    failure_uri: str | None = None  # s3:// folder of failures; null: <bucket>/<prefix>/<endpoint>/failure


@dataclass
class ServerlessTargetConfig(SageMakerTargetConfig):
    """No instances: memory that is billed while it answers."""

    memory_mb: int = 4096
    max_concurrency: int = 5


@dataclass
class DeployConfig:
    """Everything a command of deploy.py is described by."""

    action: str = "deploy"  # deploy | invoke | update | status | delete | list | package | transform
    ckpt_path: str | None = None  # the checkpoint to serve; latest: the newest best.ckpt under paths.log_dir
    archive: str | None = (
        None  # where the archive is written; null: endpoint/model.tar.gz of the run. An archive that is
    )
    # there already is served as it is when no ckpt_path is given
    name: str = "bincounter"  # of the endpoint
    input: str | None = None  # action=invoke: a photo, a folder or an s3:// URI; action=transform: an s3:// folder
    output: str | None = None  # action=transform: the s3:// folder of answers
    precision: str = "fp32"  # fp32 | bf16, which a CPU or GPU that knows it does faster
    trust: list[str] = field(default_factory=list)  # packages of one's own that the checkpoint's model comes from
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    parity: ParityConfig = field(default_factory=ParityConfig)
    target: Any = MISSING  # typed by its own schemas
    paths: PlacesConfig = field(default_factory=PlacesConfig)
    dry_run: bool = False  # print the requests that would be sent, and end


TARGETS = {
    "local": LocalTargetConfig,
    "realtime": RealtimeTargetConfig,
    "serverless": ServerlessTargetConfig,
    "async": AsyncTargetConfig,
}


def target_of(cfg: DictConfig) -> str:
    """Which of :data:`TARGETS` a composed configuration has."""
    kind = OmegaConf.get_type(cfg.target)
    return next(name for name, schema in TARGETS.items() if schema is kind)


def register() -> None:
    """Make the schemas known to Hydra; called once before it composes."""
    store = ConfigStore.instance()
    store.store(name="deploy_schema", node=DeployConfig)
    for name, schema in TARGETS.items():
        store.store(group="target", name=f"{name}_schema", node=schema)
