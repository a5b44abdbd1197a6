"""Things that have a name, an ARN and tags: what models, endpoint configurations, endpoints and jobs have in common."""

import threading
import time
from typing import Any, Generic, TypeVar

from bincounter.cloud.rehearsal import ACCOUNT, REGION
from bincounter.cloud.rehearsal.answers import NotHere, Operation, Refused
from bincounter.cloud.rehearsal.checks import check_shape


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
        check_shape(self._model.operation_model(operation).input_shape, request)
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
