"""A new endpoint: the price, the archive, the requests and the wait; one that fails is taken away again."""

import logging
from typing import TYPE_CHECKING, Any

from bincounter.cloud.endpoints import record
from bincounter.cloud.endpoints.belongings import remove_unused
from bincounter.cloud.endpoints.errors import answered
from bincounter.cloud.endpoints.objects import Call
from bincounter.cloud.endpoints.planning import Planned, plan, show_calls
from bincounter.cloud.endpoints.removal import remove
from bincounter.cloud.endpoints.requests import Wanted, create_call
from bincounter.cloud.endpoints.states import describe, failure, settled, tell_how_to_see, tell_in_service
from bincounter.errors import BinCounterError, ConfigError, ResourceError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account
    from bincounter.serving.packing.archive import Package

log = logging.getLogger(__name__)


def planned(account: "Account", wanted: Wanted, package: "Package") -> tuple[Planned, Call]:
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
    endpoint, create = planned(account, wanted, package)
    if dry:
        show_calls([*endpoint.before, create, *endpoint.scaling])
        return
    there = describe(account, wanted.name)
    if there is not None:
        _refuse_another(there, endpoint, wanted)
        log.info("It is there already, with the same checkpoint and settings.")
    else:
        _create(account, wanted, endpoint, create)
    record.begin(account, wanted, endpoint, there["CreationTime"] if there else None)
    if not wanted.target["wait"]:
        tell_how_to_see(wanted)
        return
    ended = settled(account, wanted.name)
    if ended is None or ended["EndpointStatus"] != "InService":
        reason = failure(account, wanted.name, ended)
        remove(account, wanted)
        record.end(account, wanted.name, [package.path.parent / record.RECORD], "failed")
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
