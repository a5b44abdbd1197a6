"""State and log of a running job; epoch scores from its log lines."""

import logging
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bincounter.cloud.aws_errors import translate_errors
from bincounter.cloud.debugger_rules import RULE_STATUS_KEYS, RuleStates
from bincounter.cloud.jobs import ENDED_STATUSES, Job, describe, is_local_endpoint
from bincounter.cloud.polling import wait_until
from bincounter.errors import BinCounterError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

log = logging.getLogger(__name__)

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
_EPOCH = re.compile(r"epoch (\d+) of \d+: (.+)")  # see bincounter.training.logs.TrainingLog
_LATE = 2.0  # seconds that CloudWatch may be behind
KEPT_MEMBERS = (
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
    # Output of AWS's Debugger and Profiler: where it is, and the states of their rules.
    "OutputDataConfig",
    "DebugHookConfig",
    "ProfilerConfig",
    *RULE_STATUS_KEYS,
)


def follow_job(
    account: "Account",
    job: Job,
    leave: threading.Event,
    *,
    several: bool,
    on_line: Callable[[str, float], None] | None = None,
) -> bool:
    """Log a job's states and log lines until it ends, and the states of AWS's rules until they end.

    Args:
        account: that it runs in.
        job: its ``description`` is updated.
        leave: set it to return early.
        several: prefix lines with the job's number.
        on_line: called with each line of the run, and its seconds since the first one.

    Returns:
        whether the job has ended.
    """
    prefix = f"[{job.number}] " if several else ""
    states, lines, rules = _States(prefix), _Lines(account, job.name, prefix, on_line), RuleStates(prefix)

    def step() -> tuple[bool, bool]:
        described = describe(account, job.name)
        job.description = {key: described[key] for key in KEPT_MEMBERS if key in described}
        changed = [states.show(described), rules.show(described), lines.show()]
        return job.description["TrainingJobStatus"] in ENDED_STATUSES and not rules.outlast(), any(changed)

    local = is_local_endpoint(account)
    ended = wait_until(step, leave, local=local)
    if ended and not local:
        leave.wait(_LATE)
        lines.show()
    return ended


def epoch_scores(line: str) -> tuple[int, dict[str, float]] | None:
    """Parse the log line that ends an epoch: the epoch, from 1, and its scores; ``None`` for other lines."""
    found = _EPOCH.fullmatch(line.strip())
    if not found:
        return None
    pairs = (pair.partition("=") for pair in found[2].split())
    return int(found[1]), {name: float(value) for name, _, value in pairs}


class _States:
    """Log each secondary status once, in order: there may be several between two requests."""

    def __init__(self, prefix: str) -> None:
        self._prefix, self._logged = prefix, 0

    def show(self, described: dict[str, Any]) -> bool:
        transitions = described.get("SecondaryStatusTransitions") or []
        for transition in transitions[self._logged :]:
            message = transition.get("StatusMessage") or ""
            log.info("%s%s%s", self._prefix, transition["Status"], f": {message}" if message else "")
        changed = len(transitions) > self._logged
        self._logged = len(transitions)
        return changed


class _Lines:
    """Log the lines of the run itself, without the two hundred or so of SageMaker's toolkit."""

    def __init__(
        self, account: "Account", name: str, prefix: str, on_line: Callable[[str, float], None] | None
    ) -> None:
        self._account, self._name, self._prefix, self._on_line = account, name, prefix, on_line
        self._first: int | None = None  # time of the run's first line, in milliseconds
        self._streams: dict[str, tuple[str | None, _Preamble]] = {}
        self._logged = False

    def show(self) -> bool:
        """Log new lines; return whether there were any. A log that cannot be read does not end the wait."""
        try:
            with translate_errors(f"reading the log of {self._name}"):
                found = [self._show_stream(stream) for stream in self._names()]
        except BinCounterError as error:
            if not self._logged:
                log.warning("The log cannot be read: %s", error)
            self._logged = True
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
                    if self._on_line is not None:
                        self._on_line(event["message"], (event["timestamp"] - self._first) / 1000)
            if page["nextForwardToken"] == token:  # CloudWatch's sign for the last page
                break
            token = page["nextForwardToken"]
        self._streams[stream] = (token, preamble)
        return token != before


class _Preamble:
    """Skip the lines of the toolkit before and after the run's own output, in each attempt."""

    # The last lines of a run name its folder in the container.
    _CONTAINER_FOLDER = re.compile(r"(Report: )?/\S*/checkpoints(/[^/\s]+)?(/report\.html)?")

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
        return self._shown and bool(line.strip()) and not self._CONTAINER_FOLDER.fullmatch(line.strip())
