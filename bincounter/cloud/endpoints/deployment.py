"""Create or update an endpoint, wait for it, and clean up after a failure."""

import logging
from typing import TYPE_CHECKING, Any

from bincounter.cloud.aws_errors import translate_endpoint_errors
from bincounter.cloud.endpoints import endpoint_record
from bincounter.cloud.endpoints.autoscaling import Autoscaling, read_autoscaling
from bincounter.cloud.endpoints.cleanup import remove, remove_unused
from bincounter.cloud.endpoints.deployment_plan import DeploymentPlan, plan_deployment, print_calls
from bincounter.cloud.endpoints.endpoint_requests import EndpointSpec
from bincounter.cloud.endpoints.endpoint_state import (
    BUSY_STATES,
    describe,
    describe_config,
    failure_reason,
    log_status_command,
    print_endpoint_url,
    require_endpoint,
    wait_until_settled,
)
from bincounter.errors import BinCounterError, ConfigError, ResourceError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account
    from bincounter.serving.packing.archive import Package

log = logging.getLogger(__name__)


def deploy(account: "Account", spec: EndpointSpec, package: "Package", *, update: bool, dry: bool) -> str:
    """Create or update an endpoint, unless it already has this checkpoint and these settings.

    Args:
        account: that the endpoint is in.
        spec: its settings.
        package: the packed checkpoint.
        update: update an endpoint that exists; otherwise create one.
        dry: print the requests instead.

    Returns:
        name of the endpoint configuration that it serves with.

    Raises:
        BinCounterError: it could not be created, or exists with another checkpoint or other settings; or it could not
            be updated, and keeps serving as before.
        Interrupted: by Ctrl-C; the deployment continues at AWS.
    """
    planned = plan_deployment(account, spec, package, update=update)
    if dry:
        print_calls(account, planned.calls)
        return planned.name
    before = require_endpoint(account, spec.name) if update else describe(account, spec.name)
    scaled = suspended = Autoscaling([], [])
    if before:
        _check_state(before, planned, spec, update=update)
        scaled = _read_autoscaling(account, spec)
    unchanged = before is not None and before["EndpointConfigName"] == planned.name
    wait = spec.target["wait"] or (unchanged and before is not None and before["EndpointStatus"] == "InService")
    _check_scaling(spec, planned, scaled, update=update, wait=wait)
    if unchanged:
        step = "nothing to do" if scaled.matches(planned.scaling) else "only its autoscaling changes"
        log.info("The endpoint %s has this checkpoint and these settings: %s.", spec.name, step)
    else:
        suspended = _send(account, spec, planned, before, scaled)
    if not (update and wait):  # an update may be rolled back: it is recorded once it has succeeded
        endpoint_record.record_begin(account, spec, planned, before["CreationTime"] if before and not update else None)
    if not wait:
        log_status_command(spec)
        return planned.name
    ended = wait_until_settled(account, spec)
    in_service = ended is not None and ended["EndpointStatus"] == "InService"
    if update:
        if before and not (in_service and ended and ended["EndpointConfigName"] == planned.name):
            raise _update_failed(account, spec, ended, before["EndpointConfigName"], suspended)
        endpoint_record.record_begin(account, spec, planned)
    elif not in_service:
        reason = failure_reason(account, spec.name, ended)
        removal = remove(account, spec)
        if removal.ended:
            record = package.path.parent / endpoint_record.ENDPOINT_RECORD
            endpoint_record.record_end(account, spec.name, [record], "failed")
        left = "; ".join(removal.attempts.left)
        outcome = "it was deleted, and nothing is billed" if removal.ended else "it may be billed: run action=delete"
        raise ResourceError(
            f"the endpoint {spec.name} did not come into service ({reason}); {outcome}"
            f"{f' (not deleted: {left})' if left else ''}: correct the cause, and run the same command again"
        )
    for call in planned.scaling:
        with translate_endpoint_errors("registering the endpoint's autoscaling"):
            call.send(account)
    if update:
        _remove_superseded(account, spec, planned)
    print_endpoint_url(account, spec)
    return planned.name


def _check_state(before: dict[str, Any], planned: DeploymentPlan, spec: EndpointSpec, *, update: bool) -> None:
    """Raise a ConfigError unless an endpoint that exists can be updated, or is the one to create."""
    state = before["EndpointStatus"]
    if update:
        if state != "InService":
            busy = state in BUSY_STATES
            step = "wait until action=status shows it InService" if busy else "use action=delete, then action=deploy"
            raise ConfigError(f"the endpoint name={spec.name} is {state}, and cannot be updated: {step}")
    elif state in ("Failed", "Deleting"):
        raise ConfigError(f"the endpoint name={spec.name} is {state}, and cannot be used: run action=delete first")
    elif before["EndpointConfigName"] != planned.name:
        raise ConfigError(
            f"the endpoint name={spec.name} exists ({state}) with another checkpoint or other settings: "
            "use action=update, or another name"
        )


def _check_scaling(
    spec: EndpointSpec, planned: DeploymentPlan, scaled: Autoscaling, *, update: bool, wait: bool
) -> None:
    """Raise a ConfigError if an endpoint would keep autoscaling that is not in its settings."""
    if planned.scaling or not scaled or (update and wait):  # an update ends it once it has succeeded
        return
    step = (
        "remove target.wait=false, so that the update ends it"
        if update
        else "use action=update to end it, or set target.request.ScalableTarget and target.request.ScalingPolicy"
    )
    raise ConfigError(
        f"the endpoint name={spec.name} has autoscaling, which target.request lacks, and may bill more than the price "
        f"above: {step}"
    )


def _send(
    account: "Account", spec: EndpointSpec, planned: DeploymentPlan, before: dict[str, Any] | None, scaled: Autoscaling
) -> Autoscaling:
    """Create the model and the configuration, and send CreateEndpoint or UpdateEndpoint.

    Args:
        account: that the endpoint is in.
        spec: its settings.
        planned: the requests.
        before: DescribeEndpoint of an endpoint to update.
        scaled: its autoscaling.

    Returns:
        the autoscaling that had to be deregistered for an update.
    """
    suspended = Autoscaling([], [])
    try:
        planned.make(account, spec)
        if before:
            config = describe_config(account, before["EndpointConfigName"])
            if _instance_type(config) != _instance_type(planned.config.request):
                suspended = scaled  # AWS refuses another instance type while autoscaling is registered
                suspended.remove(account)
            elif scaled and planned.scaling:  # keep as many instances as autoscaling has started
                planned.endpoint.request.setdefault("RetainAllVariantProperties", True)
        try:
            with translate_endpoint_errors(f"{'updating' if before else 'creating'} the endpoint {spec.name}"):
                planned.endpoint.send(account)
        except BinCounterError:
            suspended.restore(account)
            raise
    except BinCounterError as error:
        if not _is_created(account, spec, planned, before):
            raise
        # The first attempt succeeded, and its response was lost.
        log.info("%s. The endpoint is being created nevertheless.", error)
    return suspended


def _read_autoscaling(account: "Account", spec: EndpointSpec) -> Autoscaling:
    """Read the autoscaling of an endpoint that exists; none where that is not allowed, as without any."""
    try:
        return read_autoscaling(account, spec.name)
    except ConfigError as error:
        log.warning("The endpoint is taken to have no autoscaling: %s", error)
        return Autoscaling([], [])


def _is_created(account: "Account", spec: EndpointSpec, planned: DeploymentPlan, before: dict[str, Any] | None) -> bool:
    """Return True if an endpoint is being created in spite of an error; if not, delete what was made for it."""
    try:
        now = describe(account, spec.name)
        if now and not before and now["EndpointConfigName"] == planned.name:
            return True
        # The response to an update may be lost, too: keep what it needs while it may be running.
        if now is None or not before or now["EndpointStatus"] == "InService":
            remove_unused(account, spec.name, keep=[now["EndpointConfigName"]] if now else [])
    except BinCounterError as error:
        log.warning(
            "Whether the endpoint %s was created is not known (%s): it may be billed; check it with action=status, or "
            "use action=delete.",
            spec.name,
            error,
        )
    return False


def _update_failed(
    account: "Account", spec: EndpointSpec, ended: dict[str, Any] | None, old: str, suspended: Autoscaling
) -> ResourceError:
    """Clean up after an update that failed; returns the error to raise."""
    reason = failure_reason(account, spec.name, ended)
    state = ended["EndpointStatus"] if ended else "deleted"
    if ended and state == "InService" and ended["EndpointConfigName"] == old:
        suspended.restore(account)
        remove_unused(account, spec.name, keep=[old])
        return ResourceError(
            f"the update failed ({reason}) and was rolled back: {spec.name} serves {old} as "
            "before. Correct the cause, and run the same command again"
        )
    return ResourceError(
        f"the update failed ({reason}) and {spec.name} is {state}: check it with action=status, and use "
        "action=delete and action=deploy if it does not recover"
    )


def _remove_superseded(account: "Account", spec: EndpointSpec, planned: DeploymentPlan) -> None:
    """Delete the resources of an updated endpoint that its settings no longer name."""
    if not planned.scaling:
        try:
            scaled = read_autoscaling(account, spec.name)
            scaled.remove(account)
            if scaled:
                log.info("Autoscaling was deregistered, since target.request has none.")
        except BinCounterError as error:  # the update itself has succeeded
            log.warning("Autoscaling is left as it is: %s", error)
    remove_unused(account, spec.name, keep=[planned.name])


def _instance_type(config: dict[str, Any] | None) -> str | None:
    return config["ProductionVariants"][0].get("InstanceType") if config else None
