"""API operations on models, endpoint configurations and tags, and the registries that hold them."""

import threading
import time
from operator import itemgetter
from typing import Any, Generic, TypeVar

from sagemaker_rehearsal import ACCOUNT, REGION
from sagemaker_rehearsal.protocol import NotHere, Operation, Refused, check_shape, is_wanted, page
from sagemaker_rehearsal.request_checks import refuse_first


class Resource:
    """A resource with a name, an ARN and tags.

    Args:
        kind: in its ARN, such as ``endpoint-config``.
        name: of the resource.
        request: the body that created it.
    """

    def __init__(self, kind: str, name: str, request: dict[str, Any]) -> None:
        self.name, self.request = name, request
        self.arn = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{kind}/{name}"
        self.created = time.time()
        self.tags: dict[str, str] = {tag["Key"]: tag["Value"] for tag in request.get("Tags", [])}


AnyResource = TypeVar("AnyResource", bound=Resource)


class Registry(Generic[AnyResource]):
    """All resources of one kind.

    Args:
        kind: in AWS's messages, such as ``endpoint configuration``.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._resources: dict[str, AnyResource] = {}
        self._lock = threading.Lock()

    def add(self, resource: AnyResource) -> None:
        """Add a new one.

        Raises:
            Refused: the name is taken.
        """
        with self._lock:
            if resource.name in self._resources:
                raise Refused("ValidationException", f'Cannot create already existing {self._kind} "{resource.arn}".')
            self._resources[resource.name] = resource

    def get(self, name: str) -> AnyResource:
        """Return the resource of a name.

        Raises:
            Refused: it does not exist.
        """
        with self._lock:
            resource = self._resources.get(name)
        if resource is None:
            raise Refused("ValidationException", f'Could not find {self._kind} "{name}".')
        return resource

    def remove(self, name: str) -> None:
        """Remove a resource, if it exists."""
        with self._lock:
            self._resources.pop(name, None)

    def all(self) -> list[AnyResource]:
        """Return all of them."""
        with self._lock:
            return list(self._resources.values())


class Tags:
    """AddTags, ListTags and DeleteTags of the resources held here; moto answers for all others.

    Args:
        registries: of the resources that have tags.
        model: botocore's service model of SageMaker.
    """

    def __init__(self, registries: list[Registry[Any]], model: Any) -> None:
        self._registries, self._model = registries, model

    def operations(self) -> dict[str, Operation]:
        """Return the operations by AWS's names of them."""
        return {"AddTags": self._add, "ListTags": self._list, "DeleteTags": self._delete}

    def _tags(self, operation: str, request: dict[str, Any]) -> dict[str, str]:
        check_shape(self._model, operation, request)
        for registry in self._registries:
            for resource in registry.all():
                if resource.arn == request["ResourceArn"]:
                    return resource.tags
        raise NotHere

    def _add(self, request: dict[str, Any]) -> dict[str, Any]:
        tags = self._tags("AddTags", request)
        tags.update({tag["Key"]: tag["Value"] for tag in request["Tags"]})
        return {"Tags": _listed(tags)}

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"Tags": _listed(self._tags("ListTags", request))}

    def _delete(self, request: dict[str, Any]) -> dict[str, Any]:
        tags = self._tags("DeleteTags", request)
        for key in request["TagKeys"]:
            tags.pop(key, None)
        return {}


def _listed(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


class Models:
    """All models of a control plane.

    Args:
        model: botocore's service model of SageMaker.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.registry: Registry[Resource] = Registry("model")

    def operations(self) -> dict[str, Operation]:
        """Return the operations by AWS's names of them."""
        return {
            "CreateModel": self._create,
            "DescribeModel": self._describe,
            "DeleteModel": self._delete,
            "ListModels": self._list,
        }

    def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, "CreateModel", request)
        container = request.get("PrimaryContainer", {})
        refuse_first(
            {
                "The rehearsal needs models of one PrimaryContainer with Image and ModelDataUrl.": not (
                    {"Image", "ModelDataUrl"} <= container.keys()
                ),
                "CreateModel needs an ExecutionRoleArn.": "ExecutionRoleArn" not in request,
                "The rehearsal serves archives for AWS's Ray Serve image; it has no TorchServe of the PyTorch image.": (
                    "pytorch-inference" in container.get("Image", "")
                ),
            }
        )
        created = Resource("model", request["ModelName"], request)
        self.registry.add(created)
        return {"ModelArn": created.arn}

    def _describe(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, "DescribeModel", request)
        found = self.registry.get(request["ModelName"])
        requested = {key: value for key, value in found.request.items() if key != "Tags"}
        return {**requested, "ModelArn": found.arn, "CreationTime": found.created}

    def _delete(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, "DeleteModel", request)
        self.registry.remove(self.registry.get(request["ModelName"]).name)
        return {}

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, "ListModels", request)
        found = [
            {"ModelName": one.name, "ModelArn": one.arn, "CreationTime": one.created} for one in self.registry.all()
        ]
        return _page("Models", "Model", found, request)


class EndpointConfigs:
    """All endpoint configurations of a control plane.

    Args:
        model: botocore's service model of SageMaker.
        models: all models.
    """

    def __init__(self, model: Any, models: Registry[Resource]) -> None:
        self._model, self._models = model, models
        self.registry: Registry[Resource] = Registry("endpoint configuration")

    def operations(self) -> dict[str, Operation]:
        """Return the operations by AWS's names of them."""
        return {
            "CreateEndpointConfig": self._create,
            "DescribeEndpointConfig": self._describe,
            "DeleteEndpointConfig": self._delete,
            "ListEndpointConfigs": self._list,
        }

    def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, "CreateEndpointConfig", request)
        variants = request["ProductionVariants"]
        refuse_first(
            {
                "The rehearsal supports one production variant.": len(variants) != 1,
                "The rehearsal does not support shadow variants.": bool(request.get("ShadowProductionVariants")),
            }
        )
        variant = variants[0]
        serverless = "ServerlessConfig" in variant
        refuse_first(
            {
                "A production variant needs a ModelName.": "ModelName" not in variant,
                "A production variant has either a ServerlessConfig or InstanceType and InitialInstanceCount.": (
                    serverless in ("InstanceType" in variant, "InitialInstanceCount" in variant)
                ),
                "A serverless endpoint cannot be asynchronous.": serverless and "AsyncInferenceConfig" in request,
            }
        )
        self._models.get(variant["ModelName"])
        created = Resource("endpoint-config", request["EndpointConfigName"], request)
        self.registry.add(created)
        return {"EndpointConfigArn": created.arn}

    def _describe(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, "DescribeEndpointConfig", request)
        found = self.registry.get(request["EndpointConfigName"])
        requested = {key: value for key, value in found.request.items() if key != "Tags"}
        return {**requested, "EndpointConfigArn": found.arn, "CreationTime": found.created}

    def _delete(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, "DeleteEndpointConfig", request)
        self.registry.remove(self.registry.get(request["EndpointConfigName"]).name)
        return {}

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, "ListEndpointConfigs", request)
        found = [
            {"EndpointConfigName": one.name, "EndpointConfigArn": one.arn, "CreationTime": one.created}
            for one in self.registry.all()
        ]
        return _page("EndpointConfigs", "EndpointConfig", found, request)


def _page(member: str, kind: str, found: list[dict[str, Any]], request: dict[str, Any]) -> dict[str, Any]:
    wanted = [one for one in found if is_wanted(one, request, kind)]
    order = request.get("SortOrder", "Descending")  # AWS's default here, unlike that of jobs
    key = itemgetter("CreationTime" if request.get("SortBy", "CreationTime") == "CreationTime" else f"{kind}Name")
    return page(member, wanted, {**request, "SortOrder": order}, key)
