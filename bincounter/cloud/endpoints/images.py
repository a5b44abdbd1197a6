"""The image that an endpoint runs: AWS's own of the stack that serves."""

from typing import Any

from bincounter.cloud.prices import gpus
from bincounter.errors import ConfigError

GPU_MACHINE = "al2-ami-sagemaker-inference-gpu-3-1"
"""The machine image whose driver the CUDA build of AWS's Ray Serve image needs."""

_STACKS: dict[str, dict[str, Any]] = {
    "ray": {"framework": "ray-serve", "version": "1.4"},  # Python 3.13, torch 2.10
    "pytorch": {"framework": "pytorch", "version": "2.6", "py_version": "py312"},  # the last one of its kind
}


def serving_image(*, stack: str, region: str, instance_type: str | None) -> str:
    """The address of AWS's serving image, with CUDA where the instance has GPUs.

    The SDK's own list is read; no request is sent.

    Args:
        stack: ``ray`` or ``pytorch``.
        region: of the endpoint, such as ``us-east-1``.
        instance_type: such as ``ml.m5.xlarge``; ``None`` for serverless, which has no GPUs.

    Raises:
        ConfigError: there is no such image, or the SDK is not installed.
    """
    try:
        from sagemaker.core import image_uris  # takes two seconds
    except ImportError as error:
        raise ConfigError(
            "AWS's images are looked up with the SageMaker SDK, which is not installed: pip install "
            "'bincounter[sagemaker]', or say target.image=URI"
        ) from error
    asked = _STACKS[stack]
    try:
        return image_uris.retrieve(
            region=region, instance_type=instance_type or "ml.m5.large", image_scope="inference", **asked
        )
    except ValueError as error:
        raise ConfigError(
            f"AWS has no image of target.stack={stack} (version {asked['version']}) in {region} for "
            f"{instance_type or 'serverless endpoints'}: correct target.region or target.instance_type, update the "
            "SageMaker SDK, or say target.image=URI"
        ) from error


def has_gpus(instance_type: str, image: str) -> bool:
    """Whether an instance has GPUs, as far as the table of prices or the image's own name tells."""
    number = gpus(instance_type)
    return number > 0 if number is not None else "cuda" in image or "gpu" in image
