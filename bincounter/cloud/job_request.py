"""Request of a training job: CreateTrainingJob."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from bincounter.cloud.api_shapes import check_request, merge
from bincounter.cloud.hyperparameters import SPOT_VARIABLE
from bincounter.config.checks import METRICS
from bincounter.errors import ConfigError
from bincounter.redaction import mask_secrets

PROGRAM = "start.py"  # run by the image's toolkit; made by bincounter.cloud.code_archive
CHANNEL = "bins"  # the channel that becomes data.source
_SECRET_NAME = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
# Settings that members of the request come from, for messages.
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
    """Make regular expressions for an epoch's metrics in the log of bincounter.training.logs.TrainingLog."""
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
    """Make the request for a training job, merge ``launcher.request`` into it, and check it.

    Args:
        settings: ``launcher`` as plain containers.
        name: of the job.
        hyperparameters: the run's overrides, see bincounter.cloud.hyperparameters.
        source_uri: ``s3://`` address of the code archive.
        region: of the job.
        image: URI of the training image.
        role: ARN of the execution role.
        folder_uri: ``s3://`` folder under which SageMaker keeps a folder for each job.
        channel_uri: ``s3://`` folder of the photos, or ``None`` where the run fetches them itself.
        inspection: members for Debugger and Profiler, see bincounter.cloud.debugger_rules.

    Raises:
        ConfigError: CreateTrainingJob does not accept a parameter or a value.
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
    environment = {**settings["environment"], **({SPOT_VARIABLE: "true"} if settings["spot"] else {})}
    if environment:
        request["Environment"] = environment
    if channel_uri is not None:
        request["InputDataConfig"] = [_channel(channel_uri, settings["input_mode"])]
    request = merge(request, settings["request"])
    check_no_secrets(request, {"Environment": "launcher.environment.", "HyperParameters": ""})
    check_request(request, "CreateTrainingJob", settings=_SETTINGS)
    return request


def check_no_secrets(request: Mapping[str, Any], parts: Mapping[str, str]) -> None:
    """Check a request for secrets: everybody who may describe a job, or a model, reads its request.

    Args:
        request: the parameters.
        parts: members of it that hold names and values, with the prefix of the setting that each comes from.

    Raises:
        ConfigError: a name or a value looks like a secret.
    """
    for part, setting in parts.items():
        values = request.get(part, {})
        hidden = mask_secrets(values)
        for key in values:
            if hidden[key] != values[key] or _SECRET_NAME.search(key):
                raise ConfigError(
                    f"{setting}{key} looks like a secret, and everybody who may describe a job can read its request: "
                    "leave it out, and use what the job's role may read by itself, or logger=csv"
                )


def _channel(uri: str, input_mode: str) -> dict[str, Any]:
    # The slash matters: a prefix "bins" would also match "bins-old/".
    source = {"S3DataType": "S3Prefix", "S3Uri": uri.rstrip("/") + "/", "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": CHANNEL, "DataSource": {"S3DataSource": source}, "InputMode": input_mode}
