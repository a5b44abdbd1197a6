"""Dataclasses of deploy.yaml and ``target``, and their rules.

Names are those of the SageMaker SDK where it has one. Parts of a request without a setting go into ``request``, a
mapping per API object that is merged into the request unchanged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from bincounter.config.aws_names import (
    bucket_field,
    check_environment,
    check_request,
    image_field,
    instance_field,
    prefix_field,
    role_field,
    s3_folder,
)
from bincounter.config.checks import Bound, bounded, check_bounds, open_mapping, path_setting, plain_of
from bincounter.data.s3.address import is_remote
from bincounter.errors import ConfigError
from bincounter.files import check_writable, checkpoint_file

ACTIONS = ("deploy", "invoke", "update", "status", "delete", "list", "package", "transform")
ARCHIVE_ACTIONS = ("deploy", "update", "package", "transform")
"""Actions that need an archive."""

ENDPOINT_NAME = r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}"  # of an endpoint, as SageMaker's service model has it
NO_ENDPOINT_NAME = "cannot name an endpoint: use at most 63 letters, digits and hyphens, none at an end"
_PACKAGE = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\.?"
_NO_PACKAGE = "is not a package name: write it as it is imported, as in trust=[timm]"
_SHA256 = r"(sha256:)?[0-9a-fA-F]{64}"
_NO_SHA256 = "is not a sha256: give the 64 hexadecimal digits that `sha256sum` prints"
_LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_HOST = rf"(?![\d.]+(:\d+)?$)(\*\.)?{_LABEL}(\.{_LABEL})+(:\d{{1,5}})?"  # and no IP address
_NO_HOST = (
    "is not a host name: write it in lower case and without https://, as in photos.example.org, or *.example.org for "
    "all its subdomains"
)
_IPV4 = r"((25[0-5]|2[0-4]\d|1?\d?\d)(\.|$)){4}"
_NO_IPV4 = "is not an IPv4 address of this machine: use 127.0.0.1, or 0.0.0.0 for all its addresses"
_S3 = Bound(**s3_folder(whole_bucket=True))
_TRUSTED = Bound(pattern=_PACKAGE, hint=_NO_PACKAGE)
_MEMORY = range(1024, 6145, 1024)


@dataclass
class LimitsConfig:
    """Limits of an endpoint, written into the archive; requests beyond them are rejected."""

    # MB (1e6 bytes) of one request; real-time endpoints take 25 at most
    max_body_mb: float = bounded(25.0, ge=0.001, le=1000)
    max_instances: int = bounded(32, ge=1, le=10_000)  # photos of one JSON request
    # photos that the model computes at once; more may suit a GPU
    max_batch: int = bounded(8, ge=1, le=1024)
    max_queue: int = bounded(128, ge=1, le=100_000)  # photos that wait for the model; more are refused with 503
    timeout_s: float = bounded(30.0, ge=0.1, le=3600)  # seconds until a request gets 504
    # hosts from which photos are fetched by https; empty: none
    url_hosts: list[str] = bounded([], pattern=_HOST, hint=_NO_HOST)


@dataclass
class ParityConfig:
    """Photos that must be predicted alike by the checkpoint and by the archive before it is served."""

    photos: int = bounded(64, ge=0, le=100_000)  # photos to compare; 0: none; of int8 the score is compared
    # a photo, a folder or an s3:// URI; null: the run's own photos, else rendered demo bins
    source: str | None = path_setting(None)


@dataclass
class AuditConfig:
    """Errors of stock records, for requests with the recorded count; written into the archive."""

    error_rate: float = bounded(0.03, gt=0, le=0.99)  # share of records that are wrong
    spread: float = bounded(0.25, gt=0, le=1)  # an error of n + 1 items is this many times as frequent as one of n


@dataclass
class PlacesConfig:
    """Folders; relative ones start at the working directory."""

    data_dir: str = path_setting("data")  # folder of demo bins and photos of buckets
    # folder of unpacked archives and the list of local servers; safe to delete
    cache_dir: str = path_setting("${.data_dir}/cache")
    log_dir: str = path_setting("logs")  # folder of runs and sweeps


@dataclass
class LocalTargetConfig:
    """A server on this machine, in this terminal until Ctrl-C."""

    # of the address; 0: a free one; null: 8080 to deploy, else that of the server called name
    port: int | None = bounded(None, ge=0, le=65535)
    # IPv4 address to listen on; others than 127.0.0.1 take a token; 0.0.0.0: all of this machine
    host: str = bounded("127.0.0.1", pattern=_IPV4, hint=_NO_IPV4)
    token_file: str | None = path_setting(None)  # file with the token; null: the variable BINCOUNTER_TOKEN


@dataclass
class SageMakerTargetConfig:
    """Settings of all SageMaker endpoints."""

    region: str | None = None  # AWS region; null: that of AWS_REGION or the profile
    role: str | None = role_field()  # name or ARN of the execution role, see docs/sagemaker.md
    image: str | None = image_field()  # URI of a serving image; null: AWS's own of the stack
    # ray: AWS's Ray Serve image | pytorch: the older PyTorch inference image (PyTorch 2.6)
    stack: str = bounded("ray", choices=("ray", "pytorch"))
    bucket: str | None = bucket_field()  # bucket of archives and outputs; null: sagemaker-<region>-<account>
    prefix: str = prefix_field()  # folder in that bucket
    environment: dict[str, str] = open_mapping()  # environment variables of the container
    wait: bool = True  # wait until the endpoint is in service, or has failed
    max_usd_per_hour: float = bounded(5.0, gt=0)  # USD per hour that the endpoint may cost; more is refused
    request: dict[str, Any] = open_mapping()  # further parameters of requests, by API object and AWS's names


@dataclass
class RealtimeTargetConfig(SageMakerTargetConfig):
    """Instances that are always running."""

    instance_type: str = instance_field("ml.m5.xlarge")  # of the machines
    instance_count: int = bounded(1, ge=1, le=10_000)  # machines behind the endpoint
    # USD per hour of one instance; null: by the table in bincounter/cloud/prices.yaml
    usd_per_hour: float | None = bounded(None, gt=0)


@dataclass
class AsyncTargetConfig(RealtimeTargetConfig):
    """Instances that read requests from S3 and write answers there."""

    # s3:// folder of answers; null: <bucket>/<prefix>/<endpoint>/output
    output_uri: str | None = bounded(None, **s3_folder(whole_bucket=True))
    # s3:// folder of failures; null: <bucket>/<prefix>/<endpoint>/failure
    failure_uri: str | None = bounded(None, **s3_folder(whole_bucket=True))


@dataclass
class ServerlessTargetConfig(SageMakerTargetConfig):
    """No instances: memory that is billed while a request runs."""

    memory_mb: int = 4096  # MB: 1024, 2048, 3072, 4096, 5120 or 6144
    max_concurrency: int = bounded(5, ge=1, le=200)  # requests at a time; more are refused


@dataclass
class DeployConfig:
    """The whole configuration of ``bincounter deploy``."""

    # step to take: docs/deploy.md
    action: str = bounded("deploy", choices=ACTIONS)
    # checkpoint to serve; latest: the newest best.ckpt under paths.log_dir
    ckpt_path: str | None = path_setting(None)
    # file of the archive; null: endpoint/model.tar.gz of the run; an existing one is served where ckpt_path is null
    archive: str | None = path_setting(None)
    name: str = bounded("bincounter", pattern=ENDPOINT_NAME, hint=NO_ENDPOINT_NAME)  # name of the endpoint
    # photos to count; action=invoke: a photo, a folder or an s3:// URI; action=transform: an s3:// folder
    input: str | None = path_setting(None)
    output: str | None = None  # s3:// folder of the answers of action=transform
    # of the computation; bf16 is faster on CPUs and GPUs that multiply it; int8 is the fastest on all CPUs, and is
    # calibrated on the run's training photos
    precision: str = bounded("fp32", choices=("fp32", "bf16", "int8"))
    # that computes the model; null: onnxruntime on CPUs if it is installed, else torch
    engine: str | None = bounded(None, choices=("torch", "onnxruntime", "openvino"))
    # share of photos to be answered without a person, by the confidences of the run's validation photos; answers then
    # have needs_person
    coverage: float | None = bounded(None, gt=0, le=1)
    # sha256 of an archive that was packed elsewhere, as its author gives it
    archive_sha256: str | None = bounded(None, pattern=_SHA256, hint=_NO_SHA256)
    # packages of yours that define the checkpoint's model; true: serve an archive that was packed elsewhere
    trust: Any = field(default_factory=list)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    parity: ParityConfig = field(default_factory=ParityConfig)
    target: Any = MISSING  # typed by its own schemas
    paths: PlacesConfig = field(default_factory=PlacesConfig)
    dry_run: bool = False  # print the requests, and send none


TARGETS = {
    "local": LocalTargetConfig,
    "realtime": RealtimeTargetConfig,
    "serverless": ServerlessTargetConfig,
    "async": AsyncTargetConfig,
}


def target_name(cfg: DictConfig) -> str:
    """Name of a composed configuration's option of :data:`TARGETS`."""
    kind = OmegaConf.get_type(cfg.target)
    return next(name for name, schema in TARGETS.items() if schema is kind)


def register() -> None:
    """Register the schemas with Hydra; called once before it composes."""
    store = ConfigStore.instance()
    store.store(name="deploy_schema", node=DeployConfig)
    for name, schema in TARGETS.items():
        store.store(group="target", name=f"{name}_schema", node=schema)


def check_deploy(cfg: DictConfig) -> None:
    """Check a composed configuration of ``bincounter deploy``.

    Args:
        cfg: a whole configuration, as ``bincounter deploy`` composes it.

    Raises:
        ConfigError: the first error, with the key, the allowed values and the next step.
    """
    plain = plain_of(cfg)
    target = target_name(cfg)
    check_bounds(cfg)
    limits = plain["limits"]
    if limits["max_queue"] < limits["max_instances"]:
        raise ConfigError(
            f"limits.max_queue={limits['max_queue']} is below limits.max_instances={limits['max_instances']}, so that "
            "no request of that many photos could ever be accepted: raise the one or lower the other"
        )
    if target != "local":
        _sagemaker(plain["target"])
    _action(plain, target)


def _sagemaker(target: Mapping[str, Any]) -> None:
    if target.get("memory_mb", _MEMORY[0]) not in _MEMORY:
        raise ConfigError(
            f"target.memory_mb={target['memory_mb']} is not a size that SageMaker offers: use "
            f"{', '.join(map(str, _MEMORY[:-1]))} or {_MEMORY[-1]}"
        )
    check_environment("target.environment", target["environment"], longest=1024)
    for name, request in target["request"].items():
        if isinstance(request, Mapping):
            check_request(f"target.request.{name}", request)


def _action(cfg: Mapping[str, Any], target: str) -> None:
    action = cfg["action"]
    if action == "update" and target == "local":
        raise ConfigError(
            "action=update is for endpoints that must not stop, and target=local runs in a terminal: end it with "
            "action=delete and start a new one"
        )
    if action == "transform" and target not in ("realtime", "async"):
        raise ConfigError(
            f"action=transform starts a job on instances, which target={target} does not have: use target=realtime, "
            "or count locally with bincounter predict"
        )
    _photos(cfg)
    _packed(cfg)
    _trust(cfg)
    _engine(cfg)
    if action in ARCHIVE_ACTIONS:
        _served(cfg)


def _photos(cfg: Mapping[str, Any]) -> None:
    action, given, output = cfg["action"], cfg["input"], cfg["output"]
    if given is None and action in ("invoke", "transform"):
        example = "s3://bucket/photos" if action == "transform" else "photo.jpg"
        raise ConfigError(f"action={action} needs photos: add input={example}")
    if given is not None and action not in ("invoke", "transform"):
        raise ConfigError(
            f"input={given} has no effect with action={action}: add action=invoke to have its photos counted"
        )
    if output is not None and action != "transform":
        raise ConfigError(f"output={output} is for action=transform only: remove it")
    if action == "transform":
        _S3.check("input", given)
        if output is None:
            raise ConfigError("action=transform needs a folder for its results: add output=s3://bucket/answers")
        _S3.check("output", output)


def _packed(cfg: Mapping[str, Any]) -> None:
    keys, why, step = ["engine", "precision", "coverage", "limits", "audit", "trust"], "", ""
    if cfg["action"] not in ARCHIVE_ACTIONS:
        why, keys = f"action={cfg['action']} packs none", [*keys, "ckpt_path", "archive", "archive_sha256", "parity"]
    elif cfg["archive"] is not None and cfg["ckpt_path"] is None:
        why, step = f"archive={cfg['archive']} is packed already", ", or name the checkpoint with ckpt_path="
    default = OmegaConf.structured(DeployConfig)
    for key in keys if why else ():
        if cfg[key] != default[key] and not isinstance(cfg[key], bool):  # trust=true is for an archive
            raise ConfigError(f"{key} is set when a checkpoint is packed, and {why}: remove {key}{step}")


def _engine(cfg: Mapping[str, Any]) -> None:
    engine, precision = cfg["engine"], cfg["precision"]
    if precision == "int8" and cfg["parity"]["source"] is not None:
        raise ConfigError("precision=int8 is scored on the run's own validation photos: remove parity.source")
    if precision == "int8" and engine == "torch":
        raise ConfigError("precision=int8 is computed by engine=onnxruntime or openvino: set one of them")
    if precision == "bf16" and engine not in (None, "torch"):
        raise ConfigError(f"precision=bf16 is computed by engine=torch only: remove it, or engine={engine}")


def _trust(cfg: Mapping[str, Any]) -> None:
    trust, existing = cfg["trust"], cfg["archive"] is not None and cfg["ckpt_path"] is None
    if not isinstance(trust, list | bool):
        raise ConfigError(
            f"trust={trust} is not a list: write it in brackets, as in trust=[timm]; trust=true is for an archive"
        )
    for package in trust if isinstance(trust, list) else ():
        _TRUSTED.check("trust", str(package))
    if trust is True and not existing:
        raise ConfigError("trust=true is for an existing archive: name the packages of the model, as in trust=[timm]")
    if cfg["archive_sha256"] is not None and not existing:
        raise ConfigError("archive_sha256 is that of an existing archive: add archive=FILE, without ckpt_path")


def _served(cfg: Mapping[str, Any]) -> None:
    path, archive = cfg["ckpt_path"], cfg["archive"]
    if path is None and (archive is None or cfg["action"] == "package"):
        raise ConfigError(
            f"action={cfg['action']} needs a checkpoint: name it with ckpt_path=RUN/checkpoints/best.ckpt, or take the "
            "newest with ckpt_path=latest"
        )
    if archive is not None and Path(archive).is_dir():
        raise ConfigError(f"archive={archive} is a folder: name the file, as in archive={archive}/model.tar.gz")
    source = cfg["parity"]["source"]
    if source is not None and not is_remote(source) and not Path(source).exists():
        raise ConfigError(f"parity.source={source} does not exist: name a photo, a folder or an s3:// URI")
    if path is not None and archive is not None:
        check_writable(Path(archive), key="archive")
    if path is None and not Path(archive).is_file():
        raise ConfigError(
            f"archive={archive} does not exist: name the checkpoint to pack with ckpt_path=RUN/checkpoints/best.ckpt"
        )
    if path is None and cfg["parity"]["photos"]:
        raise ConfigError(
            f"archive={archive} has no checkpoint to compare its predictions with: name one with ckpt_path=..., which "
            "packs the archive again, or serve the archive unchecked with parity.photos=0"
        )
    if path == "last":
        raise ConfigError(
            "ckpt_path=last resumes a training; to serve, name a file: ckpt_path=RUN/checkpoints/best.ckpt"
        )
    if path not in (None, "latest") and not checkpoint_file(path).is_file():
        raise ConfigError(f"ckpt_path={path} is not a file; a run has RUN/checkpoints/best.ckpt and last.ckpt")
