"""Create or update, wait, clean up what failed."""

import logging
from typing import TYPE_CHECKING, Any

from bincounter.cloud.aws_errors import answered
from bincounter.cloud.endpoints import endpoint_record
from bincounter.cloud.endpoints.api_objects import Call
from bincounter.cloud.endpoints.autoscaling import Registered, registered
from bincounter.cloud.endpoints.cleanup import remove, remove_unused
from bincounter.cloud.endpoints.deployment_plan import Planned, plan, show_calls
from bincounter.cloud.endpoints.endpoint_requests import Wanted, create_call, update_call
from bincounter.cloud.endpoints.endpoint_state import (
    BUSY,
    describe,
    describe_config,
    existing,
    failure,
    settled,
    tell_how_to_see,
    tell_in_service,
)
from bincounter.errors import BinCounterError, ConfigError, ResourceError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account
    from bincounter.serving.packing.archive import Package

log = logging.getLogger(__name__)


def planned_creation(account: "Account", wanted: Wanted, package: "Package") -> tuple[Planned, Call]:
    """What an endpoint needs, and CreateEndpoint.

    Raises:
        BinCounterError: SageMaker would not take it, or it is above ``target.max_usd_per_hour``.
    """
    endpoint = plan(account, wanted, package)
    return endpoint, create_call(wanted, endpoint.config)


def deploy(account: "Account", wanted: Wanted, package: "Package", *, dry: bool) -> None:
    """Make an endpoint, unless it is there with the same checkpoint and settings.

    Args:
        account: to make it in.
        wanted: what it is to be.
        package: the packed checkpoint.
        dry: print the requests instead.

    Raises:
        BinCounterError: it could not be made, or is there with another checkpoint or other settings.
        Interrupted: by Ctrl-C; AWS goes on.
    """
    endpoint, create = planned_creation(account, wanted, package)
    if dry:
        show_calls([*endpoint.before, create, *endpoint.scaling])
        return
    there = describe(account, wanted.name)
    if there is not None:
        _refuse_another(there, endpoint, wanted)
        log.info("It is there already, with the same checkpoint and settings.")
    else:
        _create(account, wanted, endpoint, create)
    endpoint_record.begin(account, wanted, endpoint, there["CreationTime"] if there else None)
    if not wanted.target["wait"]:
        tell_how_to_see(wanted)
        return
    ended = settled(account, wanted.name)
    if ended is None or ended["EndpointStatus"] != "InService":
        reason = failure(account, wanted.name, ended)
        remove(account, wanted)
        endpoint_record.end(account, wanted.name, [package.path.parent / endpoint_record.ENDPOINT_RECORD], "failed")
        raise ResourceError(
            f"the endpoint {wanted.name} did not come into service ({reason}), and nothing of it is left or billed: "
            "correct that, and run the same command again"
        )
    endpoint.scale(account)
    tell_in_service(account, wanted)


def _create(account: "Account", wanted: Wanted, endpoint: Planned, create: Call) -> None:
    try:
        endpoint.make(account, wanted)
        with answered(f"creating the endpoint {wanted.name}"):
            create.send(account)
    except BinCounterError as error:
        if not _is_ours(account, wanted, endpoint):
            raise
        # The answer to our own first try was lost.
        log.info("%s. It is being made all the same.", error)


def _is_ours(account: "Account", wanted: Wanted, endpoint: Planned) -> bool:
    """Whether the endpoint is there in spite of an error; if not, what was made for it is deleted."""
    try:
        there = describe(account, wanted.name)
        if there and there["EndpointConfigName"] == endpoint.name:
            return True
        remove_unused(account, wanted.name, keep=[there["EndpointConfigName"]] if there else [])
    except BinCounterError as error:
        log.warning("What was made before it could not be deleted, and is free (%s): use action=delete.", error)
    return False


def _refuse_another(there: dict[str, Any], endpoint: Planned, wanted: Wanted) -> None:
    state = there["EndpointStatus"]
    if state in ("Failed", "Deleting"):
        raise ConfigError(f"the endpoint name={wanted.name} is {state}, and cannot be mended: use action=delete first")
    if there["EndpointConfigName"] != endpoint.name:
        raise ConfigError(
            f"there is an endpoint name={wanted.name} already ({state}), with another checkpoint or other settings: "
            "use action=update, or another name"
        )


def planned_update(account: "Account", wanted: Wanted, package: "Package") -> tuple[Planned, Call]:
    """What an endpoint is to have, and UpdateEndpoint.

    Raises:
        BinCounterError: SageMaker would not take it, or it is above ``target.max_usd_per_hour``.
    """
    endpoint = plan(account, wanted, package)
    return endpoint, update_call(wanted, endpoint.config)


def update(account: "Account", wanted: Wanted, package: "Package", *, dry: bool) -> str:
    """Update an endpoint.

    Args:
        account: that it is in.
        wanted: what it is to become.
        package: the packed checkpoint.
        dry: print the requests instead.

    Returns:
        the name of the configuration that it goes on with.

    Raises:
        BinCounterError: it could not be updated, and goes on as it was.
        Interrupted: by Ctrl-C; AWS goes on.
    """
    endpoint, call = planned_update(account, wanted, package)
    if dry:
        show_calls([*endpoint.before, call, *endpoint.scaling])
        return endpoint.name
    there = existing(account, wanted.name)
    _refuse_busy(there, wanted)
    old = str(there["EndpointConfigName"])
    if old == endpoint.name:
        log.info("Nothing to update: it has this checkpoint and these settings.")
        endpoint.scale(account)
        tell_in_service(account, wanted)
        return endpoint.name
    try:
        endpoint.make(account, wanted)
        suspended = _update(account, wanted, endpoint, old)
    except BinCounterError:
        _take_back(account, wanted)
        raise
    if not wanted.target["wait"]:
        endpoint_record.begin(account, wanted, endpoint)
        tell_how_to_see(wanted)
        return endpoint.name
    ended = settled(account, wanted.name)
    if ended is None or ended["EndpointStatus"] != "InService" or ended["EndpointConfigName"] != endpoint.name:
        raise _failed(account, wanted, ended, old, suspended)
    endpoint_record.begin(account, wanted, endpoint)
    _clear_up(account, wanted, endpoint)
    tell_in_service(account, wanted)
    return endpoint.name


def _refuse_busy(there: dict[str, Any], wanted: Wanted) -> None:
    state = there["EndpointStatus"]
    if state == "InService":
        return
    step = "wait until action=status shows it InService" if state in BUSY else "use action=delete, then action=deploy"
    raise ConfigError(f"the endpoint name={wanted.name} is {state}, and cannot be updated: {step}")


def _update(account: "Account", wanted: Wanted, endpoint: Planned, old: str) -> Registered:
    """Send UpdateEndpoint; returns the autoscaling that had to be taken away before."""
    scaled = registered(account, wanted.name)
    same = _instance_type(describe_config(account, old)) == _instance_type(endpoint.config.request)
    # AWS refuses another instance type where autoscaling is registered.
    suspended = Registered([], []) if same else scaled
    suspended.remove(account)
    try:
        with answered(f"updating the endpoint {wanted.name}"):
            keep = bool(scaled and same and endpoint.scaling)
            update_call(wanted, endpoint.config, keep_capacity=keep).send(account)
    except BinCounterError:
        suspended.restore(account)
        raise
    return suspended


def _take_back(account: "Account", wanted: Wanted) -> None:
    """Delete what was made for an update that was refused."""
    try:
        there = describe(account, wanted.name)
        if there and there["EndpointStatus"] == "InService":  # else it may be under way: an answer can be lost
            remove_unused(account, wanted.name, keep=[there["EndpointConfigName"]])
    except BinCounterError as error:
        log.warning("What was made before it could not be deleted, and is free (%s): use action=delete.", error)


def _failed(
    account: "Account", wanted: Wanted, ended: dict[str, Any] | None, old: str, suspended: Registered
) -> ResourceError:
    """Clear up after an update that failed; returns the error to raise."""
    reason = failure(account, wanted.name, ended)
    state = ended["EndpointStatus"] if ended else "gone"
    if ended and state == "InService" and ended["EndpointConfigName"] == old:
        suspended.restore(account)
        remove_unused(account, wanted.name, keep=[old])
        return ResourceError(
            f"the update failed ({reason}) and was rolled back, so that {wanted.name} goes on with what it had ({old}"
            "): correct that, and run the same command again"
        )
    return ResourceError(
        f"the update failed ({reason}) and {wanted.name} is {state}: look at it with action=status, and use "
        "action=delete and action=deploy if it does not come back"
    )


def _clear_up(account: "Account", wanted: Wanted, endpoint: Planned) -> None:
    """Settings are all there is: what they no longer name goes."""
    if not endpoint.scaling:
        scaled = registered(account, wanted.name)
        if scaled:
            scaled.remove(account)
            log.info("Its autoscaling has ended, since target.request names none.")
    endpoint.scale(account)
    remove_unused(account, wanted.name, keep=[endpoint.name])


def _instance_type(config: dict[str, Any] | None) -> str | None:
    return config["ProductionVariants"][0].get("InstanceType") if config else None
