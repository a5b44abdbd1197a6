"""Endpoints: their creation, update and deletion, and the API operations on them.

An endpoint is one process tree on this machine, for any number of instances. The control plane replaces the image's
adapter: ``/ping`` is Ray's health check, ``/invocations`` is forwarded to ``/``.
"""

import secrets
import threading
import time
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from sagemaker_rehearsal.models import EndpointConfigs, Models, Registry, Resource
from sagemaker_rehearsal.protocol import Operation, Refused, check_shape, is_wanted, page
from sagemaker_rehearsal.request_checks import refuse_unsupported
from sagemaker_rehearsal.serving_container import Container, NotServable
from sagemaker_rehearsal.site import Site

_SORT_KEYS = {"Name": "EndpointName", "CreationTime": "CreationTime", "Status": "EndpointStatus"}
_LONGEST_START = 180.0  # seconds; on AWS by default 10 minutes
_POLL = 0.2  # seconds
_LONGEST_ANSWER = 60.0  # seconds for the last requests of an old container


class Endpoint(Resource):
    """An endpoint, from CreateEndpoint to DeleteEndpoint.

    Args:
        site: state shared by all jobs.
        request: body of CreateEndpoint.
        configs: all endpoint configurations.
        models: all models.
    """

    def __init__(
        self, site: Site, request: dict[str, Any], configs: Registry[Resource], models: Registry[Resource]
    ) -> None:
        super().__init__("endpoint", request["EndpointName"], request)
        self._site, self._configs, self._models = site, configs, models
        self._lock = threading.Lock()
        self._modified = self.created
        self._failure = ""
        self._gone = threading.Event()
        self._container: Container | None = None
        self.status = "Creating"
        self.config = configs.get(request["EndpointConfigName"]).request  # stored: it may be deleted later

    @property
    def variant(self) -> dict[str, Any]:
        """The endpoint's only production variant."""
        return self.config["ProductionVariants"][0]

    def start(self) -> None:
        """Start the creation."""
        threading.Thread(target=self._create, daemon=True).start()

    def update(self, config_name: str) -> None:
        """Start an update to another configuration.

        Raises:
            Refused: the endpoint is not in service, or has that configuration already.
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
        """Start the deletion.

        Raises:
            Refused: the endpoint is being created, updated or deleted.
        """
        with self._lock:
            if self.status not in ("InService", "Failed"):
                raise Refused("ValidationException", f'Cannot delete in-progress endpoint "{self.arn}".')
            self._enter("Deleting")
        threading.Thread(target=self._delete, args=[registry], daemon=True).start()

    def close(self) -> None:
        """End the containers."""
        self._gone.set()
        with self._lock:
            container, self._container = self._container, None
        if container is not None:
            container.end()

    def serving(self) -> Container:
        """Return the container in service.

        Raises:
            Refused: the endpoint is not in service.
        """
        with self._lock:
            if self._container is None or self.status in ("Creating", "Deleting", "Failed"):
                raise Refused("ValidationError", f"Endpoint {self.name} is {self.status}, and cannot be invoked.")
            return self._container

    def description(self) -> dict[str, Any]:
        """Return the response of DescribeEndpoint."""
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
        """Return the entry in ListEndpoints."""
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
            container = self._start_container(self.config)
        except Exception as reason:  # any: the status is the only place to report it
            with self._lock:
                self._enter("Failed", _failure_reason(reason))
            return
        with self._lock:
            self._container = container
            self._enter("InService")

    def _update(self, config: dict[str, Any]) -> None:
        """Start the new container beside the old one, which serves until the new one is healthy."""
        try:
            container = self._start_container(config)
        except Exception as reason:  # any: the status is the only place to report it
            with self._lock:
                self._enter("InService", _failure_reason(reason))
            return
        with self._lock:
            old, self._container, self.config = self._container, container, config
            self._enter("InService")
        if old is not None:
            old.wait_until_idle(_LONGEST_ANSWER)
            old.end()

    def _delete(self, registry: "Registry[Endpoint]") -> None:
        self.close()
        registry.remove(self.name)

    def _start_container(self, config: dict[str, Any]) -> Container:
        """Start the container of a configuration and wait until it is healthy.

        Raises:
            NotServable: the container does not become healthy.
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


def _failure_reason(reason: Exception) -> str:
    """Return an error as one paragraph of at most 1,024 characters."""
    words = " ".join(str(reason).split())
    return (words if isinstance(reason, NotServable) else f"Internal error: {type(reason).__name__}: {words}")[:1024]


class Endpoints:
    """All endpoints of a control plane.

    Args:
        site: state shared by all jobs.
        model: botocore's service model of SageMaker.
        models: all models.
        configs: all endpoint configurations.
    """

    def __init__(self, site: Site, model: Any, models: Models, configs: EndpointConfigs) -> None:
        self._site, self._model = site, model
        self._models, self._configs = models.registry, configs.registry
        self.registry: Registry[Endpoint] = Registry("endpoint")

    def operations(self) -> dict[str, Operation]:
        """Return the operations by AWS's names of them."""
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
        refuse_unsupported({"traffic routing other than ALL_AT_ONCE": kind != "ALL_AT_ONCE"})
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
