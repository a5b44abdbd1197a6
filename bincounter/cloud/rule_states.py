"""What AWS's rules say of a job: each change of a rule's status, on the screen."""

import logging
import time
from typing import Any

log = logging.getLogger(__name__)

STATUSES = ("DebugRuleEvaluationStatuses", "ProfilerRuleEvaluationStatuses")
"""Where DescribeTrainingJob tells them."""

AFTER_THE_JOB = 600.0
"""Seconds that rules are waited for when the job has ended: a report is made from all of it, which takes minutes."""

_AT_WORK = ("InProgress", "Stopping")
_TO_BE_READ = ("IssuesFound", "Error")


class RuleStates:
    """Tells each status of each rule once.

    Args:
        prefix: of its lines.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._told: dict[tuple[str, str], str] = {}
        self._ended: float | None = None  # when the job had first ended

    def show(self, described: dict[str, Any]) -> bool:
        """Show what is new in an answer of DescribeTrainingJob; returns whether anything was."""
        before = dict(self._told)
        for kind in STATUSES:
            for rule in described.get(kind) or ():
                name, status = rule.get("RuleConfigurationName", "?"), rule.get("RuleEvaluationStatus", "?")
                if self._told.get((kind, name)) != status:
                    self._told[kind, name] = status
                    self._tell(name, status, " ".join((rule.get("StatusDetails") or "").split()))
        return self._told != before

    def _tell(self, name: str, status: str, details: str) -> None:
        level = logging.WARNING if status in _TO_BE_READ else logging.INFO
        log.log(level, "%srule %s: %s%s", self._prefix, name, status, f": {details}" if details else "")

    def outlast(self) -> bool:
        """Whether rules of a job that has ended are still at work, and worth waiting for."""
        at_work = sorted(name for (_, name), status in self._told.items() if status in _AT_WORK)
        if not at_work:
            return False
        if self._ended is None:
            self._ended = time.monotonic()
            log.info("%sThe job has ended, and is paid for no longer; still at work: %s", self._prefix, _rules(at_work))
        if time.monotonic() - self._ended < AFTER_THE_JOB:
            return True
        log.warning(
            "%s%s did not come to an end in %.0f minutes: attach again later for what they find",
            self._prefix,
            _rules(at_work),
            AFTER_THE_JOB / 60,
        )
        return False


def _rules(names: list[str]) -> str:
    return f"rule{'s' if len(names) > 1 else ''} {', '.join(names)}"
