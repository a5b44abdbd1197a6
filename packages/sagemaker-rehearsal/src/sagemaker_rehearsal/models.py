"""The API's operations on models and endpoint configurations, which are but descriptions."""

import threading
import time
from operator import itemgetter
from typing import Any, Generic, TypeVar

from sagemaker_rehearsal import ACCOUNT, REGION
from sagemaker_rehearsal.protocol import NotHere, Operation, Refused, check_shape, is_wanted, page
from sagemaker_rehearsal.request_checks import refuse_first


class Named:
    """A thing that was created.

    Args:
        kind: in its ARN, such as ``endpoint-config``.
        name: of it.
        request: the body that created it.
    """

    def __init__(self, kind: str, name: str, request: dict[str, Any]) -> None:
        self.name, self.request = name, request
        self.arn = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{kind}/{name}"
        self.created = time.time()
        self.tags: dict[str, str] = {tag["Key"]: tag["Value"] for tag in request.get("Tags", [])}


Thing = TypeVar("Thing", bound=Named)


class Registry(Generic[Thing]):
    """All things of one kind.

    Args:
        what: they are called in AWS's messages, such as ``endpoint configuration``.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._things: dict[str, Thing] = {}
        self._lock = threading.Lock()

    def add(self, thing: Thing) -> None:
        """Keep a new one.

        Raises:
            Refused: its name is taken.
        """
        with self._lock:
            if thing.name in self._things:
                raise Refused("ValidationException", f'Cannot create already existing {self._what} "{thing.arn}".')
            self._things[thing.name] = thing

    def get(self, name: str) -> Thing:
        """The one of a name.

        Raises:
            Refused: there is none.
        """
        with self._lock:
            thing = self._things.get(name)
        if thing is None:
            raise Refused("ValidationException", f'Could not find {self._what} "{name}".')
        return thing

    def remove(self, name: str) -> None:
        """Forget one, if it is there."""
        with self._lock:
            self._things.pop(name, None)

    def all(self) -> list[Thing]:
        """Those there are."""
        with self._lock:
            return list(self._things.values())


class Tags:
    """AddTags, ListTags and DeleteTags of what is in some registries; moto answers for everything else.

    Args:
        registries: of the things that have tags.
        model: botocore's service model of SageMaker.
    """

    def __init__(self, registries: list[Registry[Any]], model: Any) -> None:
        self._registries, self._model = registries, model

    def operations(self) -> dict[str, Operation]:
        """What is answered here, by AWS's names."""
        return {"AddTags": self._add, "ListTags": self._list, "DeleteTags": self._delete}

    def _tags(self, operation: str, request: dict[str, Any]) -> dict[str, str]:
        check_shape(self._model, operation, request)
        for registry in self._registries:
            for thing in registry.all():
                if thing.arn == request["ResourceArn"]:
                    return thing.tags
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


_SORT_KEYS = {"CreationTime": "CreationTime"}


class Models:
    """All models of a control plane.

    Args:
        model: botocore's service model of SageMaker.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.registry: Registry[Named] = Registry("model")

    def operations(self) -> dict[str, Operation]:
        """What is answered here, by AWS's names."""
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
                "The rehearsal knows models of one PrimaryContainer, with Image and ModelDataUrl.": not (
                    {"Image", "ModelDataUrl"} <= container.keys()
                ),
                "CreateModel needs an ExecutionRoleArn.": "ExecutionRoleArn" not in request,
                "The rehearsal serves archives for AWS's Ray Serve image; it has no TorchServe of the PyTorch image.": (
                    "pytorch-inference" in container.get("Image", "")
                ),
            }
        )
        created = Named("model", request["ModelName"], request)
        self.registry.add(created)
        return {"ModelArn": created.arn}

    def _describe(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, "DescribeModel", request)
        found = self.registry.get(request["ModelName"])
        told = {key: value for key, value in found.request.items() if key != "Tags"}
        return {**told, "ModelArn": found.arn, "CreationTime": found.created}

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
        models: that they may name.
    """

    def __init__(self, model: Any, models: Registry[Named]) -> None:
        self._model, self._models = model, models
        self.registry: Registry[Named] = Registry("endpoint configuration")

    def operations(self) -> dict[str, Operation]:
        """What is answered here, by AWS's names."""
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
                "The rehearsal knows one production variant.": len(variants) != 1,
                "The rehearsal knows no shadow variants.": bool(request.get("ShadowProductionVariants")),
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
        created = Named("endpoint-config", request["EndpointConfigName"], request)
        self.registry.add(created)
        return {"EndpointConfigArn": created.arn}

    def _describe(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, "DescribeEndpointConfig", request)
        found = self.registry.get(request["EndpointConfigName"])
        told = {key: value for key, value in found.request.items() if key != "Tags"}
        return {**told, "EndpointConfigArn": found.arn, "CreationTime": found.created}

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
    key = itemgetter(_SORT_KEYS.get(request.get("SortBy", "CreationTime"), f"{kind}Name"))
    return page(member, wanted, {**request, "SortOrder": order}, key)
