"""What state an endpoint is in, and the wait until it is in a lasting one."""

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bincounter.cloud.endpoints.errors import answered, explain_endpoint_failure, is_missing
from bincounter.cloud.endpoints.logs import group_of, last_line
from bincounter.cloud.endpoints.requests import Wanted
from bincounter.cloud.jobs import Pace, answered_here
from bincounter.cloud.watch import Patience
from bincounter.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

log = logging.getLogger(__name__)

BUSY = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
_REMIND_S = 60.0  # between two lines that say that nothing has changed


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
    """Ask until a state lasts.

    Args:
        account: that it is in.
        ask: describes what is waited for.
        member: of the description that holds the state.
        name: of what is waited for.
        see: the command that shows it later.

    Raises:
        Interrupted: by Ctrl-C; AWS goes on.
    """
    since, told_at, last = time.monotonic(), time.monotonic(), ""
    pace, patience = Pace(threading.Event(), here=answered_here(account)), Patience()
    described: dict[str, Any] | None = {member: "Creating"}
    try:
        while True:
            with patience:
                described = ask()
            state = described[member] if described else "gone"
            changed = state != last
            if changed or time.monotonic() - told_at > _REMIND_S:
                log.info("%s: %s (%.0f s)", name, state, time.monotonic() - since)
                told_at, last = time.monotonic(), state
            if described is None or state not in (*BUSY, "InProgress", "Stopping"):
                return described
            pace.rest(changed=changed)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Interrupted: {name} goes on at AWS, and may be paid for: see it with {see}, and take it away with "
            "action=delete"
        ) from None


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
