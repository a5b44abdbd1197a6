"""One endpoint: its container, the update that replaces it, and what DescribeEndpoint tells of both."""

import secrets
import threading
import time
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from sagemaker_rehearsal.models import EndpointConfigs, Models, Named, Registry
from sagemaker_rehearsal.protocol import Operation, Refused, check_shape, is_wanted, page
from sagemaker_rehearsal.request_checks import refuse_first
from sagemaker_rehearsal.serving_container import Container, NotServable
from sagemaker_rehearsal.site import Site

_LONGEST_START = 180.0  # seconds; AWS waits for 10 minutes unless the variant says otherwise
_POLL = 0.2  # seconds
_LONGEST_ANSWER = 60.0  # seconds that an old container has for the requests in hand


class Endpoint(Named):
    """An endpoint, from CreateEndpoint to DeleteEndpoint.

    Args:
        site: where its containers run.
        request: the body of CreateEndpoint.
        configs: all endpoint configurations.
        models: all models.
    """

    def __init__(self, site: Site, request: dict[str, Any], configs: Registry[Named], models: Registry[Named]) -> None:
        super().__init__("endpoint", request["EndpointName"], request)
        self._site, self._configs, self._models = site, configs, models
        self._lock = threading.Lock()
        self._modified = self.created
        self._failure = ""
        self._gone = threading.Event()
        self._container: Container | None = None
        self.status = "Creating"
        self.config = configs.get(request["EndpointConfigName"]).request  # as it is now: it may be deleted later

    @property
    def variant(self) -> dict[str, Any]:
        """Its one production variant."""
        return self.config["ProductionVariants"][0]

    def start(self) -> None:
        """Begin to create it."""
        threading.Thread(target=self._create, daemon=True).start()

    def update(self, config_name: str) -> None:
        """Begin to replace its container by that of another configuration.

        Raises:
            Refused: it is busy, or has that configuration.
        """
        config = self._configs.get(config_name).request
        with self._lock:
            if self.status != "InService":
                raise Refused("ValidationException", f'Cannot update in-progress endpoint "{self.arn}".')
            if config_name == self.config["EndpointConfigName"]:
                raise Refused(
                    "ValidationException", "Cannot update an endpoint to the endpoint configuration it has already."
                )
            self._enter("Updating")
        threading.Thread(target=self._update, args=[config], daemon=True).start()

    def delete(self, registry: "Registry[Endpoint]") -> None:
        """Begin to delete it.

        Raises:
            Refused: it is busy.
        """
        with self._lock:
            if self.status not in ("InService", "Failed"):
                raise Refused("ValidationException", f'Cannot delete in-progress endpoint "{self.arn}".')
            self._enter("Deleting")
        threading.Thread(target=self._delete, args=[registry], daemon=True).start()

    def close(self) -> None:
        """End its containers, with the control plane."""
        self._gone.set()
        with self._lock:
            container, self._container = self._container, None
        if container is not None:
            container.end()

    def serving(self) -> Container:
        """What answers requests.

        Raises:
            Refused: nothing does.
        """
        with self._lock:
            if self._container is None or self.status in ("Creating", "Deleting", "Failed"):
                raise Refused("ValidationError", f"Endpoint {self.name} is {self.status}, and cannot be invoked.")
            return self._container

    def description(self) -> dict[str, Any]:
        """The answer to DescribeEndpoint."""
        with self._lock:
            variant = self.variant
            count = variant.get("InitialInstanceCount")
            numbers = {"CurrentInstanceCount": count, "DesiredInstanceCount": count} if count else {}
            serverless = (
                {"CurrentServerlessConfig": variant["ServerlessConfig"]} if "ServerlessConfig" in variant else {}
            )
            weight = variant.get("InitialVariantWeight", 1.0)
            weights = {"CurrentWeight": weight, "DesiredWeight": weight}
            return {
                **self._summary(),
                "EndpointConfigName": self.config["EndpointConfigName"],
                "ProductionVariants": [{"VariantName": variant["VariantName"], **weights, **numbers, **serverless}],
                **({"FailureReason": self._failure} if self._failure else {}),
                **{key: self.config[key] for key in ("AsyncInferenceConfig",) if key in self.config},
            }

    def summary(self) -> dict[str, Any]:
        """The entry in ListEndpoints."""
        with self._lock:
            return self._summary()

    def _summary(self) -> dict[str, Any]:
        return {
            "EndpointName": self.name,
            "EndpointArn": self.arn,
            "CreationTime": self.created,
            "LastModifiedTime": self._modified,
            "EndpointStatus": self.status,
        }

    def _enter(self, status: str, failure: str = "") -> None:
        self.status, self._failure, self._modified = status, failure, time.time()

    def _create(self) -> None:
        try:
            container = self._started(self.config)
        except Exception as reason:  # also one of ours: nobody else would hear of it
            with self._lock:
                self._enter("Failed", _told(reason))
            return
        with self._lock:
            self._container = container
            self._enter("InService")

    def _update(self, config: dict[str, Any]) -> None:
        """The new container starts beside the old one, which answers until the new one is healthy."""
        try:
            container = self._started(config)
        except Exception as reason:  # also one of ours: nobody else would hear of it
            with self._lock:
                self._enter("InService", _told(reason))
            return
        with self._lock:
            old, self._container, self.config = self._container, container, config
            self._enter("InService")
        if old is not None:
            old.drained(_LONGEST_ANSWER)
            old.end()

    def _delete(self, registry: "Registry[Endpoint]") -> None:
        self.close()
        registry.remove(self.name)

    def _started(self, config: dict[str, Any]) -> Container:
        """Start a configuration's container and wait until it is healthy.

        Raises:
            NotServable: it does not become so.
        """
        variant: Mapping[str, Any] = config["ProductionVariants"][0]
        name = variant["VariantName"]
        try:
            model = self._models.get(variant["ModelName"]).request
        except Refused as error:
            raise NotServable(str(error)) from error
        stream = f"{name}/i-{secrets.token_hex(8)}"
        container = Container(self._site, model, f"/aws/sagemaker/Endpoints/{self.name}", stream)
        try:
            container.start()
            limit = variant.get("ContainerStartupHealthCheckTimeoutInSeconds", _LONGEST_START)
            until = time.monotonic() + min(limit, _LONGEST_START)
            while not container.healthy():
                if container.ended() or time.monotonic() > until or self._gone.is_set():
                    raise NotServable(
                        f"The primary container for production variant {name} did not pass the ping health check. "
                        "Please check CloudWatch logs for this endpoint."
                    )
                time.sleep(_POLL)
        except BaseException:
            container.end()
            raise
        return container


def _told(reason: Exception) -> str:
    """A FailureReason: one short paragraph, of 1,024 characters at most."""
    words = " ".join(str(reason).split())
    return (words if isinstance(reason, NotServable) else f"Internal error: {type(reason).__name__}: {words}")[:1024]


_SORT_KEYS = {"Name": "EndpointName", "CreationTime": "CreationTime", "Status": "EndpointStatus"}


class Endpoints:
    """All endpoints of a control plane.

    Args:
        site: where they run.
        model: botocore's service model of SageMaker.
        models: that configurations name.
        configs: that endpoints name.
    """

    def __init__(self, site: Site, model: Any, models: Models, configs: EndpointConfigs) -> None:
        self._site, self._model = site, model
        self._models, self._configs = models.registry, configs.registry
        self.registry: Registry[Endpoint] = Registry("endpoint")

    def operations(self) -> dict[str, Operation]:
        """What is answered here, by AWS's names."""
        return {
            "CreateEndpoint": self._create,
            "UpdateEndpoint": self._update,
            "DescribeEndpoint": self._describe,
            "ListEndpoints": self._list,
            "DeleteEndpoint": self._delete,
        }

    def close(self) -> None:
        """End all containers."""
        for endpoint in self.registry.all():
            endpoint.close()

    def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, "CreateEndpoint", request)
        endpoint = Endpoint(self._site, request, self._configs, self._models)
        self.registry.add(endpoint)
        endpoint.start()
        return {"EndpointArn": endpoint.arn}

    def _update(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, "UpdateEndpoint", request)
        canary = request.get("DeploymentConfig", {}).get("BlueGreenUpdatePolicy", {})
        kind = canary.get("TrafficRoutingConfiguration", {}).get("Type", "ALL_AT_ONCE")
        refuse_first({"The rehearsal moves traffic all at once.": kind != "ALL_AT_ONCE"})
        endpoint = self.registry.get(request["EndpointName"])
        endpoint.update(request["EndpointConfigName"])
        return {"EndpointArn": endpoint.arn}

    def _describe(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, "DescribeEndpoint", request)
        return self.registry.get(request["EndpointName"]).description()

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, "ListEndpoints", request)
        found = [one for endpoint in self.registry.all() if is_wanted(one := endpoint.summary(), request, "Endpoint")]
        order = request.get("SortOrder", "Descending")
        key = itemgetter(_SORT_KEYS[request.get("SortBy", "CreationTime")])
        return page("Endpoints", found, {**request, "SortOrder": order}, key)

    def _delete(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, "DeleteEndpoint", request)
        self.registry.get(request["EndpointName"]).delete(self.registry)
        return {}
