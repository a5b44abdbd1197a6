"""State and price of one endpoint or of all: ``action=status`` and ``action=list``."""

import logging
import sys
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from bincounter.cloud.endpoints.attempts import Attempts
from bincounter.cloud.endpoints.autoscaling import read_targets
from bincounter.cloud.endpoints.deployment_plan import running_cost, running_transform_cost
from bincounter.cloud.endpoints.endpoint_requests import EndpointSpec
from bincounter.cloud.endpoints.endpoint_state import (
    BUSY_STATES,
    describe,
    describe_config,
    failure_reason,
    invocation_url,
)
from bincounter.cloud.endpoints.resources import LIST_JOBS, find_resources, is_tagged, models_of

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

log = logging.getLogger(__name__)

_LIST = "listing the endpoints"


def print_status(account: "Account", spec: EndpointSpec) -> int:
    """Print the state, capacity, price and address of an endpoint.

    Returns:
        the exit code: 1 if the endpoint does not exist or has failed.

    Raises:
        BinCounterError: the endpoint cannot be described.
    """
    there = describe(account, spec.name)
    if there is None:
        print(
            f"No endpoint named {spec.name} runs in {account.region}: action=list shows all, action=deploy creates it.",
            file=sys.stderr,
        )
        return 1
    attempts = Attempts()
    config = attempts.look(
        "describing the configuration", partial(describe_config, account, there["EndpointConfigName"]), {}
    )
    targets = attempts.look("describing the autoscaling", partial(read_targets, account, spec.name), None)
    state = there["EndpointStatus"]
    shown = {
        "endpoint": spec.name,
        "state": f"{state} since {_moment(there['LastModifiedTime'])}, created {_moment(there['CreationTime'])}",
        "serves": ", ".join(sorted(models_of(config)))
        or ("unknown" if config == {} else "a configuration that was deleted"),
        "on": _capacity(there, config),
        "autoscaling": "unknown"
        if targets is None
        else ", ".join(f"{call.request['MinCapacity']} to {call.request['MaxCapacity']}" for call in targets),
        "bills": _bill(running_cost(there.get("ProductionVariants", ()), config), config),
        "address": invocation_url(account, spec),
        "failure": failure_reason(account, spec.name, there) if state == "Failed" else there.get("FailureReason", ""),
    }
    for name, value in shown.items():
        if value:
            print(f"{name:<12}{value}")
    if attempts.unchecked:
        log.warning("%s", attempts.report())
    return 0 if state == "InService" or state in BUSY_STATES else 1


def print_endpoints(account: "Account") -> int:
    """Print the endpoints and transform jobs of bincounter, and the number of other endpoints.

    Returns:
        the exit code: 1 if endpoints or transform jobs cannot be listed.
    """
    attempts = Attempts()
    client = account.sagemaker
    listed = attempts.look(
        _LIST,
        lambda: [one for page in client.get_paginator("list_endpoints").paginate() for one in page["Endpoints"]],
        [],
    )
    tagged = {one["EndpointName"]: is_tagged(account, one["EndpointArn"], attempts) for one in listed}
    bills: list[float | None] = []
    used: set[str] = set()
    for one in sorted(listed, key=lambda one: one["EndpointName"]):
        name = one["EndpointName"]
        if tagged[name] is False:
            continue
        there = attempts.look("describing an endpoint", partial(describe, account, name), one)
        if there is None:  # deleted in the meantime
            continue
        config: dict[str, Any] | None = {}
        if (serving := there.get("EndpointConfigName")) is not None:
            config = attempts.look("describing a configuration", partial(describe_config, account, serving), {})
            used |= {serving, *models_of(config)}
        cost = running_cost(there.get("ProductionVariants", ()), config)
        bills.append(cost)
        others = "" if tagged[name] else "\tmaybe not of bincounter"
        print(f"{name}\t{there['EndpointStatus']}\t{_capacity(there, config)}\t{_bill(cost, config)}{others}")
    left = find_resources(account, attempts)
    for job in left.transforms:
        ask = partial(client.describe_transform_job, TransformJobName=job)
        described = attempts.look("describing a transform job", ask, {})
        used.add(described.get("ModelName", ""))
        cost = running_transform_cost(described) if described else None
        bills.append(cost)
        state = described.get("TransformJobStatus", "InProgress")
        print(f"{job}\ttransform job {state}\t{_bill(cost, described)}")
    unused = [name for name in (*left.configs, *left.models) if name not in used]
    if unused and not attempts.unchecked:
        print(f"Left over, and free: {', '.join(unused)}; action=delete with the name of their endpoint deletes them")
    if None in bills:
        print(f"Total: at least {_bill(sum(cost or 0 for cost in bills))}")
    elif bills:
        print(f"Total: {_bill(sum(cost or 0 for cost in bills))}")
    elif not attempts.unchecked:
        print(f"No endpoint of bincounter in {account.region}: nothing is billed.")
    others_count = list(tagged.values()).count(False)
    if others_count:
        print(f"Others in {account.region}: {others_count} endpoint{'s' * (others_count != 1)}, not of bincounter")
    if attempts.unchecked:
        log.warning("%s", attempts.report())
    return 1 if {_LIST, LIST_JOBS} & set(attempts.unchecked) else 0


def _capacity(there: Mapping[str, Any], config: Mapping[str, Any] | None) -> str:
    """Return the instances of an endpoint, or the memory of a serverless one, in words."""
    if not config:
        return "unknown instances"
    variant = config["ProductionVariants"][0]
    if "ServerlessConfig" in variant:
        serverless = variant["ServerlessConfig"]
        return f"serverless, {serverless['MemorySizeInMB']} MB, {serverless['MaxConcurrency']} requests at a time"
    running = there.get("ProductionVariants") or [{}]
    now = running[0].get("CurrentInstanceCount", variant["InitialInstanceCount"])
    kind = ", asynchronous" if "AsyncInferenceConfig" in config else ""
    return f"{now} x {variant['InstanceType']}{kind}"


def _bill(usd: float | None, described: Mapping[str, Any] | None = None) -> str:
    """Return a price in words; ``described`` is ``{}`` where AWS did not describe what is billed."""
    if usd is None:
        return "unknown" if described == {} else "unknown: the price table lacks its instance type"
    return f"{usd:.4g} USD/h" if usd else "nothing while idle"


def _moment(when: datetime) -> str:
    return f"{when.astimezone():%Y-%m-%d %H:%M}"
