"""API objects that ``target.request`` may extend, and requests to AWS."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from bincounter.cloud.api_shapes import check_shape, merge, service_model
from bincounter.errors import ConfigError, closest_match
from bincounter.files import look_up

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

SAGEMAKER, RUNTIME, AUTOSCALING = "sagemaker", "sagemaker-runtime", "application-autoscaling"


class Call(NamedTuple):
    """One request to AWS.

    Attributes:
        service: name of the service in boto3.
        operation: name of the operation, such as ``CreateModel``.
        request: parameters of the operation.
    """

    service: str
    operation: str
    request: dict[str, Any]

    def send(self, account: "Account") -> dict[str, Any]:
        """Send the request and return its response; raises the errors of botocore."""
        from botocore import xform_name

        return getattr(account.client(self.service), xform_name(self.operation))(**self.request)


@dataclass(frozen=True)
class ApiObject:
    """An API object that ``target.request`` may extend.

    Attributes:
        operation: API operation that takes the parameters.
        service: name of the operation's service in boto3.
        member: parameter of the operation that is a list with the object as its only entry.
        reserved: path of each parameter that bincounter sets -> the setting to use instead.
    """

    operation: str
    service: str = SAGEMAKER
    member: str = ""
    reserved: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> Any:
        """Shape in botocore's service model."""
        shape = service_model(self.service).operation_model(self.operation).input_shape
        return shape.members[self.member].member if self.member else shape


_NAME, _ARCHIVE = "name", "ckpt_path, or archive"
_TYPE, _COUNT = "target.instance_type", "target.instance_count"
_ENDPOINTS_OWN = "the endpoint itself"
API_OBJECTS = {
    "Model": ApiObject(
        "CreateModel",
        reserved={
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
        reserved={
            "EndpointConfigName": _NAME,
            "ProductionVariants": "target.request.ProductionVariant: there is one variant",
            "ShadowProductionVariants": "bincounter: an endpoint has one variant, from which the price is computed",
            "AsyncInferenceConfig.OutputConfig.S3OutputPath": "target.output_uri",
            "AsyncInferenceConfig.OutputConfig.S3FailurePath": "target.failure_uri",
        },
    ),
    "ProductionVariant": ApiObject(
        "CreateEndpointConfig",
        member="ProductionVariants",
        reserved={
            "VariantName": "bincounter: it is always AllTraffic",
            "ModelName": _NAME,
            "InstanceType": _TYPE,
            "InitialInstanceCount": _COUNT,
            "InstancePools": _TYPE,
            "ServerlessConfig.MemorySizeInMB": "target.memory_mb",
            "ServerlessConfig.MaxConcurrency": "target.max_concurrency",
        },
    ),
    "Endpoint": ApiObject("CreateEndpoint", reserved={"EndpointName": _NAME, "EndpointConfigName": _NAME}),
    "UpdateEndpoint": ApiObject("UpdateEndpoint", reserved={"EndpointName": _NAME, "EndpointConfigName": _NAME}),
    "TransformJob": ApiObject(
        "CreateTransformJob",
        reserved={
            "TransformJobName": _NAME,
            "ModelName": _NAME,
            "BatchStrategy": "bincounter: photos are sent one by one",
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
        reserved=dict.fromkeys(("ServiceNamespace", "ResourceId", "ScalableDimension"), _ENDPOINTS_OWN),
    ),
    "ScalingPolicy": ApiObject(
        "PutScalingPolicy",
        AUTOSCALING,
        reserved=dict.fromkeys(("ServiceNamespace", "ResourceId", "ScalableDimension"), _ENDPOINTS_OWN),
    ),
    "InvokeEndpoint": ApiObject(
        "InvokeEndpoint", RUNTIME, reserved={"EndpointName": _NAME, "Body": "input", "ContentType": "input"}
    ),
    "InvokeEndpointAsync": ApiObject(
        "InvokeEndpointAsync",
        RUNTIME,
        reserved={"EndpointName": _NAME, "InputLocation": "input", "ContentType": "input"},
    ),
}
"""Key in ``target.request`` -> object."""


def check_request_keys(extra: Mapping[str, Any]) -> None:
    """Check that ``target.request`` names known objects and no parameters that have a setting of their own.

    Args:
        extra: ``target.request``.

    Raises:
        ConfigError: names the first wrong key.
    """
    for name, given in extra.items():
        if name in ("ModelPackage", "ModelPackageGroup"):
            raise ConfigError(
                f"target.request.{name} is not a part of an endpoint: register the model with "
                "`aws sagemaker create-model-package`"
            )
        if name not in API_OBJECTS:
            hint = closest_match(name, API_OBJECTS)
            advice = f"did you mean {hint}?" if hint else f"allowed are {', '.join(API_OBJECTS)}"
            raise ConfigError(f"target.request.{name} is not an API object of an endpoint: {advice}")
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"target.request.{name}={given} is not a mapping: write target.request.{name}.PARAMETER=VALUE"
            )
        for path, setting in API_OBJECTS[name].reserved.items():
            if look_up(given, path) is not None:
                raise ConfigError(f"target.request.{name}.{path} cannot be set here: it comes from {setting}")


def complete_request(name: str, request: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``target.request`` into an object and check it against botocore's service model.

    Args:
        name: key of the object in ``target.request``.
        request: parameters that bincounter sets.
        extra: ``target.request``.

    Raises:
        ConfigError: a parameter is unknown, or its value is not allowed.
    """
    added = dict(extra.get(name) or {})
    if "Tags" in request and isinstance(added.get("Tags"), list):
        added["Tags"] = [*request["Tags"], *added["Tags"]]
    result = merge(request, added)
    kind = API_OBJECTS[name]
    check_shape(result, kind.shape, kind.operation, f"target.request.{name}", kind.reserved)
    return result


def build_call(name: str, request: Mapping[str, Any], extra: Mapping[str, Any]) -> Call:
    """Return the request of an object, completed by :func:`complete_request`."""
    return Call(API_OBJECTS[name].service, API_OBJECTS[name].operation, complete_request(name, request, extra))
