"""The one wait loop, for jobs, tuning jobs and endpoints: poll interval and retry window.

botocore's waiters show no states on the way and give up when the network is away.
"""

import logging
import threading
import time
from collections.abc import Callable

from bincounter.errors import ResourceError

log = logging.getLogger(__name__)

_SHORTEST, _LONGEST = 1.0, 10.0  # seconds between two requests; the Describe operations are throttled
_LOCAL = 0.2  # a rehearsal throttles nobody
_RETRY_WINDOW = 600.0  # seconds without an answer after which waiting ends


def wait_until(step: Callable[[], tuple[bool, bool]], leave: threading.Event, *, local: bool) -> bool:
    """Repeat a step until it reports the end: often while things change, seldom while nothing does.

    A network that is away for a while is waited for, since what runs at AWS does not need it.

    Args:
        step: asks AWS once; returns whether the wait is over, and whether anything has changed.
        leave: ends the wait early.
        local: poll often, since a rehearsal on this machine answers.

    Returns:
        whether the step has reported the end; false where ``leave`` was set before.

    Raises:
        ResourceError: of the step, when it has failed for ten minutes.
    """
    pause, failing_since = _SHORTEST, None
    while True:
        changed = False
        try:
            ended, changed = step()
            if ended:
                return True
            failing_since = None
        except ResourceError as error:
            if failing_since is None:
                failing_since = time.monotonic()
                log.warning("%s. It still runs on AWS; asking again.", error)
            if time.monotonic() - failing_since >= _RETRY_WINDOW:
                raise
        pause = _SHORTEST if changed else min(pause * 1.3, _LONGEST)
        if leave.wait(_LOCAL if local else pause):
            return False
