"""State of an endpoint: describe it, wait for it, explain its failure with the last line of its log."""

import logging
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from bincounter.cloud.aws_errors import describe_endpoint_failure, describe_if_exists, translate_endpoint_errors
from bincounter.cloud.endpoints.endpoint_requests import EndpointSpec
from bincounter.cloud.jobs import is_local_endpoint
from bincounter.cloud.polling import wait_until
from bincounter.config.quoting import shell_command
from bincounter.errors import BinCounterError, ConfigError, Interrupted

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

log = logging.getLogger(__name__)

BUSY_STATES = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
_REMIND_S = 60.0  # seconds between two log lines of an unchanged state


def describe(account: "Account", name: str) -> dict[str, Any] | None:
    """Return DescribeEndpoint; ``None`` if the endpoint does not exist."""
    ask = partial(account.sagemaker.describe_endpoint, EndpointName=name)
    return describe_if_exists(ask, f"describing the endpoint {name}", "target")


def describe_config(account: "Account", name: str) -> dict[str, Any] | None:
    """Return DescribeEndpointConfig; ``None`` if the configuration does not exist."""
    ask = partial(account.sagemaker.describe_endpoint_config, EndpointConfigName=name)
    return describe_if_exists(ask, f"describing the configuration {name}", "target")


def describe_model(account: "Account", name: str) -> dict[str, Any] | None:
    """Return DescribeModel; ``None`` if the model does not exist."""
    ask = partial(account.sagemaker.describe_model, ModelName=name)
    return describe_if_exists(ask, f"describing the model {name}", "target")


def require_endpoint(account: "Account", name: str) -> dict[str, Any]:
    """Return DescribeEndpoint of an endpoint that must exist.

    Raises:
        ConfigError: it does not exist; names the endpoints that do.
    """
    described = describe(account, name)
    if described is not None:
        return described
    try:
        with translate_endpoint_errors("listing the endpoints"):
            pages = account.sagemaker.get_paginator("list_endpoints").paginate()
            names = sorted(one["EndpointName"] for page in pages for one in page["Endpoints"])
        others = f"there are {', '.join(names)}" if names else "there are none"
    except BinCounterError:
        others = "which others there are could not be listed"
    raise ConfigError(
        f"there is no endpoint name={name} in {account.region} ({others}): correct name or target.region, or create "
        "it with action=deploy"
    )


def wait_until_settled(account: "Account", spec: EndpointSpec) -> dict[str, Any] | None:
    """Wait until an endpoint is in service, has failed or is deleted, and log each state.

    Args:
        account: account of the endpoint.
        spec: settings of the endpoint.

    Returns:
        DescribeEndpoint; ``None`` if it was deleted.

    Raises:
        Interrupted: by Ctrl-C; the endpoint or job continues at AWS.
    """
    see = deploy_command(spec, "action=status")
    return watch_state(account, lambda: describe(account, spec.name), "EndpointStatus", spec.name, see)


def watch_state(
    account: "Account", ask: Callable[[], dict[str, Any] | None], member: str, name: str, see: str
) -> dict[str, Any] | None:
    """Wait until the state of an endpoint or a transform job is final, and log each state.

    Args:
        account: account of the endpoint or job.
        ask: describes it; returns ``None`` if it was deleted.
        member: key of the state in the description.
        name: name of the endpoint or job.
        see: command that shows it later.

    Returns:
        the last description.

    Raises:
        Interrupted: by Ctrl-C; the endpoint or job continues at AWS.
    """
    begun = logged_at = time.monotonic()
    last = ""
    described: dict[str, Any] | None = None

    def step() -> tuple[bool, bool]:
        nonlocal described, last, logged_at
        with translate_endpoint_errors(f"describing {name}"):
            described = ask()
        state = described[member] if described else "Deleted"
        changed = state != last
        if changed or time.monotonic() - logged_at > _REMIND_S:
            log.info("%s: %s (%.0f s)", name, state, time.monotonic() - begun)
            logged_at, last = time.monotonic(), state
        return state not in (*BUSY_STATES, "InProgress", "Stopping"), changed

    continues = f"{name} continues at AWS, and may be billed: check it with {see}, and delete it with action=delete"
    try:
        wait_until(step, threading.Event(), local=is_local_endpoint(account))
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted: {continues}") from None
    except BinCounterError as error:
        raise type(error)(f"{error}. {continues}") from None
    return described


def failure_reason(account: "Account", name: str, described: dict[str, Any] | None) -> str:
    """Return the reason for an endpoint's failure.

    Args:
        account: account of the endpoint.
        name: name of the endpoint.
        described: DescribeEndpoint; ``None`` if it was deleted.
    """
    if described is None:
        return "it was deleted in the meantime"
    reason = described.get("FailureReason", "")
    # For other reasons than the container, the log has only lines of earlier containers.
    line = last_error_line(account, log_group(name)) if not reason or "container" in reason else None
    return describe_endpoint_failure(reason, line)


def log_status_command(spec: EndpointSpec) -> None:
    """Log the command that shows the state, when nobody waits."""
    log.info("The endpoint is being deployed, and is billed. Check it with: %s", deploy_command(spec, "action=status"))


def print_endpoint_url(account: "Account", spec: EndpointSpec) -> None:
    """Log the next commands for an endpoint in service, and print its URL."""
    log.info("Count a photo: %s", deploy_command(spec, "action=invoke", "input=PHOTO"))
    log.info("Delete it: %s", deploy_command(spec, "action=delete"))
    print(invocation_url(account, spec), flush=True)


def invocation_url(account: "Account", spec: EndpointSpec) -> str:
    """Return the URL for signed requests to an endpoint."""
    path = "async-invocations" if spec.kind == "async" else "invocations"
    return f"{account.runtime.meta.endpoint_url}/endpoints/{spec.name}/{path}"


def deploy_command(spec: EndpointSpec, *action: str) -> str:
    """Return the command of another action on an endpoint, in the region that was set."""
    region = spec.target["region"]
    where = {"target.region": region} if region else {}
    return shell_command("bincounter", "deploy", f"target={spec.kind}", f"name={spec.name}", *action, settings=where)


TRANSFORM_JOBS = "/aws/sagemaker/TransformJobs"
_LINES = 200
_LONGEST = 300  # characters of the log line
_ERROR_LINE = re.compile(r"\b[A-Z]\w*(?:Error|Exception|Problem)\b ?:|\bERROR\b|\bFATAL\b")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def log_group(endpoint: str) -> str:
    """Return the log group of an endpoint."""
    return f"/aws/sagemaker/Endpoints/{endpoint}"


def last_error_line(account: "Account", group: str, prefix: str = "") -> str | None:
    """Return the last error line of a log, or else its last line.

    Args:
        account: account of the log.
        group: log group.
        prefix: prefix of the log streams.

    Returns:
        ``None`` if there is no log or it cannot be read, so that the error is reported without it.
    """
    try:
        with translate_endpoint_errors(f"reading the log {group}"):
            lines = _last_lines(account, group, prefix)
    except BinCounterError:
        return None
    line = next((line for line in reversed(lines) if _ERROR_LINE.search(line)), lines[-1] if lines else None)
    return line[:_LONGEST] if line else None


def _last_lines(account: "Account", group: str, prefix: str) -> list[str]:
    streams = account.logs.describe_log_streams(
        logGroupName=group, **({"logStreamNamePrefix": prefix} if prefix else {})
    )["logStreams"]
    if not streams:
        return []
    newest = max(streams, key=lambda stream: stream.get("creationTime", 0))  # old containers keep logging
    events = account.logs.get_log_events(
        logGroupName=group, logStreamName=newest["logStreamName"], limit=_LINES, startFromHead=False
    )["events"]
    lines = (" ".join(_COLOURS.sub("", event["message"]).split()) for event in events)
    return [line for line in lines if line]
