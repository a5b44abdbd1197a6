"""Instance types: price (prices.yaml), GPUs, training and serving image."""

import difflib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import yaml

from bincounter.errors import ConfigError

GPU_MACHINE = "al2-ami-sagemaker-inference-gpu-3-1"
"""Machine image with the driver that the CUDA build of AWS's Ray Serve image needs."""

_STACKS: dict[str, dict[str, Any]] = {
    "ray": {"framework": "ray-serve", "version": "1.4"},  # Python 3.13, torch 2.10
    "pytorch": {"framework": "pytorch", "version": "2.6", "py_version": "py312"},  # the last one of its kind
}
_FRAMEWORK = "pytorch-amzn2023"  # the successor of the "pytorch" images, which end with PyTorch 2.10


class Price(NamedTuple):
    """On-demand price.

    Attributes:
        usd: US dollars per hour, or per second.
        origin: source of the figure, to show beside it.
    """

    usd: float
    origin: str


def usd_per_hour(instance_type: str, given: float | None, group: str = "launcher") -> Price:
    """Look up the on-demand price of one instance.

    Args:
        instance_type: such as ``ml.g5.xlarge``.
        given: US dollars per hour from the settings; ``None`` to use the table.
        group: group of both settings.

    Raises:
        ConfigError: neither the settings nor the table have a price.
    """
    if given is not None:
        return Price(float(given), f"{group}.usd_per_hour")
    table = _table()
    types, date = table["types"], table["date"]
    usd = types.get(instance_type, {}).get("usd")
    if usd is not None:
        return Price(float(usd), _origin(table))
    step = f"set {group}.usd_per_hour=DOLLARS, the price of one instance"
    if instance_type not in types:
        near = difflib.get_close_matches(instance_type, types, n=1)
        step = f"correct it to {near[0]}, or {step}" if near else step
    raise ConfigError(f"{group}.instance_type={instance_type} has no price in the table of {date}: {step}")


def usd_per_second(memory_mb: int) -> Price:
    """Return the price of one second of a request to a serverless endpoint.

    Args:
        memory_mb: of the endpoint.
    """
    table = _table()
    return Price(table["serverless"]["usd_per_gb_second"] * memory_mb / 1024, _origin(table))


def gpu_count(instance_type: str) -> int | None:
    """Number of GPUs of an instance; ``None`` where it is not known."""
    return _table()["types"].get(instance_type, {}).get("gpus")


def cost_ceiling(price: Price, *, max_run: int, instances: int, jobs: int) -> float:
    """Compute the highest cost in US dollars: every job runs to its limit, on demand. Disks and storage add cents.

    Args:
        price: of one instance.
        max_run: seconds after which a job is stopped.
        instances: of each job.
        jobs: number of jobs.
    """
    return price.usd * max_run / 3600 * instances * jobs


def saving_percent(training_seconds: float, billable_seconds: float) -> float:
    """Compute the saving of spot capacity as SageMaker does: 100 x (1 - billable / training); 0 without training."""
    if training_seconds <= 0:
        return 0.0
    return 100 * (1 - billable_seconds / training_seconds)


def _origin(table: dict[str, Any]) -> str:
    return f"table of {table['date']} for {table['region']}; other regions differ"


@cache
def _table() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("prices.yaml").read_text(encoding="utf-8"))


def training_image(*, framework_version: str, region: str, instance_type: str) -> str:
    """Return the URI of AWS's training image, with CUDA where the instance has GPUs, by the SDK's list.

    Args:
        framework_version: of PyTorch, such as ``2.14``.
        region: of the job, such as ``us-east-1``.
        instance_type: such as ``ml.g5.xlarge``.

    Raises:
        ConfigError: there is no such image, or the SDK is not installed.
    """
    image_uris = _image_uris(", or set launcher.image=URI")
    try:
        return image_uris.retrieve(
            _FRAMEWORK, region, version=framework_version, instance_type=instance_type, image_scope="training"
        )
    except ValueError as error:
        versions = image_uris.config_for_framework(_FRAMEWORK)["training"]["versions"]
        raise ConfigError(_explain(versions, framework_version, region, instance_type)) from error


@cache
def rules_image(region: str) -> str:
    """Return the URI of the image that evaluates AWS's built-in rules of Debugger and Profiler.

    Args:
        region: of the job, such as ``us-east-1``.

    Raises:
        ConfigError: AWS has none in the region, or the SDK is not installed.
    """
    image_uris = _image_uris("")
    try:
        return image_uris.retrieve("debugger", region)
    except ValueError as error:
        raise ConfigError(
            f"region {region} has none of AWS's rules for debugger= and profiler=: use another launcher.region, or no "
            "rules, with debugger.sagemaker_rules=[] or profiler.sagemaker_rules=[]"
        ) from error


def _image_uris(otherwise: str) -> ModuleType:
    try:
        from sagemaker.core import image_uris  # takes two seconds
    except ImportError as error:
        raise ConfigError(
            "AWS's images are looked up with the SageMaker SDK, which is not installed: pip install "
            f"'bincounter[sagemaker]'{otherwise}"
        ) from error
    return image_uris


def _explain(versions: dict[str, dict], framework_version: str, region: str, instance_type: str) -> str:
    """Make a message for a missing image; the SDK's messages advise an upgrade for any reason."""
    if framework_version not in versions:
        return (
            f"launcher.framework_version={framework_version} has no training image of AWS: choose one of "
            f"{', '.join(versions)}, or set launcher.image=URI"
        )
    if region not in versions[framework_version]["registries"]:
        return (
            f"region {region} has no training image of AWS: correct launcher.region, such as us-east-1, or set "
            "launcher.image=URI"
        )
    return (
        f"launcher.instance_type={instance_type} is not a type of SageMaker: correct it, such as ml.g5.xlarge, or set "
        "launcher.image=URI"
    )


def serving_image(*, stack: str, region: str, instance_type: str | None) -> str:
    """Return the URI of AWS's serving image, with CUDA where the instance has GPUs, by the SDK's list.

    Args:
        stack: ``ray`` or ``pytorch``.
        region: of the endpoint, such as ``us-east-1``.
        instance_type: such as ``ml.m5.xlarge``; ``None`` for serverless, which has no GPUs.

    Raises:
        ConfigError: there is no such image, or the SDK is not installed.
    """
    image_uris, asked = _image_uris(", or set target.image=URI"), _STACKS[stack]
    try:
        return image_uris.retrieve(
            region=region, instance_type=instance_type or "ml.m5.large", image_scope="inference", **asked
        )
    except ValueError as error:
        raise ConfigError(
            f"AWS has no image of target.stack={stack} (version {asked['version']}) in {region} for "
            f"{instance_type or 'serverless endpoints'}: correct target.region or target.instance_type, update the "
            "SageMaker SDK, or set target.image=URI"
        ) from error


def has_gpus(instance_type: str, image: str) -> bool:
    """Return True if an instance has GPUs, by the table of prices or the image's name."""
    number = gpu_count(instance_type)
    return number > 0 if number is not None else "cuda" in image or "gpu" in image
