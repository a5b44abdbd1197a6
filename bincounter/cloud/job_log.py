"""State and log of a job as they come; epoch scores from log lines."""

import logging
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bincounter.cloud.aws_errors import answered_by_aws
from bincounter.cloud.debugger_rules import STATUSES, RuleStates
from bincounter.cloud.jobs import ENDED, Job, answered_here, describe
from bincounter.cloud.polling import wait_until
from bincounter.errors import BinCounterError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

log = logging.getLogger(__name__)

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
_EPOCH = re.compile(r"epoch (\d+) of \d+: (.+)")  # see bincounter.training.logs.TrainingLog
_LATE = 2.0  # seconds that CloudWatch may be behind
KEPT = (
    "TrainingJobStatus",
    "SecondaryStatus",
    "FailureReason",
    "ModelArtifacts",
    "CreationTime",
    "TrainingStartTime",
    "TrainingEndTime",
    "TrainingTimeInSeconds",
    "BillableTimeInSeconds",
    "FinalMetricDataList",
    "EnableManagedSpotTraining",
    # Where AWS's watching of the job puts what it found, and what that is.
    "OutputDataConfig",
    "DebugHookConfig",
    "ProfilerConfig",
    *STATUSES,
)


def follow(
    account: "Account",
    job: Job,
    leave: threading.Event,
    *,
    several: bool,
    hear: Callable[[str, float], None] | None = None,
) -> bool:
    """Show a job's states and log lines until it ends, and AWS's rules on it until they do.

    Args:
        account: that it runs in.
        job: its ``description`` is kept up to date.
        leave: set by whoever wants this to return early.
        several: whether lines need the job's number.
        hear: is given each line that the run wrote, and how many seconds after its first one.

    Returns:
        whether the job has ended.
    """
    prefix = f"[{job.number}] " if several else ""
    states, lines, rules = _States(prefix), _Lines(account, job.name, prefix, hear), RuleStates(prefix)

    def step() -> tuple[bool, bool]:
        described = describe(account, job.name)
        job.description = {key: described[key] for key in KEPT if key in described}
        changed = [states.show(described), rules.show(described), lines.show()]
        return job.description["TrainingJobStatus"] in ENDED and not rules.outlast(), any(changed)

    local = answered_here(account)
    ended = wait_until(step, leave, local=local)
    if ended and not local:
        leave.wait(_LATE)
        lines.show()
    return ended


def epoch_scores(line: str) -> tuple[int, dict[str, float]] | None:
    """The epoch, counted from 1, and its scores that a line of a run's log tells; ``None`` for other lines."""
    found = _EPOCH.fullmatch(line.strip())
    if not found:
        return None
    pairs = (pair.partition("=") for pair in found[2].split())
    return int(found[1]), {name: float(value) for name, _, value in pairs}


class _States:
    """Tells each secondary status once, in order: between two questions there may have been several."""

    def __init__(self, prefix: str) -> None:
        self._prefix, self._told = prefix, 0

    def show(self, described: dict[str, Any]) -> bool:
        transitions = described.get("SecondaryStatusTransitions") or []
        for transition in transitions[self._told :]:
            message = transition.get("StatusMessage") or ""
            log.info("%s%s%s", self._prefix, transition["Status"], f": {message}" if message else "")
        changed = len(transitions) > self._told
        self._told = len(transitions)
        return changed


class _Lines:
    """The lines that the run itself wrote; the toolkit's own, some two hundred, are left to the console."""

    def __init__(self, account: "Account", name: str, prefix: str, hear: Callable[[str, float], None] | None) -> None:
        self._account, self._name, self._prefix, self._hear = account, name, prefix, hear
        self._first: int | None = None  # when the run wrote its first line, in milliseconds
        self._streams: dict[str, tuple[str | None, _Preamble]] = {}
        self._told = False

    def show(self) -> bool:
        """Show what is new; returns whether anything was. A log that cannot be read is no reason to leave the job."""
        try:
            with answered_by_aws(f"reading the log of {self._name}"):
                found = [self._show_stream(stream) for stream in self._names()]
        except BinCounterError as error:
            if not self._told:
                log.warning("The log cannot be shown: %s", error)
            self._told = True
            return False
        return any(found)

    def _names(self) -> list[str]:
        logs = self._account.logs
        try:
            pages = logs.get_paginator("describe_log_streams").paginate(
                logGroupName=LOG_GROUP, logStreamNamePrefix=f"{self._name}/"
            )
            return sorted(stream["logStreamName"] for page in pages for stream in page["logStreams"])
        except logs.exceptions.ResourceNotFoundException:  # nothing was logged yet
            return []

    def _show_stream(self, stream: str) -> bool:
        token, preamble = self._streams.get(stream, (None, _Preamble()))
        before = token
        instance = re.search(r"/(algo-\d+)", stream)
        prefix = self._prefix if not instance or instance[1] == "algo-1" else f"{self._prefix}{instance[1]}: "
        while True:
            position: dict[str, Any] = {"nextToken": token} if token else {}
            page = self._account.logs.get_log_events(
                logGroupName=LOG_GROUP, logStreamName=stream, startFromHead=True, **position
            )
            for event in page["events"]:
                if preamble.lets_through(event["message"]):
                    log.info("%s%s", prefix, event["message"].rstrip())
                    self._first = event["timestamp"] if self._first is None else self._first
                    if self._hear is not None:
                        self._hear(event["message"], (event["timestamp"] - self._first) / 1000)
            if page["nextForwardToken"] == token:  # so CloudWatch says that this was all
                break
            token = page["nextForwardToken"]
        self._streams[stream] = (token, preamble)
        return token != before


class _Preamble:
    """Leaves out what the toolkit writes before and after the run's own output, in every attempt anew."""

    # How a run ends on screen; once it is fetched, it lies elsewhere.
    _FOLDER_OVER_THERE = re.compile(r"(Report: )?/\S*/checkpoints(/[^/\s]+)?(/report\.html)?")

    def __init__(self) -> None:
        self._command_follows = self._shown = False

    def lets_through(self, line: str) -> bool:
        if "sagemaker-training-toolkit" in line:
            if "Reporting training" in line or "Invoking user script" in line:
                self._shown = False
            return False
        if line.startswith("Invoking script with the following command"):
            self._command_follows = True
            return False
        if self._command_follows and line.strip():
            self._command_follows, self._shown = False, True
            return False
        return self._shown and bool(line.strip()) and not self._FOLDER_OVER_THERE.fullmatch(line.strip())
