"""What a deployment or an update will send: written, checked and priced before anything is changed."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bincounter.cloud.endpoints.archives import archive_uri, upload_archive
from bincounter.cloud.endpoints.autoscaling import scaling_calls
from bincounter.cloud.endpoints.cost import Cost, endpoint_cost, refuse_above
from bincounter.cloud.endpoints.errors import answered
from bincounter.cloud.endpoints.images import serving_image
from bincounter.cloud.endpoints.objects import Call
from bincounter.cloud.endpoints.registry import enter, registry_calls
from bincounter.cloud.endpoints.requests import Wanted, config_call, config_name, model_call
from bincounter.cloud.endpoints.states import describe_config, describe_model

if TYPE_CHECKING:
    from bincounter.cloud.account import Account
    from bincounter.serving.packing.archive import Package


@dataclass(frozen=True)
class PlannedModel:
    """The model of an endpoint or a transform job.

    Attributes:
        package: the packed checkpoint.
        uri: where it goes.
        call: CreateModel.
    """

    package: "Package"
    uri: str
    call: Call

    def make(self, account: "Account", wanted: Wanted) -> None:
        """Upload the archive and create the model, where they lack.

        Raises:
            BinCounterError: one of them cannot be made.
        """
        account.bucket(wanted.target["bucket"])
        upload_archive(account, self.package.path, self.uri)
        name = self.call.request["ModelName"]
        if describe_model(account, name) is None:
            with answered(f"creating the model {name}"):
                self.call.send(account)


@dataclass(frozen=True)
class Planned:
    """An endpoint.

    Attributes:
        model: that it serves.
        config: CreateEndpointConfig.
        registry: requests to the model registry, if that is asked for.
        scaling: requests to autoscaling, if that is asked for.
        cost: of the endpoint.
    """

    model: PlannedModel
    config: Call
    registry: list[Call]
    scaling: list[Call]
    cost: Cost

    @property
    def name(self) -> str:
        """Of the configuration."""
        return config_name(self.config)

    @property
    def before(self) -> list[Call]:
        """What is sent before the endpoint is asked for."""
        return [self.model.call, self.config, *self.registry]

    def make(self, account: "Account", wanted: Wanted) -> None:
        """Make all that an endpoint needs, where it lacks.

        Raises:
            BinCounterError: something cannot be made.
        """
        self.model.make(account, wanted)
        if describe_config(account, self.name) is None:
            with answered(f"creating the configuration {self.name}"):
                self.config.send(account)
        if self.registry:
            enter(account, *self.registry)

    def scale(self, account: "Account") -> None:
        """Register the autoscaling of an endpoint that is in service."""
        for call in self.scaling:
            with answered("registering the endpoint's autoscaling"):
                call.send(account)


def bucket_uri(account: "Account", wanted: Wanted) -> str:
    """The ``s3://`` folder of all that is ours."""
    bucket = wanted.target["bucket"] or account.default_bucket
    return f"s3://{bucket}/{wanted.target['prefix']}".rstrip("/")


def plan_model(account: "Account", wanted: Wanted, package: "Package") -> PlannedModel:
    """Write and check CreateModel.

    Raises:
        BinCounterError: there is no role or no image, or ``target.request`` is wrong.
    """
    target = wanted.target
    uri = archive_uri(bucket_uri(account, wanted), package.digest)
    image = target["image"] or serving_image(
        stack=target["stack"], region=account.region, instance_type=target.get("instance_type")
    )
    call = model_call(wanted, image=image, role=account.role(target["role"]), archive_uri=uri)
    return PlannedModel(package, uri, call)


def plan(account: "Account", wanted: Wanted, package: "Package") -> Planned:
    """Write and check all requests of an endpoint.

    Raises:
        BinCounterError: SageMaker would not take them, or they are above ``target.max_usd_per_hour``.
    """
    model = plan_model(account, wanted, package)
    config = config_call(wanted, model=model.call, bucket_uri=bucket_uri(account, wanted))
    scaling = scaling_calls(wanted)
    registry = registry_calls(wanted, model.call)
    cost = endpoint_cost(wanted, config, scaling)
    refuse_above(cost, wanted.target["max_usd_per_hour"])
    return Planned(model, config, registry, scaling, cost)


def show_calls(calls: list[Call]) -> None:
    """Print requests as JSON, one after the other."""
    for call in calls:
        shown = {"operation": f"{call.service}:{call.operation}", "request": call.request}
        print(json.dumps(shown, indent=2, ensure_ascii=False, default=str))
