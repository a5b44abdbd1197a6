"""The end of a container's log, which says more than the reason that AWS gives."""

import re
from typing import TYPE_CHECKING

from bincounter.cloud.endpoints.errors import answered
from bincounter.errors import BinCounterError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

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
