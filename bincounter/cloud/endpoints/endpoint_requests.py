"""The requests that an endpoint, or a transform job, is made of.

Models and configurations are named by what they hold, ``<name>-<8 hex digits>``: the same checkpoint with the same
settings is found again instead of being made twice. Everything carries the tag ``bincounter:endpoint=<name>``.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bincounter.cloud.endpoints.api_objects import SAGEMAKER, Call, called, completed
from bincounter.cloud.instances import GPU_MACHINE, has_gpus
from bincounter.cloud.job_request import refuse_secrets
from bincounter.errors import ConfigError

TAG = "bincounter:endpoint"
VARIANT = "AllTraffic"
_LONGEST_NAME = 63 - 9  # SageMaker's limit, less a hyphen and eight digits
_STARTING_S = 600  # seconds that a container has to answer its health check: it loads Ray and torch, and may install
_LARGEST_PAYLOAD_MB = 100  # of a transform job


@dataclass(frozen=True)
class Wanted:
    """What a command wants of SageMaker.

    Attributes:
        name: of the endpoint.
        kind: ``realtime``, ``serverless`` or ``async``.
        target: the settings of ``target`` as plain containers.
        max_body_mb: the largest request that the archive takes.
    """

    name: str
    kind: str
    target: Mapping[str, Any]
    max_body_mb: float

    def __post_init__(self) -> None:
        """Refuse a name that leaves no room for those of models and configurations.

        Raises:
            ConfigError: it is too long.
        """
        if len(self.name) > _LONGEST_NAME:
            raise ConfigError(
                f"name={self.name} is longer than the {_LONGEST_NAME} characters that leave room for a digest: "
                "shorten it"
            )

    @property
    def extra(self) -> Mapping[str, Any]:
        """``target.request``."""
        return self.target["request"]

    @property
    def tags(self) -> list[dict[str, str]]:
        """What everything of this endpoint's is found again by."""
        return [{"Key": TAG, "Value": self.name}]


def model_call(wanted: Wanted, *, image: str, role: str, archive_uri: str) -> Call:
    """CreateModel.

    Args:
        wanted: what the command wants.
        image: URI of the serving image.
        role: ARN of the execution role.
        archive_uri: of the packed checkpoint.

    Raises:
        ConfigError: SageMaker does not take what ``target.request`` adds.
    """
    environment = {**_stack_environment(wanted), **wanted.target["environment"]}
    refuse_secrets({"Environment": environment}, {"Environment": "target.environment."})
    container: dict[str, Any] = {"Image": image, "ModelDataUrl": archive_uri}
    if environment:
        container["Environment"] = environment
    request = {"PrimaryContainer": container, "ExecutionRoleArn": role, "Tags": wanted.tags}
    return _named_by_content("Model", "ModelName", request, wanted)


def _stack_environment(wanted: Wanted) -> dict[str, str]:
    """What the older image reads, and AWS's SDK sets for it."""
    if wanted.target["stack"] != "pytorch":
        return {}
    largest = str(int(wanted.max_body_mb * 1e6))
    return {
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
        "TS_MAX_REQUEST_SIZE": largest,
        "TS_MAX_RESPONSE_SIZE": largest,
    }


def config_call(wanted: Wanted, *, model: Call, bucket_uri: str) -> Call:
    """CreateEndpointConfig.

    Args:
        wanted: what the command wants.
        model: CreateModel.
        bucket_uri: ``s3://`` folder under which an asynchronous endpoint answers by default.

    Raises:
        ConfigError: SageMaker does not take what ``target.request`` adds.
    """
    request: dict[str, Any] = {"ProductionVariants": [_variant(wanted, model)], "Tags": wanted.tags}
    if wanted.kind == "async":
        output = wanted.target["output_uri"] or f"{bucket_uri}/{wanted.name}/output"
        failure = wanted.target["failure_uri"] or f"{bucket_uri}/{wanted.name}/failure"
        request["AsyncInferenceConfig"] = {"OutputConfig": {"S3OutputPath": output, "S3FailurePath": failure}}
    return _named_by_content("EndpointConfig", "EndpointConfigName", request, wanted)


def _variant(wanted: Wanted, model: Call) -> dict[str, Any]:
    target = wanted.target
    variant: dict[str, Any] = {"VariantName": VARIANT, "ModelName": model.request["ModelName"]}
    if wanted.kind == "serverless":
        variant["ServerlessConfig"] = {
            "MemorySizeInMB": target["memory_mb"],
            "MaxConcurrency": target["max_concurrency"],
        }
    else:
        variant |= {
            "InstanceType": target["instance_type"],
            "InitialInstanceCount": target["instance_count"],
            "InitialVariantWeight": 1.0,
            "ContainerStartupHealthCheckTimeoutInSeconds": _STARTING_S,
        }
        image = model.request["PrimaryContainer"]["Image"]
        if target["stack"] == "ray" and has_gpus(target["instance_type"], image):
            variant["InferenceAmiVersion"] = GPU_MACHINE
    return completed("ProductionVariant", variant, wanted.extra)


def endpoint_call(wanted: Wanted, config: Call, *, update: bool) -> Call:
    """CreateEndpoint or UpdateEndpoint, with the configuration that ``config`` creates."""
    request = {"EndpointName": wanted.name, "EndpointConfigName": config.request["EndpointConfigName"]}
    if update:
        return called("UpdateEndpoint", request, wanted.extra)
    return called("Endpoint", {**request, "Tags": wanted.tags}, wanted.extra)


def transform_call(wanted: Wanted, *, model: Call, source: str, content_type: str, output: str) -> Call:
    """CreateTransformJob.

    Args:
        wanted: what the command wants.
        model: CreateModel.
        source: ``s3://`` folder of photos.
        content_type: of the photos.
        output: ``s3://`` folder of answers.

    Raises:
        ConfigError: SageMaker does not take what ``target.request`` adds.
    """
    ending = f"-{time.strftime('%m%d%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    request = {
        "TransformJobName": wanted.name[: 63 - len(ending)].rstrip("-") + ending,
        "ModelName": model.request["ModelName"],
        "BatchStrategy": "SingleRecord",
        "MaxPayloadInMB": max(1, min(_LARGEST_PAYLOAD_MB, int(wanted.max_body_mb))),
        "TransformInput": {
            # The slash matters: a prefix "bins" would also match what lies under "bins-old/".
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": source.rstrip("/") + "/"}},
            "ContentType": content_type,
            "SplitType": "None",
        },
        "TransformOutput": {"S3OutputPath": output, "Accept": "application/json", "AssembleWith": "None"},
        "TransformResources": {
            "InstanceType": wanted.target["instance_type"],
            "InstanceCount": wanted.target["instance_count"],
        },
        "Tags": wanted.tags,
    }
    return called("TransformJob", request, wanted.extra)


def _named_by_content(kind: str, member: str, request: dict[str, Any], wanted: Wanted) -> Call:
    placeholder = f"{wanted.name}-00000000"
    call = called(kind, {member: placeholder, **request}, wanted.extra)
    content = json.dumps(call.request, sort_keys=True, default=str)
    name = f"{wanted.name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    return Call(SAGEMAKER, call.operation, {**call.request, member: name})
