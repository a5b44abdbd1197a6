"""Registries of resources, and API operations on models, endpoint configurations and tags."""

import threading
import time
from operator import itemgetter
from typing import Any, Generic, TypeVar

from sagemaker_rehearsal import ACCOUNT, REGION
from sagemaker_rehearsal.protocol import HandledByMoto, Operation, Refused, check_shape, is_wanted, page
from sagemaker_rehearsal.request_checks import refuse_first


class Resource:
    """A resource with a name, an ARN and tags.

    Args:
        kind: kind in its ARN, such as ``endpoint-config``.
        name: name of the resource.
        request: body of the request that created it.
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
        kind: kind in AWS's messages, such as ``endpoint configuration``.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._resources: dict[str, AnyResource] = {}
        self._lock = threading.Lock()

    def add(self, resource: AnyResource) -> None:
        """Add a resource.

        Raises:
            Refused: the name is taken.
        """
        with self._lock:
            if resource.name in self._resources:
                raise Refused("ValidationException", f'Cannot create already existing {self._kind} "{resource.arn}".')
            self._resources[resource.name] = resource

    def get(self, name: str) -> AnyResource:
        """Return a resource by its name.

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
        """Return all resources."""
        with self._lock:
            return list(self._resources.values())


class Tags:
    """AddTags, ListTags and DeleteTags of resources in registries; others are moto's.

    Args:
        registries: registries of the resources with tags.
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
        raise HandledByMoto

    def _add(self, request: dict[str, Any]) -> dict[str, Any]:
        tags = self._tags("AddTags", request)
        tags.update({tag["Key"]: tag["Value"] for tag in request["Tags"]})
        return {"Tags": _tag_list(tags)}

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"Tags": _tag_list(self._tags("ListTags", request))}

    def _delete(self, request: dict[str, Any]) -> dict[str, Any]:
        tags = self._tags("DeleteTags", request)
        for key in request["TagKeys"]:
            tags.pop(key, None)
        return {}


def _tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


class _Resources:
    """All resources of one kind, and the operations on them.

    Args:
        model: botocore's service model of SageMaker.
        kind: kind in the names of operations and members, such as ``EndpointConfig``.
        words: kind in AWS's messages, such as ``endpoint configuration``.
    """

    def __init__(self, model: Any, kind: str, words: str) -> None:
        self._model, self._kind = model, kind
        self.registry: Registry[Resource] = Registry(words)

    def operations(self) -> dict[str, Operation]:
        """Return the operations by AWS's names of them."""
        return {
            f"Create{self._kind}": self._create,
            f"Describe{self._kind}": self._describe,
            f"Delete{self._kind}": self._delete,
            f"List{self._kind}s": self._list,
        }

    def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def _describe(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, f"Describe{self._kind}", request)
        found = self.registry.get(request[f"{self._kind}Name"])
        requested = {key: value for key, value in found.request.items() if key != "Tags"}
        return {**requested, f"{self._kind}Arn": found.arn, "CreationTime": found.created}

    def _delete(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, f"Delete{self._kind}", request)
        self.registry.remove(self.registry.get(request[f"{self._kind}Name"]).name)
        return {}

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, f"List{self._kind}s", request)
        found = [
            {f"{self._kind}Name": one.name, f"{self._kind}Arn": one.arn, "CreationTime": one.created}
            for one in self.registry.all()
        ]
        wanted = [one for one in found if is_wanted(one, request, self._kind)]
        order = request.get("SortOrder", "Descending")  # AWS's default here, unlike that of jobs
        by_time = request.get("SortBy", "CreationTime") == "CreationTime"
        key = itemgetter("CreationTime" if by_time else f"{self._kind}Name")
        return page(f"{self._kind}s", wanted, {**request, "SortOrder": order}, key)


class Models(_Resources):
    """All models of a control plane.

    Args:
        model: botocore's service model of SageMaker.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model, "Model", "model")

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


class EndpointConfigs(_Resources):
    """All endpoint configurations of a control plane.

    Args:
        model: botocore's service model of SageMaker.
        models: all models.
    """

    def __init__(self, model: Any, models: Registry[Resource]) -> None:
        super().__init__(model, "EndpointConfig", "endpoint configuration")
        self._models = models

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
