"""Requests that may fail without stopping the ones after them, since a look-up must not keep an endpoint running."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from bincounter.cloud.aws_errors import is_missing, translate_endpoint_errors
from bincounter.cloud.endpoints.api_objects import Call
from bincounter.errors import BinCounterError, Interrupted

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

T = TypeVar("T")


class Attempts:
    """Failures of optional requests, to be reported together at the end.

    Attributes:
        unchecked: look-up in words -> sentence of its error.
        left: resources that should have been deleted or stopped and were not, with the reason.
    """

    def __init__(self) -> None:
        self.unchecked: dict[str, str] = {}
        self.left: list[str] = []

    def look(self, what: str, ask: Callable[[], T], default: Any) -> T:
        """Return the result of a look-up, or ``default`` if it fails, and at once if it has failed before.

        Args:
            what: look-up in words, such as ``"listing the models"``.
            ask: sends the request.
            default: value to use instead.
        """
        if what in self.unchecked:
            return default
        try:
            with translate_endpoint_errors(what):
                return ask()
        except Interrupted:
            raise
        except BinCounterError as error:
            self.unchecked[what] = str(error)
            return default

    def remove(self, account: "Account", call: Call, resource: str) -> bool:
        """Delete or stop a resource; return whether it is gone, and note it as left if not.

        Args:
            account: account of the resource.
            call: request that deletes or stops it.
            resource: resource in words, such as ``"the model x"``.
        """
        error = send_removal(account, call)
        if error is not None:
            self.left.append(f"{resource} ({error})")
        return error is None

    def report(self) -> str:
        """Return one line that lists the look-ups that failed; empty if there are none."""
        sentences = dict.fromkeys(self.unchecked.values())
        return f"Could not be checked: {'; '.join(sentences)}" if sentences else ""


def send_removal(account: "Account", call: Call) -> BinCounterError | None:
    """Send a request that deletes or stops a resource; return its error. A missing resource is not one."""
    from botocore.exceptions import ClientError

    try:
        with translate_endpoint_errors(f"deleting {', '.join(map(str, call.request.values()))}"):
            try:
                call.send(account)
            except ClientError as error:
                if not is_missing(error):
                    raise
    except BinCounterError as error:
        return error
    return None
