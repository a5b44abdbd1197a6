"""AWS Debugger and Profiler: their parts of CreateTrainingJob, their rule states on screen.

``debugger=smdebug`` and ``profiler.sagemaker_interval`` alone ask for it; whatever else watches a run does so inside
the container. Output goes where AWS puts it below the folder of all jobs: ``<job>/debug-output``,
``<job>/profiler-output`` and ``<job>/rule-output/<rule>``.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

from bincounter.cloud.instances import rules_image
from bincounter.smdebug.settings import DEBUG_RULES, hook_config

log = logging.getLogger(__name__)

STATUSES = ("DebugRuleEvaluationStatuses", "ProfilerRuleEvaluationStatuses")
"""Where DescribeTrainingJob tells them."""

AFTER_THE_JOB = 600.0
"""Seconds that rules are waited for when the job has ended: a report is made from all of it, which takes minutes."""

_AT_WORK = ("InProgress", "Stopping")
_TO_BE_READ = ("IssuesFound", "Error")


def inspection_request(
    debugger: Mapping[str, Any], profiler: Mapping[str, Any], *, folder_uri: str, region: str
) -> dict[str, Any]:
    """The members of CreateTrainingJob that the settings stand for; none where nothing is asked of AWS.

    Args:
        debugger: the settings as plain containers.
        profiler: the same.
        folder_uri: ``s3://`` folder under which SageMaker keeps a folder for each job.
        region: of the job.

    Raises:
        ConfigError: AWS has no rules in the region.
    """
    members: dict[str, Any] = {}
    if debugger.get("kind") == "smdebug":
        # Without a LocalPath, tensors are saved in a folder of AWS's own, which goes to S3 as they come.
        members["DebugHookConfig"] = {"S3OutputPath": folder_uri, **hook_config(debugger)}
        parameters = debugger["sagemaker_parameters"]
        members["DebugRuleConfigurations"] = [
            _rule(name, DEBUG_RULES[name].invoke, parameters.get(name, {}), region)
            for name in debugger["sagemaker_rules"]
        ]
    if profiler.get("sagemaker_interval") is not None:
        members["ProfilerConfig"] = {
            "S3OutputPath": folder_uri,
            "ProfilingIntervalInMilliseconds": profiler["sagemaker_interval"],
        }
        members["ProfilerRuleConfigurations"] = [_rule(name, name, {}, region) for name in profiler["sagemaker_rules"]]
    return {name: member for name, member in members.items() if member}


def _rule(name: str, invoke: str, parameters: Mapping[str, Any], region: str) -> dict[str, Any]:
    """Without an instance of its own a built-in rule is AWS's, and free."""
    return {
        "RuleConfigurationName": name,
        "RuleEvaluatorImage": rules_image(region),
        "RuleParameters": {"rule_to_invoke": invoke, **{key: str(value) for key, value in parameters.items()}},
    }


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
                    level = logging.WARNING if status in _TO_BE_READ else logging.INFO
                    details = " ".join((rule.get("StatusDetails") or "").split())
                    log.log(level, "%srule %s: %s%s", self._prefix, name, status, f": {details}" if details else "")
        return self._told != before

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
