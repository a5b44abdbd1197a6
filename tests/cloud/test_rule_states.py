"""States and files of AWS's rules and hook of a job, followed and fetched."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from aws_faults import faults
from commands import Run
from rehearsed import INSPECTED, JOBS, SAVES, Account

from bincounter.cloud import debugger_rules
from bincounter.cloud.jobs import Job


def recorded(name: str, folder: Path) -> Path:
    """The folder of a run whose job this machine knows."""
    folder.mkdir()
    Job(name, 0, folder, "us-east-1", f"{JOBS}/{name}/checkpoints", [], 1.0, rehearsed=True).save()
    return folder


def test_rules_are_followed_after_the_job_and_their_output_is_fetched(
    account: Account, plane: dict[str, str], run: Run, tmp_path: Path
) -> None:
    folder = recorded("watched", tmp_path / "run")
    account.submit("watched", SAVES, **INSPECTED)
    account.put("jobs/watched/rule-output/overfit/found.json", b"{}")
    account.put("jobs/watched/rule-output/ProfilerReport/profiler-output/profiler-report.html", b"<html>")
    account.put("jobs/watched/profiler-output/system/1.json", b"{}")
    after = [("InProgress", "InProgress"), ("IssuesFound", "InProgress"), ("IssuesFound", "NoIssuesFound")]

    def change(described: dict[str, Any]) -> dict[str, Any]:
        """While the job runs rules are at work; then they end one after the other."""
        overfit, report = ("InProgress", "InProgress")
        if described["TrainingJobStatus"] == "Completed":
            overfit, report = after.pop(0) if len(after) > 1 else after[0]
        details = "RuleEvaluationConditionMet: condition met\nat step 3"
        debug = [status("overfit", overfit, details if overfit == "IssuesFound" else None)]
        return {
            **described,
            "DebugRuleEvaluationStatuses": [*debug, status("exploding_tensor", "Stopped")],
            "ProfilerRuleEvaluationStatuses": [status("ProfilerReport", report)],
        }

    with faults(plane["AWS_ENDPOINT_URL"]) as server:
        server.change("DescribeTrainingJob", change)
        told = run("-m", "bincounter", "attach", str(folder), **{**plane, "AWS_ENDPOINT_URL": server.endpoint}).stderr

    lines = [line for line in told.splitlines() if line.startswith(("rule ", "The job has ended"))]
    assert lines == [
        "rule overfit: InProgress",
        "rule exploding_tensor: Stopped",
        "rule ProfilerReport: InProgress",
        "The job has ended, and is no longer billed; still running: rules ProfilerReport, overfit",
        "rule overfit: IssuesFound: RuleEvaluationConditionMet: condition met at step 3",
        "rule ProfilerReport: NoIssuesFound",
    ]
    description = json.loads((folder / "job.json").read_text())["description"]
    assert description["DebugRuleEvaluationStatuses"][0]["RuleEvaluationStatus"] == "IssuesFound"
    assert description["ProfilerRuleEvaluationStatuses"][0]["RuleEvaluationStatus"] == "NoIssuesFound"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        ".lock",
        "job.json",
        "config.yaml",
        "debugger/smdebug/events/one",
        "debugger/smdebug/training_job_end.ts",
        "debugger/aws/overfit/found.json",
        "profile/aws/ProfilerReport/profiler-output/profiler-report.html",
        "profile/aws/profiler-output/system/1.json",
    }


def status(name: str, said: str, details: str | None = None) -> dict[str, Any]:
    told = {"RuleConfigurationName": name, "RuleEvaluationStatus": said, "LastModifiedTime": time.time()}
    return told if details is None else {**told, "StatusDetails": details}


def test_image_without_smdebug_fails_the_job_with_the_reason(train: Run, plane: dict[str, str], tmp_path: Path) -> None:
    """A rehearsed job is run by the Python of the tests, which has no smdebug."""
    options = ["launcher=sagemaker_spot", "launcher.role=arn:aws:iam::123456789012:role/rehearsal", "experiment=demo"]
    options += ["launcher.image=mine:1", "launcher.image_has_smdebug=true", "debugger=smdebug", "trainer=cpu"]
    options += ["profiler=simple", "profiler.sagemaker_interval=500", f"paths.output_dir={tmp_path / 'run'}"]
    done = train(*options, code=1, **plane)
    assert "smdebug is not installed here" in done.stderr.splitlines()[-1]
    assert "rule vanishing_gradient: Error: The rehearsal has none of AWS's rules" in done.stderr
    description = json.loads((tmp_path / "run" / "job.json").read_text())["description"]
    assert len(description["DebugRuleEvaluationStatuses"]) == 5
    assert len(description["ProfilerRuleEvaluationStatuses"]) == 1


def test_rules_are_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(debugger_rules, "RULES_TIMEOUT", 0.0)
    states = debugger_rules.RuleStates("[2] ")
    assert states.show({"ProfilerRuleEvaluationStatuses": [status("ProfilerReport", "InProgress")]})
    assert not states.outlast()
    assert "[2] rule ProfilerReport did not end in 0 minutes: attach again later" in caplog.text
