"""The API objects that ``target.request`` adds to, and what of them has a setting of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from bincounter.cloud.api_shapes import check_shape, merged, service_model
from bincounter.errors import ConfigError, nearest

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

SAGEMAKER, RUNTIME, AUTOSCALING = "sagemaker", "sagemaker-runtime", "application-autoscaling"


class Call(NamedTuple):
    """One request to AWS.

    Attributes:
        service: as boto3 names it.
        operation: as the service names it, such as ``CreateModel``.
        request: its parameters.
    """

    service: str
    operation: str
    request: dict[str, Any]

    def send(self, account: "Account") -> dict[str, Any]:
        """Send it; errors are botocore's."""
        from botocore import xform_name

        clients = {SAGEMAKER: "sagemaker", RUNTIME: "runtime", AUTOSCALING: "autoscaling"}
        client = getattr(account, clients[self.service])
        return getattr(client, xform_name(self.operation))(**self.request)


@dataclass(frozen=True)
class ApiObject:
    """A part of ``target.request``.

    Attributes:
        operation: whose parameters it has.
        service: whose operation that is.
        member: of the operation's parameters, a list whose one entry the object is.
        settled: parameters that come from elsewhere, by their path, and where from.
    """

    operation: str
    service: str = SAGEMAKER
    member: str = ""
    settled: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> Any:
        """What botocore's service model knows of it."""
        shape = service_model(self.service).operation_model(self.operation).input_shape
        return shape.members[self.member].member if self.member else shape


_NAME, _ARCHIVE = "name", "ckpt_path, or archive"
_TYPE, _COUNT = "target.instance_type", "target.instance_count"
_ENDPOINTS_OWN = "nothing: it is always that of the endpoint"
OBJECTS = {
    "Model": ApiObject(
        "CreateModel",
        settled={
            "ModelName": _NAME,
            "ExecutionRoleArn": "target.role",
            "PrimaryContainer.Image": "target.image",
            "PrimaryContainer.ModelDataUrl": _ARCHIVE,
            "PrimaryContainer.ModelDataSource": _ARCHIVE,
            "PrimaryContainer.Environment": "target.environment",
            "Containers": "target.request.Model.PrimaryContainer: there is one container",
        },
    ),
    "EndpointConfig": ApiObject(
        "CreateEndpointConfig",
        settled={
            "EndpointConfigName": _NAME,
            "ProductionVariants": "target.request.ProductionVariant: there is one variant",
            "ShadowProductionVariants": "another name: an endpoint has one variant, which the price is of",
            "AsyncInferenceConfig.OutputConfig.S3OutputPath": "target.output_uri",
            "AsyncInferenceConfig.OutputConfig.S3FailurePath": "target.failure_uri",
        },
    ),
    "ProductionVariant": ApiObject(
        "CreateEndpointConfig",
        member="ProductionVariants",
        settled={
            "VariantName": "nothing: it is always AllTraffic",
            "ModelName": _NAME,
            "InstanceType": _TYPE,
            "InitialInstanceCount": _COUNT,
            "InstancePools": _TYPE,
            "ServerlessConfig.MemorySizeInMB": "target.memory_mb",
            "ServerlessConfig.MaxConcurrency": "target.max_concurrency",
        },
    ),
    "Endpoint": ApiObject("CreateEndpoint", settled={"EndpointName": _NAME, "EndpointConfigName": _NAME}),
    "UpdateEndpoint": ApiObject("UpdateEndpoint", settled={"EndpointName": _NAME, "EndpointConfigName": _NAME}),
    "TransformJob": ApiObject(
        "CreateTransformJob",
        settled={
            "TransformJobName": _NAME,
            "ModelName": _NAME,
            "BatchStrategy": "nothing: photos are sent one by one",
            "TransformInput.DataSource": "input",
            "TransformOutput.S3OutputPath": "output",
            "TransformResources.InstanceType": _TYPE,
            "TransformResources.InstanceCount": _COUNT,
            "Environment": "target.environment",
        },
    ),
    "ScalableTarget": ApiObject(
        "RegisterScalableTarget",
        AUTOSCALING,
        settled=dict.fromkeys(("ServiceNamespace", "ResourceId", "ScalableDimension"), _ENDPOINTS_OWN),
    ),
    "ScalingPolicy": ApiObject(
        "PutScalingPolicy",
        AUTOSCALING,
        settled=dict.fromkeys(("ServiceNamespace", "ResourceId", "ScalableDimension"), _ENDPOINTS_OWN),
    ),
    "InvokeEndpoint": ApiObject(
        "InvokeEndpoint", RUNTIME, settled={"EndpointName": _NAME, "Body": "input", "ContentType": "input"}
    ),
    "InvokeEndpointAsync": ApiObject(
        "InvokeEndpointAsync",
        RUNTIME,
        settled={"EndpointName": _NAME, "InputLocation": "input", "ContentType": "input"},
    ),
}
"""By the name that ``target.request`` knows them under."""


def check_names(extra: Mapping[str, Any]) -> None:
    """Refuse objects that no request is made of, and parameters that have a setting.

    Args:
        extra: ``target.request``.

    Raises:
        ConfigError: naming the first.
    """
    for name, given in extra.items():
        if name in ("ModelPackage", "ModelPackageGroup"):
            raise ConfigError(
                f"target.request.{name} is not a part of an endpoint: register the model with "
                "`aws sagemaker create-model-package`"
            )
        if name not in OBJECTS:
            hint = nearest(name, OBJECTS)
            told = f"did you mean {hint}?" if hint else f"there are {', '.join(OBJECTS)}"
            raise ConfigError(f"target.request.{name} is no object of the API that an endpoint is made of: {told}")
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"target.request.{name}={given} is no mapping: write target.request.{name}.PARAMETER=VALUE"
            )
        for path, setting in OBJECTS[name].settled.items():
            if _inside(given, path) is not None:
                raise ConfigError(f"target.request.{name}.{path} is set by other means: use {setting}")


def completed(name: str, request: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """An object with what ``target.request`` adds to it, checked against botocore's service model.

    Args:
        name: of the object.
        request: what it has of ours.
        extra: ``target.request``.

    Raises:
        ConfigError: there is no such parameter, or it does not take such a value.
    """
    added = dict(extra.get(name) or {})
    if "Tags" in request and isinstance(added.get("Tags"), list):
        added["Tags"] = [*request["Tags"], *added["Tags"]]
    result = merged(request, added)
    kind = OBJECTS[name]
    check_shape(result, kind.shape, kind.operation, f"target.request.{name}", kind.settled)
    return result


def called(name: str, request: Mapping[str, Any], extra: Mapping[str, Any]) -> Call:
    """The request that makes an object, see :func:`completed`."""
    return Call(OBJECTS[name].service, OBJECTS[name].operation, completed(name, request, extra))


def _inside(given: Mapping[str, Any], path: str) -> Any:
    node: Any = given
    for step in path.split("."):
        node = node.get(step) if isinstance(node, Mapping) else None
    return node
