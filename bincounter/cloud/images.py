"""The images that AWS has for a training job: that for a PyTorch version, and that of its built-in rules."""

from functools import cache
from types import ModuleType

from bincounter.errors import ConfigError

_FRAMEWORK = "pytorch-amzn2023"  # the successor of the "pytorch" images, which end with PyTorch 2.10


def training_image(*, framework_version: str, region: str, instance_type: str) -> str:
    """The address of AWS's training image, with CUDA where the instance has GPUs.

    The SDK's own list is read; no request is sent.

    Args:
        framework_version: of PyTorch, such as ``2.14``.
        region: of the job, such as ``us-east-1``.
        instance_type: such as ``ml.g5.xlarge``.

    Raises:
        ConfigError: there is no such image, or the SDK is not installed.
    """
    image_uris = _image_uris(", or say launcher.image=URI")
    try:
        return image_uris.retrieve(
            _FRAMEWORK, region, version=framework_version, instance_type=instance_type, image_scope="training"
        )
    except ValueError as error:
        versions = image_uris.config_for_framework(_FRAMEWORK)["training"]["versions"]
        raise ConfigError(_explain(versions, framework_version, region, instance_type)) from error


@cache
def rules_image(region: str) -> str:
    """The address of the image that evaluates AWS's built-in rules of Debugger and Profiler.

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
            f"region {region} has none of AWS's rules for debugger= and profiler=: use another launcher.region, or ask "
            "for none, with debugger.sagemaker_rules=[] or profiler.sagemaker_rules=[]"
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
    """Why the SDK finds no image; its own sentences advise an upgrade whatever is wrong."""
    if framework_version not in versions:
        return (
            f"launcher.framework_version={framework_version} has no training image of AWS: choose one of "
            f"{', '.join(versions)}, or say launcher.image=URI"
        )
    if region not in versions[framework_version]["registries"]:
        return (
            f"region {region} has no training image of AWS: correct launcher.region, such as us-east-1, or say "
            "launcher.image=URI"
        )
    return (
        f"launcher.instance_type={instance_type} is no type of SageMaker: correct it, such as ml.g5.xlarge, or say "
        "launcher.image=URI"
    )
