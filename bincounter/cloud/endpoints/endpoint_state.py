"""Describe, wait, failure reason with the last log line."""

import logging
import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bincounter.cloud.aws_errors import answered, explain_endpoint_failure, is_missing
from bincounter.cloud.endpoints.endpoint_requests import Wanted
from bincounter.cloud.jobs import answered_here
from bincounter.cloud.polling import wait_until
from bincounter.errors import BinCounterError, ConfigError, Interrupted

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

log = logging.getLogger(__name__)

BUSY = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
_REMIND_S = 60.0  # between two log lines of an unchanged state


def describe(account: "Account", name: str) -> dict[str, Any] | None:
    """DescribeEndpoint; ``None`` where there is none of that name."""
    return found(lambda: account.sagemaker.describe_endpoint(EndpointName=name), f"asking for the endpoint {name}")


def describe_config(account: "Account", name: str) -> dict[str, Any] | None:
    """DescribeEndpointConfig; ``None`` where there is none of that name."""
    return found(
        lambda: account.sagemaker.describe_endpoint_config(EndpointConfigName=name),
        f"asking for the configuration {name}",
    )


def describe_model(account: "Account", name: str) -> dict[str, Any] | None:
    """DescribeModel; ``None`` where there is none of that name."""
    return found(lambda: account.sagemaker.describe_model(ModelName=name), f"asking for the model {name}")


def found(ask: Callable[[], dict[str, Any]], doing: str) -> dict[str, Any] | None:
    """What AWS answers, or ``None`` where it says that there is no such thing.

    Args:
        ask: sends the request.
        doing: what it is for.
    """
    from botocore.exceptions import ClientError

    with answered(doing):
        try:
            return ask()
        except ClientError as error:
            if is_missing(error):
                return None
            raise


def existing(account: "Account", name: str) -> dict[str, Any]:
    """DescribeEndpoint of an endpoint that has to be there.

    Raises:
        ConfigError: it is not; those that are, are named.
    """
    described = describe(account, name)
    if described is not None:
        return described
    with answered("listing the endpoints"):
        pages = account.sagemaker.get_paginator("list_endpoints").paginate()
        names = sorted(one["EndpointName"] for page in pages for one in page["Endpoints"])
    there = f"there are {', '.join(names)}" if names else "there is none at all"
    raise ConfigError(
        f"there is no endpoint name={name} in {account.region} ({there}): correct name or target.region, or make one "
        "with action=deploy"
    )


def settled(account: "Account", name: str) -> dict[str, Any] | None:
    """Wait until an endpoint is in service, has failed or is gone, and show its states as they come.

    Args:
        account: that it is in.
        name: of the endpoint.

    Returns:
        DescribeEndpoint; ``None`` when it is gone.

    Raises:
        Interrupted: by Ctrl-C; AWS goes on.
    """
    see = f"python deploy.py action=status name={name}"
    return watched(account, lambda: describe(account, name), "EndpointStatus", name, see)


def watched(
    account: "Account", ask: Callable[[], dict[str, Any] | None], member: str, name: str, see: str
) -> dict[str, Any] | None:
    """Wait until the state of an endpoint or a transform job lasts, and log each state.

    Args:
        account: that it is in.
        ask: describes it; ``None`` where it is gone.
        member: of the description that holds the state.
        name: of the endpoint or job.
        see: the command that shows it later.

    Returns:
        its last description.

    Raises:
        Interrupted: by Ctrl-C; AWS goes on.
    """
    begun = logged_at = time.monotonic()
    last = ""
    described: dict[str, Any] | None = None

    def step() -> tuple[bool, bool]:
        nonlocal described, last, logged_at
        described = ask()
        state = described[member] if described else "gone"
        changed = state != last
        if changed or time.monotonic() - logged_at > _REMIND_S:
            log.info("%s: %s (%.0f s)", name, state, time.monotonic() - begun)
            logged_at, last = time.monotonic(), state
        return state not in (*BUSY, "InProgress", "Stopping"), changed

    try:
        wait_until(step, threading.Event(), local=answered_here(account))
    except KeyboardInterrupt:
        raise Interrupted(
            f"Interrupted: {name} goes on at AWS, and may be paid for: see it with {see}, and take it away with "
            "action=delete"
        ) from None
    return described


def failure(account: "Account", name: str, described: dict[str, Any] | None) -> str:
    """Why an endpoint is not what it was to become.

    Args:
        account: that it is in.
        name: of the endpoint.
        described: DescribeEndpoint; ``None`` when it is gone.
    """
    if described is None:
        return "it was deleted meanwhile"
    reason = described.get("FailureReason", "")
    # Where AWS knows more than that the container was not well, its log holds that of earlier ones.
    line = last_line(account, group_of(name)) if not reason or "container" in reason else None
    return explain_endpoint_failure(reason, line)


def tell_how_to_see(wanted: Wanted) -> None:
    """What to do when nobody waits."""
    log.info("It is under way, and billed. See it with: %s action=status", _command(wanted))


def tell_in_service(account: "Account", wanted: Wanted) -> None:
    """What to do with an endpoint that is in service; its address goes to stdout."""
    log.info("Ask it: %s action=invoke input=PHOTO", _command(wanted))
    log.info("Take it away: %s action=delete", _command(wanted))
    print(invocation_url(account, wanted), flush=True)


def invocation_url(account: "Account", wanted: Wanted) -> str:
    """Where requests to an endpoint are posted, signed by AWS's clients."""
    path = "async-invocations" if wanted.kind == "async" else "invocations"
    return f"{account.runtime.meta.endpoint_url}/endpoints/{wanted.name}/{path}"


def _command(wanted: Wanted) -> str:
    return f"python deploy.py target={wanted.kind} name={wanted.name}"


TRANSFORM_JOBS = "/aws/sagemaker/TransformJobs"
_LINES = 200
_LONGEST = 300  # characters of the line that is told
_MISTAKE = re.compile(r"\b[A-Z]\w*(?:Error|Exception|Problem)\b ?:|\bERROR\b|\bFATAL\b")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def group_of(endpoint: str) -> str:
    """The log group of an endpoint."""
    return f"/aws/sagemaker/Endpoints/{endpoint}"


def last_line(account: "Account", group: str, prefix: str = "") -> str | None:
    """The last line of a log that tells of a mistake, or the very last one.

    Args:
        account: that it is in.
        group: of the log.
        prefix: that the names of its streams begin with.

    Returns:
        ``None`` where there is no log, or it cannot be read: that is no reason to tell nothing else.
    """
    try:
        with answered(f"reading the log {group}"):
            lines = _last_lines(account, group, prefix)
    except BinCounterError:
        return None
    told = next((line for line in reversed(lines) if _MISTAKE.search(line)), lines[-1] if lines else None)
    return told[:_LONGEST] if told else None


def _last_lines(account: "Account", group: str, prefix: str) -> list[str]:
    streams = account.logs.describe_log_streams(
        logGroupName=group, **({"logStreamNamePrefix": prefix} if prefix else {})
    )["logStreams"]
    if not streams:
        return []
    newest = max(streams, key=lambda stream: stream.get("creationTime", 0))  # old containers log on
    events = account.logs.get_log_events(
        logGroupName=group, logStreamName=newest["logStreamName"], limit=_LINES, startFromHead=False
    )["events"]
    lines = (" ".join(_COLOURS.sub("", event["message"]).split()) for event in events)
    return [line for line in lines if line]
