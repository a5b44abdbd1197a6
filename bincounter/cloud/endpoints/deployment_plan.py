"""Requests of a deployment, their price and its ceiling, and the upload of the archive."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bincounter.cloud.aws_errors import translate_endpoint_errors
from bincounter.cloud.endpoints.api_objects import Call
from bincounter.cloud.endpoints.autoscaling import scaling_calls
from bincounter.cloud.endpoints.endpoint_requests import EndpointSpec, config_call, endpoint_call, model_call
from bincounter.cloud.endpoints.endpoint_state import describe_config, describe_model
from bincounter.cloud.instances import serving_image, usd_per_hour, usd_per_second
from bincounter.errors import ConfigError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account
    from bincounter.serving.packing.archive import Package

log = logging.getLogger(__name__)


def archive_uri(bucket_uri: str, digest: str) -> str:
    """Return the S3 address of an archive.

    Args:
        bucket_uri: ``s3://`` folder of bincounter.
        digest: SHA-256 of the archive.
    """
    return f"{bucket_uri}/models/{digest[:16]}/model.tar.gz"


def upload_archive(account: "Account", path: Path, uri: str) -> None:
    """Upload an archive unless it exists.

    Args:
        account: account that owns the bucket.
        path: path of the archive.
        uri: its address, from :func:`archive_uri`.

    Raises:
        BinCounterError: it cannot be uploaded.
    """
    from botocore.exceptions import ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    size = path.stat().st_size
    with translate_endpoint_errors(f"uploading the archive to {uri}"):
        try:
            # Objects in S3 are never partial, and this one is named by its content.
            there = account.s3.head_object(Bucket=bucket, Key=key)["ContentLength"] == size
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("404", "NoSuchKey", "NotFound"):
                raise
            there = False
        if not there:
            log.info("Archive: %.1f MB to %s", size / 1e6, uri)
            account.s3.upload_file(str(path), bucket, key)


class Cost(NamedTuple):
    """Price of an endpoint or a transform job.

    Attributes:
        usd: US dollars per hour, at most.
        words: how the price is made up, for the log.
    """

    usd: float
    words: str


def endpoint_cost(spec: EndpointSpec, config: Call, scaling: Sequence[Call]) -> Cost:
    """Return the highest price per hour of an endpoint; S3 and the network add cents.

    Args:
        spec: settings of the endpoint.
        config: CreateEndpointConfig.
        scaling: requests of :func:`bincounter.cloud.endpoints.autoscaling.scaling_calls`.

    Raises:
        ConfigError: the price of the instance type is not known.
    """
    variant = config.request["ProductionVariants"][0]
    scaled = max((call.request.get("MaxCapacity", 0) for call in scaling), default=0)
    if spec.kind == "serverless":
        return _serverless(spec.target, variant["ServerlessConfig"], scaled)
    managed = variant.get("ManagedInstanceScaling", {}).get("MaxInstanceCount", 0)
    return _instances(spec.target, max(spec.target["instance_count"], scaled, managed))


def transform_cost(spec: EndpointSpec) -> Cost:
    """Return the price per hour of a transform job."""
    return _instances(spec.target, spec.target["instance_count"])


def _instances(target: Mapping[str, Any], most: int) -> Cost:
    price = usd_per_hour(target["instance_type"], target["usd_per_hour"], "target")
    total = price.usd * most
    count = f"{most}" if most == target["instance_count"] else f"{target['instance_count']} to {most}"
    words = f"{count} x {target['instance_type']} at {price.usd:.4g} USD/h ({price.origin})"
    return Cost(total, f"{words}: {'' if count == str(most) else 'at most '}{total:.4g} USD/h")


def _serverless(target: Mapping[str, Any], config: Mapping[str, Any], scaled: int) -> Cost:
    price = usd_per_second(target["memory_mb"])
    kept = max(config.get("ProvisionedConcurrency", 0), scaled)
    # Provisioned concurrency is billed without requests; the price per second of answering is above its price.
    total = price.usd * 3600 * (target["max_concurrency"] + kept)
    also = f", {kept} of them kept ready and billed without requests" if kept else ""
    return Cost(
        total,
        f"{target['memory_mb']} MB at {price.usd:.4g} USD per second of answering ({price.origin}), nothing while "
        f"idle: at most {total:.4g} USD/h with {target['max_concurrency']} requests at a time{also}",
    )


def check_price(cost: Cost, ceiling: float) -> None:
    """Check that a price is not above ``target.max_usd_per_hour``.

    Raises:
        ConfigError: the price is above the ceiling.
    """
    if cost.usd > ceiling:
        raise ConfigError(
            f"{cost.usd:.4g} USD per hour is above target.max_usd_per_hour={ceiling:g}: use fewer or smaller "
            "instances, or raise it"
        )


def running_cost(variants: Sequence[Mapping[str, Any]], config: Mapping[str, Any] | None) -> float | None:
    """Return the current price per hour of an endpoint without requests.

    Args:
        variants: ``ProductionVariants`` of DescribeEndpoint; empty while it has none.
        config: DescribeEndpointConfig; empty or ``None`` if it was deleted, or cannot be described.

    Returns:
        US dollars; ``None`` if a price is not known.
    """
    if not config:
        return None
    running = {variant["VariantName"]: variant for variant in variants}
    total = 0.0
    for variant in config["ProductionVariants"]:
        now = running.get(variant["VariantName"], {})
        if "ServerlessConfig" in variant:
            kept = variant["ServerlessConfig"].get("ProvisionedConcurrency", 0)
            total += usd_per_second(variant["ServerlessConfig"]["MemorySizeInMB"]).usd * 3600 * kept
            continue
        try:
            price = usd_per_hour(variant["InstanceType"], None, "target").usd
        except ConfigError:
            return None
        total += price * now.get("CurrentInstanceCount", variant["InitialInstanceCount"])
    return total


def running_transform_cost(described: Mapping[str, Any]) -> float | None:
    """Return the price per hour of a running transform job; ``None`` if it is not known.

    Args:
        described: DescribeTransformJob.
    """
    resources = described["TransformResources"]
    try:
        price = usd_per_hour(resources["InstanceType"], None, "target").usd
    except ConfigError:
        return None
    return price * resources["InstanceCount"]


@dataclass(frozen=True)
class PlannedModel:
    """Model of an endpoint or a transform job.

    Attributes:
        package: the packed checkpoint.
        uri: S3 address of the archive.
        call: CreateModel.
    """

    package: "Package"
    uri: str
    call: Call

    def make(self, account: "Account", spec: EndpointSpec) -> None:
        """Upload the archive and create the model unless they exist.

        Raises:
            BinCounterError: one of them cannot be created.
        """
        account.bucket(spec.target["bucket"])
        upload_archive(account, self.package.path, self.uri)
        name = self.call.request["ModelName"]
        if describe_model(account, name) is None:
            with translate_endpoint_errors(f"creating the model {name}"):
                self.call.send(account)


@dataclass(frozen=True)
class DeploymentPlan:
    """Requests and price of an endpoint.

    Attributes:
        model: model that it serves.
        config: CreateEndpointConfig.
        endpoint: CreateEndpoint or UpdateEndpoint.
        scaling: requests to autoscaling; empty without it.
        cost: price of the endpoint.
    """

    model: PlannedModel
    config: Call
    endpoint: Call
    scaling: list[Call]
    cost: Cost

    @property
    def name(self) -> str:
        """Name of the endpoint configuration."""
        return str(self.config.request["EndpointConfigName"])

    @property
    def calls(self) -> list[Call]:
        """Return all requests in the order in which they are sent."""
        return [self.model.call, self.config, self.endpoint, *self.scaling]

    def make(self, account: "Account", spec: EndpointSpec) -> None:
        """Create the model and the endpoint configuration unless they exist.

        Raises:
            BinCounterError: one of them cannot be created.
        """
        self.model.make(account, spec)
        if describe_config(account, self.name) is None:
            with translate_endpoint_errors(f"creating the configuration {self.name}"):
                self.config.send(account)


def bucket_uri(account: "Account", spec: EndpointSpec) -> str:
    """Return the ``s3://`` folder of bincounter."""
    bucket = spec.target["bucket"] or account.default_bucket
    return f"s3://{bucket}/{spec.target['prefix']}".rstrip("/")


def plan_model(account: "Account", spec: EndpointSpec, package: "Package") -> PlannedModel:
    """Compose and check CreateModel.

    Raises:
        BinCounterError: the role or the image is missing, or ``target.request`` is wrong.
    """
    target = spec.target
    uri = archive_uri(bucket_uri(account, spec), package.digest)
    image = target["image"] or serving_image(
        stack=target["stack"], region=account.region, instance_type=target.get("instance_type")
    )
    call = model_call(spec, image=image, role=account.role(target["role"]), archive_uri=uri)
    return PlannedModel(package, uri, call)


def plan_deployment(account: "Account", spec: EndpointSpec, package: "Package", *, update: bool) -> DeploymentPlan:
    """Compose and check all requests of an endpoint.

    Args:
        account: account of the endpoint.
        spec: settings of the endpoint.
        package: the packed checkpoint.
        update: update an endpoint instead of creating one.

    Raises:
        BinCounterError: a request is not valid, or the price is above ``target.max_usd_per_hour``.
    """
    model = plan_model(account, spec, package)
    config = config_call(spec, model=model.call, bucket_uri=bucket_uri(account, spec))
    scaling = scaling_calls(spec)
    cost = endpoint_cost(spec, config, scaling)
    check_price(cost, spec.target["max_usd_per_hour"])
    return DeploymentPlan(model, config, endpoint_call(spec, config, update=update), scaling, cost)


def print_calls(account: "Account", calls: list[Call]) -> None:
    """Print requests as JSON."""
    for call in calls:
        print(account.shown({"operation": f"{call.service}:{call.operation}", "request": call.request}))
    account.log_placeholders()
