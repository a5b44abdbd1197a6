"""All requests of a deployment, their price and ceiling; archive upload."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bincounter.cloud.aws_errors import answered
from bincounter.cloud.endpoints.api_objects import Call
from bincounter.cloud.endpoints.autoscaling import scaling_calls
from bincounter.cloud.endpoints.endpoint_requests import Wanted, config_call, endpoint_call, model_call
from bincounter.cloud.endpoints.endpoint_state import describe_config, describe_model
from bincounter.cloud.instances import serving_image, usd_per_hour, usd_per_second
from bincounter.errors import ConfigError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account
    from bincounter.serving.packing.archive import Package

log = logging.getLogger(__name__)


def archive_uri(bucket_uri: str, digest: str) -> str:
    """Where an archive lies.

    Args:
        bucket_uri: ``s3://`` folder of all that is ours.
        digest: SHA-256 of the archive.
    """
    return f"{bucket_uri}/models/{digest[:16]}/model.tar.gz"


def upload_archive(account: "Account", path: Path, uri: str) -> None:
    """Upload an archive, unless it is there.

    Args:
        account: whose S3.
        path: of the archive.
        uri: see :func:`archive_uri`.

    Raises:
        BinCounterError: it cannot be uploaded.
    """
    from botocore.exceptions import ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    size = path.stat().st_size
    with answered(f"uploading the archive to {uri}"):
        try:
            # Objects appear whole or not at all, and this one's name is of its content.
            there = account.s3.head_object(Bucket=bucket, Key=key)["ContentLength"] == size
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("404", "NoSuchKey", "NotFound"):
                raise
            there = False
        if not there:
            log.info("Archive: %.1f MB to %s", size / 1e6, uri)
            account.s3.upload_file(str(path), bucket, key)


class Cost(NamedTuple):
    """What something costs.

    Attributes:
        usd: US dollars in an hour, at most.
        words: what that is made of.
    """

    usd: float
    words: str


def endpoint_cost(wanted: Wanted, config: Call, scaling: Sequence[Call]) -> Cost:
    """The most that an endpoint costs in an hour; what S3 and the network take comes on top: cents.

    Args:
        wanted: what the command wants.
        config: CreateEndpointConfig.
        scaling: see :func:`bincounter.cloud.endpoints.autoscaling.scaling_calls`.

    Raises:
        ConfigError: the instance's price is not known.
    """
    variant = config.request["ProductionVariants"][0]
    scaled = max((call.request.get("MaxCapacity", 0) for call in scaling), default=0)
    if wanted.kind == "serverless":
        return _serverless(wanted.target, variant["ServerlessConfig"], scaled)
    managed = variant.get("ManagedInstanceScaling", {}).get("MaxInstanceCount", 0)
    return _instances(wanted.target, max(wanted.target["instance_count"], scaled, managed))


def transform_cost(wanted: Wanted) -> Cost:
    """What a transform job costs in an hour."""
    return _instances(wanted.target, wanted.target["instance_count"])


def _instances(target: Mapping[str, Any], most: int) -> Cost:
    price = usd_per_hour(target["instance_type"], target["usd_per_hour"], "target")
    total = price.usd * most
    count = f"{most}" if most == target["instance_count"] else f"{target['instance_count']} to {most}"
    words = f"{count} x {target['instance_type']} at {price.usd:.4g} USD/h ({price.origin})"
    return Cost(total, f"{words}: {'' if count == str(most) else 'at most '}{total:.4g} USD/h")


def _serverless(target: Mapping[str, Any], config: Mapping[str, Any], scaled: int) -> Cost:
    price = usd_per_second(target["memory_mb"])
    kept = max(config.get("ProvisionedConcurrency", 0), scaled)
    # What is kept ready is billed without requests; the price of an answering second is the upper bound of both.
    total = price.usd * 3600 * (target["max_concurrency"] + kept)
    also = f", {kept} of them kept ready and billed without requests" if kept else ""
    return Cost(
        total,
        f"{target['memory_mb']} MB at {price.usd:.4g} USD per second of answering ({price.origin}), nothing while "
        f"idle: at most {total:.4g} USD/h with {target['max_concurrency']} requests at a time{also}",
    )


def refuse_above(cost: Cost, ceiling: float) -> None:
    """Refuse a price above ``target.max_usd_per_hour``.

    Raises:
        ConfigError: it is.
    """
    if cost.usd > ceiling:
        raise ConfigError(
            f"{cost.usd:.4g} USD per hour is above target.max_usd_per_hour={ceiling:g}: take fewer or smaller "
            "instances, or raise it"
        )


def running_cost(variants: Sequence[Mapping[str, Any]], config: Mapping[str, Any] | None) -> float | None:
    """What an endpoint that is there bills in an hour, without requests.

    Args:
        variants: ``ProductionVariants`` of DescribeEndpoint; empty where it has none yet.
        config: DescribeEndpointConfig; ``None`` where that is gone.

    Returns:
        US dollars; ``None`` where a price is not known.
    """
    if config is None:
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


def transform_bill(described: Mapping[str, Any]) -> float | None:
    """What a transform job that runs bills in an hour; ``None`` where the price is not known.

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
        endpoint: CreateEndpoint or UpdateEndpoint.
        scaling: requests to autoscaling, if that is asked for.
        cost: of the endpoint.
    """

    model: PlannedModel
    config: Call
    endpoint: Call
    scaling: list[Call]
    cost: Cost

    @property
    def name(self) -> str:
        """Of the configuration."""
        return str(self.config.request["EndpointConfigName"])

    @property
    def calls(self) -> list[Call]:
        """All requests, in the order they are sent."""
        return [self.model.call, self.config, self.endpoint, *self.scaling]

    def make(self, account: "Account", wanted: Wanted) -> None:
        """Make all that an endpoint needs, where it lacks.

        Raises:
            BinCounterError: something cannot be made.
        """
        self.model.make(account, wanted)
        if describe_config(account, self.name) is None:
            with answered(f"creating the configuration {self.name}"):
                self.config.send(account)


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


def plan(account: "Account", wanted: Wanted, package: "Package", *, update: bool) -> Planned:
    """Write and check all requests of an endpoint.

    Args:
        account: that the endpoint is in.
        wanted: what the command wants.
        package: the packed checkpoint.
        update: update an endpoint instead of creating one.

    Raises:
        BinCounterError: SageMaker would not take them, or they are above ``target.max_usd_per_hour``.
    """
    model = plan_model(account, wanted, package)
    config = config_call(wanted, model=model.call, bucket_uri=bucket_uri(account, wanted))
    scaling = scaling_calls(wanted)
    cost = endpoint_cost(wanted, config, scaling)
    refuse_above(cost, wanted.target["max_usd_per_hour"])
    return Planned(model, config, endpoint_call(wanted, config, update=update), scaling, cost)


def show_calls(calls: list[Call]) -> None:
    """Print requests as JSON, one after the other."""
    for call in calls:
        shown = {"operation": f"{call.service}:{call.operation}", "request": call.request}
        print(json.dumps(shown, indent=2, ensure_ascii=False, default=str))
