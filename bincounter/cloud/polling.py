"""Poll interval, retry window, wait-until loop for jobs and endpoints."""

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bincounter.cloud.endpoints.endpoint_state import BUSY
from bincounter.cloud.jobs import _POLL_FIRST, _POLL_LONGEST, answered_here
from bincounter.errors import Interrupted, ResourceError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

log = logging.getLogger(__name__)

_POLL_HERE = 0.2  # nobody throttles a rehearsal


class Pace:
    """How often to ask: soon while things change, seldom while nothing does.

    Args:
        leave: ends a rest.
        here: ask often, as a control plane on this machine may be.
    """

    def __init__(self, leave: threading.Event, *, here: bool = False) -> None:
        self._leave, self._here = leave, here
        self._seconds = _POLL_FIRST

    def rest(self, *, changed: bool) -> bool:
        """Wait; returns whether to leave instead of asking again."""
        self._seconds = _POLL_FIRST if changed else min(self._seconds * 1.3, _POLL_LONGEST)
        return self._leave.wait(_POLL_HERE if self._here else self._seconds)


_PATIENCE = 600.0  # seconds without an answer


class Patience:
    """Takes a network that is away for a while: the job goes on without it."""

    def __init__(self) -> None:
        self._since: float | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is None:
            self._since = None
            return False
        if not isinstance(error, ResourceError):
            return False
        if self._since is None:
            self._since = time.monotonic()
            log.warning("%s. The job goes on; asking again.", error)
        return time.monotonic() - self._since < _PATIENCE


_REMIND_S = 60.0  # between two lines that say that nothing has changed


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
