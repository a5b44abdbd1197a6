"""What an endpoint, or a transform job, costs in an hour, at most, and what is above the ceiling."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bincounter.cloud.endpoints.objects import Call
from bincounter.cloud.endpoints.requests import Wanted
from bincounter.cloud.prices import usd_per_hour, usd_per_second
from bincounter.errors import ConfigError


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
