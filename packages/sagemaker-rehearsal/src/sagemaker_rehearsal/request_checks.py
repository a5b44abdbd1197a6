"""Rules on CreateTrainingJob: requests that AWS rejects, and requests that cannot be rehearsed.

The rules between fields are AWS's, from the API reference of CreateTrainingJob. Lengths, ranges, enumerations and
patterns are those of botocore's service model (protocol.py).
"""

import re
from typing import Any

from sagemaker_rehearsal import INTERRUPTIONS
from sagemaker_rehearsal.protocol import Refused

_DAY = 86_400  # AWS's default of MaxRuntimeInSeconds
_TENSORS = "/opt/ml/output/tensors"
_CHECKPOINTS = "/opt/ml/checkpoints"
_PROFILING_INTERVALS = (100, 200, 500, 1000, 5000, 60000)  # milliseconds between two samples of the machine


def check_rules(request: dict[str, Any]) -> None:
    """Check AWS's rules between the members of a request.

    Args:
        request: body with a valid shape, see :func:`~sagemaker_rehearsal.protocol.check_shape`.

    Raises:
        Refused: a rule is broken.
    """
    spot = request.get("EnableManagedSpotTraining", False)
    stopping = request.get("StoppingCondition", {})
    longest, wait = stopping.get("MaxRuntimeInSeconds", _DAY), stopping.get("MaxWaitTimeInSeconds")
    algorithm = request.get("AlgorithmSpecification", {})
    channels = [channel["ChannelName"] for channel in request.get("InputDataConfig", [])]
    rules = [rule for kind in ("Debug", "Profiler") for rule in request.get(f"{kind}RuleConfigurations", [])]
    interval = request.get("ProfilerConfig", {}).get("ProfilingIntervalInMilliseconds", 500)
    refuse_first(
        {
            "AlgorithmSpecification needs exactly one of TrainingImage and AlgorithmName.": (
                ("TrainingImage" in algorithm) == ("AlgorithmName" in algorithm)
            ),
            "ResourceConfig, StoppingCondition and OutputDataConfig are required.": not (
                {"ResourceConfig", "StoppingCondition", "OutputDataConfig"} <= request.keys()
            ),
            "Managed spot training needs MaxWaitTimeInSeconds.": spot and wait is None,
            f"MaxWaitTimeInSeconds must be at least MaxRuntimeInSeconds ({longest}).": (
                wait is not None and wait < longest
            ),
            "MaxWaitTimeInSeconds is for managed spot training only.": wait is not None and not spot,
            "A warm pool (KeepAlivePeriodInSeconds) cannot be used with managed spot training.": (
                spot and "KeepAlivePeriodInSeconds" in request.get("ResourceConfig", {})
            ),
            "InputDataConfig names a channel twice.": len(set(channels)) < len(channels),
            "RuleConfigurationName must be unique.": (
                len({rule["RuleConfigurationName"] for rule in rules}) < len(rules)
            ),
            f"ProfilingIntervalInMilliseconds must be one of {list(_PROFILING_INTERVALS)}.": (
                interval not in _PROFILING_INTERVALS
            ),
        }
    )
    for definition in algorithm.get("MetricDefinitions", []):
        try:
            re.compile(definition["Regex"])
        except re.error as error:
            raise Refused(
                "ValidationException", f"Metric {definition['Name']}: bad regular expression: {error}"
            ) from None


def check_rehearsable(request: dict[str, Any]) -> None:
    """Check that the rehearsal supports a request.

    Args:
        request: body that AWS accepts.

    Raises:
        Refused: it uses an unsupported feature.
    """
    algorithm = request["AlgorithmSpecification"]
    channels = request.get("InputDataConfig", [])
    sources = [channel["DataSource"].get("S3DataSource", {}) for channel in channels]
    modes = {algorithm["TrainingInputMode"], *(channel.get("InputMode", "File") for channel in channels)}
    refuse_unsupported(
        {
            "ContainerEntrypoint: jobs run in script mode": "ContainerEntrypoint" in algorithm,
            "input modes other than File and FastFile": not modes <= {"File", "FastFile"},
            "channels other than S3 prefixes": any(source.get("S3DataType") != "S3Prefix" for source in sources),
            "compressed channels": any(channel.get("CompressionType", "None") != "None" for channel in channels),
            "instance groups: InstanceType and InstanceCount are needed": not (
                {"InstanceType", "InstanceCount"} <= request["ResourceConfig"].keys()
            ),
            f"checkpoint paths other than {_CHECKPOINTS}": (
                request.get("CheckpointConfig", {}).get("LocalPath", _CHECKPOINTS) != _CHECKPOINTS
            ),
            f"paths of a DebugHookConfig other than {_TENSORS}": (
                request.get("DebugHookConfig", {}).get("LocalPath", _TENSORS).rstrip("/") != _TENSORS
            ),
            "outputs other than model.tar.gz": request["OutputDataConfig"].get("CompressionType", "GZIP") != "GZIP",
        }
    )
    seconds = request.get("Environment", {}).get(INTERRUPTIONS)
    if seconds is None:
        return
    refuse_first(
        {
            f"{INTERRUPTIONS} needs a managed spot job with a CheckpointConfig.": not (
                request.get("EnableManagedSpotTraining", False) and "CheckpointConfig" in request
            ),
            f'{INTERRUPTIONS} must be seconds separated by commas, such as "5,0.5".': (
                re.fullmatch(r"\d+(\.\d+)?(,\d+(\.\d+)?)*", seconds) is None
            ),
        }
    )


def refuse_unsupported(features: dict[str, bool]) -> None:
    """Reject a request that uses an unsupported feature.

    Args:
        features: feature -> True if the request uses it.

    Raises:
        Refused: the request uses one; the message has the first.
    """
    refuse_first({f"The rehearsal does not support {feature}.": used for feature, used in features.items()})


def refuse_first(rules: dict[str, bool]) -> None:
    """Reject a request that breaks a rule.

    Args:
        rules: message -> True if the rule is broken.

    Raises:
        Refused: one is broken; the message is the first.
    """
    for message, broken in rules.items():
        if broken:
            raise Refused("ValidationException", message)
