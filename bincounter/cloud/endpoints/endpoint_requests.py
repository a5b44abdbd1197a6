"""Requests of an endpoint or a transform job.

Models and configurations are named by their content, ``<name>-<8 hex digits>``: the same checkpoint with the same
settings is reused instead of created twice. Every resource carries the tag ``bincounter:endpoint=<name>``.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bincounter.cloud.endpoints.api_objects import SAGEMAKER, Call, build_call, complete_request
from bincounter.cloud.instances import GPU_MACHINE, has_gpus
from bincounter.cloud.job_request import check_no_secrets
from bincounter.errors import ConfigError

TAG = "bincounter:endpoint"
VARIANT = "AllTraffic"
_LONGEST_NAME = 63 - 9  # SageMaker's limit, less a hyphen and eight digits
_STARTING_S = 600  # seconds until the first health check must pass: a container loads Ray and torch, and may install
_LARGEST_PAYLOAD_MB = 100  # of a transform job


@dataclass(frozen=True)
class EndpointSpec:
    """Settings of an endpoint.

    Attributes:
        name: name of the endpoint.
        kind: ``realtime``, ``serverless`` or ``async``.
        target: the settings of ``target`` as plain containers.
        max_body_mb: size of the largest request that the archive accepts, in MB.
    """

    name: str
    kind: str
    target: Mapping[str, Any]
    max_body_mb: float

    def __post_init__(self) -> None:
        """Check that the name leaves room for the digest in the names of models and configurations.

        Raises:
            ConfigError: the name is too long.
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
        """Tag of all resources of the endpoint."""
        return [{"Key": TAG, "Value": self.name}]


def model_call(spec: EndpointSpec, *, image: str, role: str, archive_uri: str) -> Call:
    """CreateModel.

    Args:
        spec: settings of the endpoint.
        image: URI of the serving image.
        role: ARN of the execution role.
        archive_uri: S3 address of the packed checkpoint.

    Raises:
        ConfigError: a parameter in ``target.request`` is not valid.
    """
    environment = {**_stack_environment(spec), **spec.target["environment"]}
    check_no_secrets({"Environment": environment}, {"Environment": "target.environment."})
    container: dict[str, Any] = {"Image": image, "ModelDataUrl": archive_uri}
    if environment:
        container["Environment"] = environment
    request = {"PrimaryContainer": container, "ExecutionRoleArn": role, "Tags": spec.tags}
    return _named_by_content("Model", "ModelName", request, spec)


def _stack_environment(spec: EndpointSpec) -> dict[str, str]:
    """Environment variables that AWS's SDK sets for the older image."""
    if spec.target["stack"] != "pytorch":
        return {}
    largest = str(int(spec.max_body_mb * 1e6))
    return {
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
        "TS_MAX_REQUEST_SIZE": largest,
        "TS_MAX_RESPONSE_SIZE": largest,
    }


def config_call(spec: EndpointSpec, *, model: Call, bucket_uri: str) -> Call:
    """CreateEndpointConfig.

    Args:
        spec: settings of the endpoint.
        model: CreateModel.
        bucket_uri: ``s3://`` folder for the answers of an asynchronous endpoint by default.

    Raises:
        ConfigError: a parameter in ``target.request`` is not valid.
    """
    request: dict[str, Any] = {"ProductionVariants": [_variant(spec, model)], "Tags": spec.tags}
    if spec.kind == "async":
        output = spec.target["output_uri"] or f"{bucket_uri}/{spec.name}/output"
        failure = spec.target["failure_uri"] or f"{bucket_uri}/{spec.name}/failure"
        request["AsyncInferenceConfig"] = {"OutputConfig": {"S3OutputPath": output, "S3FailurePath": failure}}
    return _named_by_content("EndpointConfig", "EndpointConfigName", request, spec)


def _variant(spec: EndpointSpec, model: Call) -> dict[str, Any]:
    target = spec.target
    variant: dict[str, Any] = {"VariantName": VARIANT, "ModelName": model.request["ModelName"]}
    if spec.kind == "serverless":
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
    return complete_request("ProductionVariant", variant, spec.extra)


def endpoint_call(spec: EndpointSpec, config: Call, *, update: bool) -> Call:
    """CreateEndpoint or UpdateEndpoint, with the configuration that ``config`` creates."""
    request = {"EndpointName": spec.name, "EndpointConfigName": config.request["EndpointConfigName"]}
    if update:
        return build_call("UpdateEndpoint", request, spec.extra)
    return build_call("Endpoint", {**request, "Tags": spec.tags}, spec.extra)


def transform_call(spec: EndpointSpec, *, model: Call, source: str, content_type: str, output: str) -> Call:
    """CreateTransformJob.

    Args:
        spec: settings of the endpoint.
        model: CreateModel.
        source: ``s3://`` folder of photos.
        content_type: content type of the photos.
        output: ``s3://`` folder of answers.

    Raises:
        ConfigError: a parameter in ``target.request`` is not valid.
    """
    ending = f"-{time.strftime('%m%d%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    request = {
        "TransformJobName": spec.name[: 63 - len(ending)].rstrip("-") + ending,
        "ModelName": model.request["ModelName"],
        "BatchStrategy": "SingleRecord",
        "MaxPayloadInMB": max(1, min(_LARGEST_PAYLOAD_MB, int(spec.max_body_mb))),
        "TransformInput": {
            # The slash matters: a prefix "bins" would also match "bins-old/".
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": source.rstrip("/") + "/"}},
            "ContentType": content_type,
            "SplitType": "None",
        },
        "TransformOutput": {"S3OutputPath": output, "Accept": "application/json", "AssembleWith": "None"},
        "TransformResources": {
            "InstanceType": spec.target["instance_type"],
            "InstanceCount": spec.target["instance_count"],
        },
        "Tags": spec.tags,
    }
    return build_call("TransformJob", request, spec.extra)


def _named_by_content(kind: str, member: str, request: dict[str, Any], spec: EndpointSpec) -> Call:
    placeholder = f"{spec.name}-00000000"
    call = build_call(kind, {member: placeholder, **request}, spec.extra)
    content = json.dumps(call.request, sort_keys=True, default=str)
    name = f"{spec.name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    return Call(SAGEMAKER, call.operation, {**call.request, member: name})
