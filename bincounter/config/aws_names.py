"""Forms of AWS's names and numbers: fields of ``launcher`` and ``target``, and checks of a request's parts."""

import importlib.util
import re
from collections.abc import Iterable, Mapping
from typing import Any

from bincounter.config.checks import bounded
from bincounter.errors import ConfigError

LARGEST_VOLUME = 16_384
"""GB; of an EBS volume."""
_BUCKET = r"(?!.*\.\.)(?!\d+\.\d+\.\d+\.\d+(/|$))[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
_ARN = r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]{1,512}"
_MLFLOW = re.compile(r"arn:aws[a-z-]*:sagemaker:[a-z0-9-]+:\d{12}:mlflow-(app|tracking-server)/[\w-]+")
_REGISTRY = r"[a-z0-9][a-z0-9.-]*(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
_TAG = re.compile(r"[\w\s.:/=+@-]*")
_MOST_TAGS = 50


def role_field() -> Any:
    """Name or ARN of an execution role."""
    hint = "is not a role: write its name, or its ARN as in arn:aws:iam::123456789012:role/NAME"
    return bounded(None, pattern=rf"(?!arn:)([\w+=,.@-]+/)*[\w+=,.@-]{{1,64}}|{_ARN}", hint=hint)


def image_field() -> Any:
    """URI of an image in a registry."""
    hint = "is not the URI of an image: write it as in 123456789012.dkr.ecr.eu-west-1.amazonaws.com/mine:1"
    return bounded(None, pattern=rf"{_REGISTRY}(:[\w][\w.-]{{0,127}})?(@sha256:[0-9a-f]{{64}})?", hint=hint)


def bucket_field() -> Any:
    """Name of a bucket, or null: sagemaker-<region>-<account>."""
    hint = "is not the name of a bucket: use 3 to 63 lower-case letters, digits, hyphens and dots, without s3://"
    return bounded(None, pattern=_BUCKET, hint=hint)


def prefix_field() -> Any:
    """Folder in a bucket."""
    return bounded("bincounter", pattern=r"(?!/)(?!.*//).*", hint="is not an S3 folder: write it as in bincounter/mine")


def instance_field(default: str) -> Any:
    """Name of an instance type."""
    hint = f"is not a SageMaker instance type: their names begin with ml., as in {default}"
    return bounded(default, pattern=r"ml\.[a-z][a-z0-9-]*\.[a-z0-9-]+", hint=hint)  # the price table knows the sizes


def s3_folder(*, whole_bucket: bool = False) -> dict[str, Any]:
    """Bounds of an ``s3://`` URI of a folder; ``whole_bucket`` accepts a bucket alone, too."""
    rest = r"(/[^/].*|/)?" if whole_bucket else r"/[^/].*"
    return {"pattern": rf"s3://{_BUCKET}{rest}", "hint": "is not an S3 folder: write it as s3://bucket/folder"}


def is_mlflow_arn(uri: Any) -> bool:
    """Return True if the address of an MLflow server is an ARN of SageMaker's."""
    return isinstance(uri, str) and uri.startswith("arn:")


def check_mlflow_uri(key: str, uri: Any) -> None:
    """Check the address of an MLflow server, if it is an ARN.

    Args:
        key: dotted name of the setting.
        uri: its value.

    Raises:
        ConfigError: it is not of an MLflow App or tracking server, or the plug-in that signs requests is missing.
    """
    if not is_mlflow_arn(uri):
        return
    if not _MLFLOW.fullmatch(uri):
        raise ConfigError(
            f"{key}={uri} is not the ARN of an MLflow App or tracking server: write it as in "
            "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-app/NAME or .../mlflow-tracking-server/NAME"
        )
    if importlib.util.find_spec("sagemaker_mlflow") is None:
        raise ConfigError(f"{key}={uri} needs a plug-in of MLflow: pip install 'bincounter[sagemaker-mlflow]'")


def check_environment(key: str, environment: Mapping[str, str | None], longest: int) -> None:
    """Check the variables of a container.

    Args:
        key: dotted name of the setting.
        environment: values by name.
        longest: most characters of a value.

    Raises:
        ConfigError: the first variable that AWS refuses.
    """
    for name, value in environment.items():
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name):
            raise ConfigError(f"{key}.{name} is not the name of an environment variable: use letters, digits and _")
        if value is None:
            raise ConfigError(f"{key}.{name}=null is not a text: write one, or remove it")
        if len(value) > longest:
            raise ConfigError(f"{key}.{name} has {len(value)} characters: a value has at most {longest}, so shorten it")
    if len(environment) > 100:
        raise ConfigError(f"{key} has {len(environment)} variables: a container takes at most 100, so leave some out")


def check_request(key: str, request: Mapping[str, Any]) -> None:
    """Check ids of a network and tags, whose form AWS's own model leaves open.

    Args:
        key: dotted name of the setting.
        request: parts of a request, as plain containers.

    Raises:
        ConfigError: the first one that AWS refuses.
    """
    network = request.get("VpcConfig")
    for name, kind in (("Subnets", "subnet"), ("SecurityGroupIds", "sg")):
        for each in _listed(network.get(name) if isinstance(network, Mapping) else None):
            if not re.fullmatch(rf"{kind}-[0-9a-z]{{1,28}}", str(each)):
                raise ConfigError(
                    f"{key}.VpcConfig.{name}={each} is not an id: write it as in {kind}-0123456789abcdef0"
                )
    tags = [each for each in _listed(request.get("Tags")) if isinstance(each, Mapping)]
    names = [str(each.get("Key", "")) for each in tags]
    for each, name in zip(tags, names, strict=True):
        if not _TAG.fullmatch(f"{name}{each.get('Value', '')}") or name.lower().startswith("aws:"):
            raise ConfigError(
                f"{key}.Tags has {name}={each.get('Value', '')}, which cannot be a tag: use letters, digits, spaces "
                "and _.:/=+-@, and no key that begins with aws:"
            )
    if len(set(names)) < len(names) or len(names) > _MOST_TAGS:
        raise ConfigError(f"{key}.Tags has a key twice, or more than {_MOST_TAGS} tags: leave some out")


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else []
