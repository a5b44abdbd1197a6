"""CreateTrainingJob, built from the settings and checked against botocore's service model before it is sent."""

import re
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from bincounter.cloud.service_model import Violation, violations
from bincounter.config import METRICS
from bincounter.config.choices import nearest
from bincounter.errors import ConfigError
from bincounter.training.secrets import masked

PROGRAM = "start.py"  # what the image's toolkit runs; bincounter.cloud.source makes it
CHANNEL = "bins"  # the channel that becomes data.source
_SECRET_NAME = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
# Where a value of the request comes from, for messages.
_SETTINGS = {
    "ResourceConfig.InstanceType": "launcher.instance_type",
    "ResourceConfig.InstanceCount": "launcher.instance_count",
    "ResourceConfig.VolumeSizeInGB": "launcher.volume_size",
    "StoppingCondition.MaxRuntimeInSeconds": "launcher.max_run",
    "StoppingCondition.MaxWaitTimeInSeconds": "launcher.max_wait",
    "AlgorithmSpecification.TrainingImage": "launcher.image",
    "RoleArn": "launcher.role",
    "CheckpointConfig.S3Uri": "launcher.checkpoint_uri",
    "DebugHookConfig.HookParameters.include_regex": "debugger.include_regex",
}


def metric_definitions() -> list[dict[str, str]]:
    """Regular expressions that find an epoch's metrics in the log (see bincounter.training.logs.TrainingLog)."""
    names = ["train/loss", *(f"val/{name}" for name in METRICS)]
    return [{"Name": name, "Regex": rf"\b{name}=([-+0-9.eE]+|nan)"} for name in names]


def training_request(
    settings: Mapping[str, Any],
    *,
    name: str,
    hyperparameters: Mapping[str, str],
    source_uri: str,
    region: str,
    image: str,
    role: str,
    folder_uri: str,
    channel_uri: str | None,
    inspection: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The request for one training job, ``launcher.request`` merged in and checked.

    Args:
        settings: ``launcher`` as plain containers.
        name: of the job.
        hyperparameters: the run's overrides, see bincounter.cloud.hyperparameters.
        source_uri: the shipped archive.
        region: of the job.
        image: URI of the training image.
        role: ARN of the execution role.
        folder_uri: ``s3://`` folder under which SageMaker keeps a folder for each job.
        channel_uri: the photos, or ``None`` where the run gets them by itself.
        inspection: members for Debugger and Profiler, see bincounter.cloud.inspection.

    Raises:
        ConfigError: CreateTrainingJob has no such parameter, or does not take such a value.
    """
    request: dict[str, Any] = {
        "TrainingJobName": name,
        "HyperParameters": {
            **hyperparameters,
            "sagemaker_program": PROGRAM,
            "sagemaker_submit_directory": source_uri,
            "sagemaker_region": region,
        },
        "AlgorithmSpecification": {
            "TrainingImage": image,
            "TrainingInputMode": settings["input_mode"],
            "MetricDefinitions": metric_definitions(),
        },
        "RoleArn": role,
        "OutputDataConfig": {"S3OutputPath": folder_uri},
        "ResourceConfig": {
            "InstanceType": settings["instance_type"],
            "InstanceCount": settings["instance_count"],
            "VolumeSizeInGB": settings["volume_size"],
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": settings["max_run"]},
        "CheckpointConfig": {
            "S3Uri": settings["checkpoint_uri"] or f"{folder_uri}/{name}/checkpoints",
            "LocalPath": "/opt/ml/checkpoints",
        },
        "EnableManagedSpotTraining": settings["spot"],
        **inspection,
    }
    if settings["spot"]:
        request["StoppingCondition"]["MaxWaitTimeInSeconds"] = settings["max_wait"] or 2 * settings["max_run"]
    if settings["environment"]:
        request["Environment"] = dict(settings["environment"])
    if channel_uri is not None:
        request["InputDataConfig"] = [_channel(channel_uri, settings["input_mode"])]
    request = merged(request, settings["request"])
    refuse_secrets(request, {"Environment": "launcher.environment.", "HyperParameters": ""})
    check(request, "CreateTrainingJob")
    return request


def refuse_secrets(request: Mapping[str, Any], parts: Mapping[str, str]) -> None:
    """Refuse what looks like a secret: whoever may describe a job, or a model, reads its request.

    Args:
        request: the parameters.
        parts: members of it that hold names and values, and the setting that each comes from.

    Raises:
        ConfigError: naming the first.
    """
    for part, setting in parts.items():
        values = request.get(part, {})
        hidden = masked(values)
        for key in values:
            if hidden[key] != values[key] or _SECRET_NAME.search(key):
                raise ConfigError(
                    f"{setting}{key} looks like a secret, and a job's request can be read by whoever may describe it: "
                    "leave it out, and use what the job's role may read by itself, or logger=csv"
                )


def _channel(uri: str, input_mode: str) -> dict[str, Any]:
    # The slash matters: a prefix "bins" would also match what lies under "bins-old/".
    source = {"S3DataType": "S3Prefix", "S3Uri": uri.rstrip("/") + "/", "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": CHANNEL, "DataSource": {"S3DataSource": source}, "InputMode": input_mode}


def merged(request: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """``request`` with ``extra`` laid over it: mappings are merged, everything else is replaced."""
    result = dict(request)
    for key, value in extra.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


@cache
def service_model(service: str = "sagemaker") -> Any:
    """What botocore knows of an API of AWS's."""
    import botocore.session

    return botocore.session.get_session().get_service_model(service)


def check(request: Mapping[str, Any], operation: str, setting: str = "launcher.request") -> None:
    """Refuse a request that SageMaker's service model does not know.

    Args:
        request: the operation's parameters.
        operation: its name, such as ``CreateTrainingJob``.
        setting: that parts of it were given by, for messages.

    Raises:
        ConfigError: an unknown, missing or mistyped parameter, or a value that is none of those allowed.
    """
    check_shape(request, service_model().operation_model(operation).input_shape, operation, setting)


def check_shape(
    value: Mapping[str, Any],
    shape: Any,
    what: str,
    setting: str,
    settings: Mapping[str, str] = MappingProxyType(_SETTINGS),
) -> None:
    """Refuse parameters that a shape of a service model does not have.

    Args:
        value: the parameters.
        shape: of the model.
        what: has that shape, such as an operation, for messages.
        setting: that parts of it were given by.
        settings: the setting that a parameter comes from, by its path.

    Raises:
        ConfigError: an unknown, missing or mistyped parameter, or a value that is none of those allowed.
    """
    from botocore.validate import ParamValidator

    report = ParamValidator().validate(value, shape).generate_report()
    if report:
        # A misspelt name comes before what is missing for its sake.
        lines = sorted(report.splitlines(), key=lambda line: not line.startswith("Unknown parameter"))
        raise ConfigError(_mistake(lines[0], what, setting))
    for violation in violations(shape, value):
        raise ConfigError(_forbidden(violation, setting, settings))


def _mistake(line: str, operation: str, setting: str) -> str:
    unknown = re.match(r'Unknown parameter in (\S+): "([^"]+)", must be one of: (.*)', line)
    if not unknown:
        return f"{setting} does not make a {operation} request that SageMaker takes: {line}"
    where = "" if unknown[1] == "input" else f"{unknown[1]}."
    known = unknown[3].split(", ")
    hint = nearest(unknown[2], known)
    return f"{setting}.{where}{unknown[2]} is no parameter of {operation}" + (
        f": did you mean {hint}?" if hint else f": there are {', '.join(known)}"
    )


def _forbidden(violation: Violation, setting: str, settings: Mapping[str, str]) -> str:
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in violation.path).lstrip(".")
    name, value, limit = settings.get(path, f"{setting}.{path}"), violation.value, violation.limit
    what = f"the key {value} of {name}" if violation.of_key else f"{name}={value}"
    if violation.rule == "enum":
        hint = nearest(str(value), limit)
        return f"{what} is nothing that SageMaker knows: " + (
            f"did you mean {hint}?" if hint else f"there are {', '.join(limit)}"
        )
    if violation.rule == "pattern":
        return f"{what} does not have the form that SageMaker takes ({limit})"
    bound = "at most" if violation.rule == "max" else "at least"
    unit = (" characters" if isinstance(value, str) else " entries") if violation.sized else ""
    return f"{what} is out of range: {bound} {limit}{unit}"
