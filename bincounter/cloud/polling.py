"""Wait loop for jobs, tuning jobs and endpoints: poll interval and retry window; a log of slow requests.

botocore's waiters report no intermediate states and give up when the network fails.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from bincounter.errors import ResourceError

log = logging.getLogger(__name__)

_SHORTEST, _LONGEST = 1.0, 10.0  # seconds between two requests; the Describe operations are throttled
_LOCAL = 0.2  # a rehearsal does not throttle
_SILENT_AFTER = 5.0  # seconds without an answer that are logged
_SLOW_OPERATIONS = ("PutObject", "UploadPart", "GetObject", "InvokeEndpoint")
_RETRY_WINDOW = 600.0  # seconds without an answer after which waiting ends


def wait_until(step: Callable[[], tuple[bool, bool]], leave: threading.Event, *, local: bool) -> bool:
    """Repeat a step until it reports the end, more often while states change.

    A temporary network failure does not end the wait, since jobs and endpoints at AWS continue.

    Args:
        step: polls AWS once; returns whether the wait is over, and whether anything has changed.
        leave: ends the wait early.
        local: poll often, since a rehearsal on this machine does not throttle.

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
                log.warning("%s. It still runs at AWS; retrying.", error)
            if time.monotonic() - failing_since >= _RETRY_WINDOW:
                raise
        pause = _SHORTEST if changed else min(pause * 1.3, _LONGEST)
        if leave.wait(_LOCAL if local else pause):
            return False


def log_silence(client: Any, timeout: float) -> None:
    """Log each request of a client that has no response within seconds, while the client waits and retries.

    Args:
        client: of boto3.
        timeout: seconds after which it gives up.
    """
    sentence = "No response from AWS to %s for %.0f s: waiting and retrying for up to %.0f s"

    def begin(model: Any, context: dict[str, Any], **_: Any) -> None:
        if model.name not in _SLOW_OPERATIONS:
            words = (sentence, model.name, _SILENT_AFTER, timeout)
            timer = context["bincounter_timer"] = threading.Timer(_SILENT_AFTER, log.warning, words)
            timer.daemon = True
            timer.start()

    def end(context: dict[str, Any], **_: Any) -> None:
        if "bincounter_timer" in context:
            context["bincounter_timer"].cancel()

    client.meta.events.register("before-call", begin)
    for event in ("after-call", "after-call-error"):
        client.meta.events.register(event, end)
