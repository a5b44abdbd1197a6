"""The API's operations on endpoints."""

from operator import itemgetter
from typing import Any

from bincounter.cloud.rehearsal.answers import Operation
from bincounter.cloud.rehearsal.checks import check_shape, refuse_first
from bincounter.cloud.rehearsal.endpoints.endpoint import Endpoint
from bincounter.cloud.rehearsal.endpoints.models import EndpointConfigs, Models
from bincounter.cloud.rehearsal.endpoints.named import Registry
from bincounter.cloud.rehearsal.listing import is_wanted, page
from bincounter.cloud.rehearsal.site import Site

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

    def _check(self, operation: str, request: dict[str, Any]) -> None:
        check_shape(self._model.operation_model(operation).input_shape, request)

    def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        self._check("CreateEndpoint", request)
        endpoint = Endpoint(self._site, request, self._configs, self._models)
        self.registry.add(endpoint)
        endpoint.start()
        return {"EndpointArn": endpoint.arn}

    def _update(self, request: dict[str, Any]) -> dict[str, Any]:
        self._check("UpdateEndpoint", request)
        canary = request.get("DeploymentConfig", {}).get("BlueGreenUpdatePolicy", {})
        kind = canary.get("TrafficRoutingConfiguration", {}).get("Type", "ALL_AT_ONCE")
        refuse_first({"The rehearsal moves traffic all at once.": kind != "ALL_AT_ONCE"})
        endpoint = self.registry.get(request["EndpointName"])
        endpoint.update(request["EndpointConfigName"])
        return {"EndpointArn": endpoint.arn}

    def _describe(self, request: dict[str, Any]) -> dict[str, Any]:
        self._check("DescribeEndpoint", request)
        return self.registry.get(request["EndpointName"]).description()

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        self._check("ListEndpoints", request)
        found = [one for endpoint in self.registry.all() if is_wanted(one := endpoint.summary(), request, "Endpoint")]
        order = request.get("SortOrder", "Descending")
        key = itemgetter(_SORT_KEYS[request.get("SortBy", "CreationTime")])
        return page("Endpoints", found, {**request, "SortOrder": order}, key)

    def _delete(self, request: dict[str, Any]) -> dict[str, Any]:
        self._check("DeleteEndpoint", request)
        self.registry.get(request["EndpointName"]).delete(self.registry)
        return {}
