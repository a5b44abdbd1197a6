"""AWS Debugger and Profiler: their members of CreateTrainingJob, and the states of their rules.

Only ``debugger=smdebug`` and ``profiler.sagemaker_interval`` use them; all other rules and profilers run inside the
container. AWS puts output below the folder of all jobs: ``<job>/debug-output``,
``<job>/profiler-output`` and ``<job>/rule-output/<rule>``.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

from bincounter.cloud.instances import rules_image
from bincounter.smdebug.settings import DEBUG_RULES, hook_config

log = logging.getLogger(__name__)

RULE_STATUS_KEYS = ("DebugRuleEvaluationStatuses", "ProfilerRuleEvaluationStatuses")
"""Members of DescribeTrainingJob with the states of rules."""

RULES_TIMEOUT = 600.0
"""Seconds to wait for rules after the end of the job: a report covers all of it and takes minutes."""

_IN_PROGRESS = ("InProgress", "Stopping")
_WARNINGS = ("IssuesFound", "Error")


def inspection_request(
    debugger: Mapping[str, Any], profiler: Mapping[str, Any], *, folder_uri: str, region: str
) -> dict[str, Any]:
    """Make the members of CreateTrainingJob for the settings; empty where neither is used.

    Args:
        debugger: the settings as plain containers.
        profiler: the settings as plain containers.
        folder_uri: ``s3://`` folder under which SageMaker keeps a folder for each job.
        region: of the job.

    Raises:
        ConfigError: AWS has no rules in the region.
    """
    members: dict[str, Any] = {}
    if debugger.get("kind") == "smdebug":
        # Without a LocalPath, tensors are saved in a folder of AWS's, which is copied to S3 all the time.
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
    """Configure a built-in rule; without an instance type it runs on AWS's machines, and is free."""
    return {
        "RuleConfigurationName": name,
        "RuleEvaluatorImage": rules_image(region),
        "RuleParameters": {"rule_to_invoke": invoke, **{key: str(value) for key, value in parameters.items()}},
    }


class RuleStates:
    """Log each status of each rule once.

    Args:
        prefix: of its lines.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._states: dict[tuple[str, str], str] = {}
        self._ended: float | None = None  # time when the end of the job was first seen

    def show(self, described: dict[str, Any]) -> bool:
        """Log new states in a DescribeTrainingJob; return whether there were any."""
        before = dict(self._states)
        for kind in RULE_STATUS_KEYS:
            for rule in described.get(kind) or ():
                name, status = rule.get("RuleConfigurationName", "?"), rule.get("RuleEvaluationStatus", "?")
                if self._states.get((kind, name)) != status:
                    self._states[kind, name] = status
                    level = logging.WARNING if status in _WARNINGS else logging.INFO
                    details = " ".join((rule.get("StatusDetails") or "").split())
                    log.log(level, "%srule %s: %s%s", self._prefix, name, status, f": {details}" if details else "")
        return self._states != before

    def outlast(self) -> bool:
        """Return True if to wait for rules of a job that has ended."""
        running = sorted(name for (_, name), status in self._states.items() if status in _IN_PROGRESS)
        if not running:
            return False
        if self._ended is None:
            self._ended = time.monotonic()
            log.info("%sThe job has ended, and is no longer billed; still running: %s", self._prefix, _rules(running))
        if time.monotonic() - self._ended < RULES_TIMEOUT:
            return True
        log.warning(
            "%s%s did not end in %.0f minutes: attach again later for their results",
            self._prefix,
            _rules(running),
            RULES_TIMEOUT / 60,
        )
        return False


def _rules(names: list[str]) -> str:
    return f"rule{'s' if len(names) > 1 else ''} {', '.join(names)}"
