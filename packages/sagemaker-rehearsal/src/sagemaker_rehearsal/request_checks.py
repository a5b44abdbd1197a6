"""What AWS refuses about CreateTrainingJob, and what the rehearsal cannot do.

Lengths, ranges, enumerations and patterns are those of botocore's service model, which the client itself does not
check. The rules between fields are AWS's, from the API reference of CreateTrainingJob.
"""

import re
from typing import Any

from botocore.validate import ParamValidator

from bincounter.cloud.api_shapes import Violation, violations
from bincounter.smdebug.settings import INTERVALS
from sagemaker_rehearsal import INTERRUPTIONS
from sagemaker_rehearsal.protocol import Refused

_DAY = 86_400  # AWS's default of MaxRuntimeInSeconds
_TENSORS = "/opt/ml/output/tensors"


def check_shape(shape: Any, request: dict[str, Any]) -> None:
    """Refuse a request that botocore's service model does not allow.

    Args:
        shape: the operation's ``input_shape``.
        request: the decoded body.

    Raises:
        Refused: the first members that break a type, a length, a range, an enumeration or a pattern.
    """
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        raise Refused("ValidationException", report.generate_report())
    broken = [_described(violation) for violation in violations(shape, request)]
    if broken:
        count = f"{len(broken)} validation error{'s' * (len(broken) > 1)} detected"
        raise Refused("ValidationException", f"{count}: {'; '.join(broken)}")


def _described(violation: Violation) -> str:
    """As AWS words it."""
    steps = [f"{step + 1}.member" if isinstance(step, int) else _lower(step) for step in violation.path]
    path, limit = ".".join([*steps, *(["key"] if violation.of_key else [])]), violation.limit
    measure = "length" if violation.sized else "value"
    constraint = {
        "max": f"have {measure} less than or equal to {limit}",
        "min": f"have {measure} greater than or equal to {limit}",
        "enum": f"satisfy enum value set: {limit}",
        "pattern": f"satisfy regular expression pattern: {limit}",
    }[violation.rule]
    return f"Value '{violation.value}' at '{path}' failed to satisfy constraint: Member must {constraint}"


def _lower(name: str) -> str:
    return name[:1].lower() + name[1:]


def check_rules(request: dict[str, Any]) -> None:
    """Refuse what AWS refuses though every member on its own is right.

    Raises:
        Refused: the rule that is broken.
    """
    spot = request.get("EnableManagedSpotTraining", False)
    stopping = request.get("StoppingCondition", {})
    longest, wait = stopping.get("MaxRuntimeInSeconds", _DAY), stopping.get("MaxWaitTimeInSeconds")
    algorithm = request.get("AlgorithmSpecification", {})
    channels = [channel["ChannelName"] for channel in request.get("InputDataConfig", [])]
    asked = [rule for kind in ("Debug", "Profiler") for rule in request.get(f"{kind}RuleConfigurations", [])]
    interval = request.get("ProfilerConfig", {}).get("ProfilingIntervalInMilliseconds", 500)
    rules = {
        "AlgorithmSpecification needs exactly one of TrainingImage and AlgorithmName.": (
            ("TrainingImage" in algorithm) == ("AlgorithmName" in algorithm)
        ),
        "ResourceConfig, StoppingCondition and OutputDataConfig are required.": not (
            {"ResourceConfig", "StoppingCondition", "OutputDataConfig"} <= request.keys()
        ),
        "Managed spot training needs MaxWaitTimeInSeconds.": spot and wait is None,
        f"MaxWaitTimeInSeconds must be at least MaxRuntimeInSeconds ({longest}).": wait is not None and wait < longest,
        "MaxWaitTimeInSeconds is for managed spot training only.": wait is not None and not spot,
        "A warm pool (KeepAlivePeriodInSeconds) cannot be used with managed spot training.": (
            spot and "KeepAlivePeriodInSeconds" in request.get("ResourceConfig", {})
        ),
        "InputDataConfig names a channel twice.": len(set(channels)) < len(channels),
        "RuleConfigurationName must be unique.": len({rule["RuleConfigurationName"] for rule in asked}) < len(asked),
        f"ProfilingIntervalInMilliseconds must be one of {list(INTERVALS)}.": interval not in INTERVALS,
    }
    refuse_first(rules)
    for definition in algorithm.get("MetricDefinitions", []):
        try:
            re.compile(definition["Regex"])
        except re.error as error:
            raise Refused(
                "ValidationException", f"Metric {definition['Name']}: bad regular expression: {error}"
            ) from None


def check_rehearsable(request: dict[str, Any]) -> None:
    """Refuse what AWS could do and the rehearsal cannot, rather than to do something else.

    Raises:
        Refused: what it cannot do.
    """
    algorithm = request["AlgorithmSpecification"]
    channels = request.get("InputDataConfig", [])
    sources = [channel["DataSource"].get("S3DataSource", {}) for channel in channels]
    modes = [algorithm["TrainingInputMode"], *(channel.get("InputMode", "File") for channel in channels)]
    pauses = request.get("Environment", {}).get(INTERRUPTIONS)
    limits = {
        "script mode only, so no ContainerEntrypoint.": "ContainerEntrypoint" in algorithm,
        "no input mode but File and FastFile.": not {*modes} <= {"File", "FastFile"},
        "no channel but of S3 prefixes.": any(source.get("S3DataType") != "S3Prefix" for source in sources),
        "no compressed channels.": any(channel.get("CompressionType", "None") != "None" for channel in channels),
        "one group of equal instances (InstanceType and InstanceCount).": not (
            {"InstanceType", "InstanceCount"} <= request["ResourceConfig"].keys()
        ),
        "checkpoints at /opt/ml/checkpoints only.": (
            request.get("CheckpointConfig", {}).get("LocalPath", "/opt/ml/checkpoints") != "/opt/ml/checkpoints"
        ),
        f"tensors of a DebugHookConfig at {_TENSORS} only.": (
            request.get("DebugHookConfig", {}).get("LocalPath", _TENSORS).rstrip("/") != _TENSORS
        ),
        "outputs as model.tar.gz only.": request["OutputDataConfig"].get("CompressionType", "GZIP") != "GZIP",
        "interruptions of managed spot jobs with a CheckpointConfig only.": (
            pauses is not None
            and not (request.get("EnableManagedSpotTraining", False) and "CheckpointConfig" in request)
        ),
        f'{INTERRUPTIONS} as seconds with commas between, such as "5,0.5".': (
            pauses is not None and re.fullmatch(r"\d+(\.\d+)?(,\d+(\.\d+)?)*", pauses) is None
        ),
    }
    refuse_first({f"The rehearsal knows {limit}": broken for limit, broken in limits.items()})


def refuse_first(rules: dict[str, bool]) -> None:
    """Refuse a request for the first of its faults.

    Args:
        rules: what is wrong to whether it is.

    Raises:
        Refused: something is.
    """
    for message, broken in rules.items():
        if broken:
            raise Refused("ValidationException", message)
