"""State and price of one endpoint or of all: ``action=status`` and ``action=list``."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bincounter.cloud.aws_errors import translate_endpoint_errors
from bincounter.cloud.endpoints.autoscaling import read_autoscaling
from bincounter.cloud.endpoints.cleanup import find_resources, is_tagged, models_of
from bincounter.cloud.endpoints.deployment_plan import running_cost, running_transform_cost
from bincounter.cloud.endpoints.endpoint_requests import EndpointSpec
from bincounter.cloud.endpoints.endpoint_state import (
    describe,
    describe_config,
    failure_reason,
    invocation_url,
    require_endpoint,
)

if TYPE_CHECKING:
    from bincounter.cloud.account import Account


def print_status(account: "Account", spec: EndpointSpec) -> None:
    """Print the state, capacity, price and address of an endpoint.

    Raises:
        ConfigError: the endpoint does not exist.
    """
    there = require_endpoint(account, spec.name)
    config = describe_config(account, there["EndpointConfigName"])
    state = there["EndpointStatus"]
    shown = {
        "endpoint": spec.name,
        "state": f"{state} since {_moment(there['LastModifiedTime'])}, created {_moment(there['CreationTime'])}",
        "serves": ", ".join(sorted(models_of(config))) or "a configuration that was deleted",
        "on": _capacity(there, config),
        "autoscaling": ", ".join(
            f"{call.request['MinCapacity']} to {call.request['MaxCapacity']}"
            for call in read_autoscaling(account, spec.name).targets
        ),
        "bills": _bill(running_cost(there.get("ProductionVariants", ()), config)),
        "address": invocation_url(account, spec),
        "failure": failure_reason(account, spec.name, there) if state == "Failed" else there.get("FailureReason", ""),
    }
    for name, value in shown.items():
        if value:
            print(f"{name:<12}{value}")


def print_endpoints(account: "Account") -> None:
    """Print the endpoints and transform jobs of bincounter, and the number of other endpoints."""
    with translate_endpoint_errors("listing the endpoints"):
        pages = account.sagemaker.get_paginator("list_endpoints").paginate()
        listed = [one for page in pages for one in page["Endpoints"]]
        ours = [one for one in listed if is_tagged(account.sagemaker, one["EndpointArn"])]
    used: set[str] = set()
    total = 0.0
    for one in sorted(ours, key=lambda one: one["EndpointName"]):
        there = describe(account, one["EndpointName"])
        if there is None:  # deleted in the meantime
            continue
        config = describe_config(account, there["EndpointConfigName"])
        used |= {there["EndpointConfigName"], *models_of(config)}
        cost = running_cost(there.get("ProductionVariants", ()), config)
        total += cost or 0
        print(f"{one['EndpointName']}\t{there['EndpointStatus']}\t{_capacity(there, config)}\t{_bill(cost)}")
    left = find_resources(account)
    for job in left.transforms:
        with translate_endpoint_errors(f"describing the transform job {job}"):
            described = account.sagemaker.describe_transform_job(TransformJobName=job)
        used.add(described["ModelName"])
        cost = running_transform_cost(described)
        total += cost or 0
        print(f"{job}\ttransform job {described['TransformJobStatus']}\t{_bill(cost)}")
    unused = [name for name in (*left.configs, *left.models) if name not in used]
    if unused:
        print(f"Left over, and free: {', '.join(unused)}; action=delete with the name of their endpoint deletes them")
    if not ours and not left.transforms:
        print(f"No endpoint of bincounter in {account.region}: nothing is billed.")
    else:
        print(f"Total: {_bill(total)}")
    others = len(listed) - len(ours)
    if others:
        print(f"Others in {account.region}: {others} endpoint{'s' if others != 1 else ''}, not of bincounter")


def _capacity(there: Mapping[str, Any], config: Mapping[str, Any] | None) -> str:
    """Return the instances of an endpoint, or the memory of a serverless one, in words."""
    if config is None:
        return "unknown instances"
    variant = config["ProductionVariants"][0]
    if "ServerlessConfig" in variant:
        serverless = variant["ServerlessConfig"]
        return f"serverless, {serverless['MemorySizeInMB']} MB, {serverless['MaxConcurrency']} requests at a time"
    running = there.get("ProductionVariants") or [{}]
    now = running[0].get("CurrentInstanceCount", variant["InitialInstanceCount"])
    kind = ", asynchronous" if "AsyncInferenceConfig" in config else ""
    return f"{now} x {variant['InstanceType']}{kind}"


def _bill(usd: float | None) -> str:
    if usd is None:
        return "unknown: the price table lacks its instance type"
    return f"{usd:.4g} USD/h" if usd else "nothing while idle"


def _moment(when: datetime) -> str:
    return f"{when.astimezone():%Y-%m-%d %H:%M}"
