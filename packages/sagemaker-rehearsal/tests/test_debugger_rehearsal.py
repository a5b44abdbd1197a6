"""SageMaker Debugger in a rehearsal: its hook's files are moved as on AWS, its rules are not evaluated."""

import json
from textwrap import dedent
from typing import Any

import pytest
from botocore.exceptions import ClientError
from rehearsed import Account, request

from sagemaker_rehearsal import BUCKET

JOBS = f"s3://{BUCKET}/jobs"
HOOK = {"S3OutputPath": JOBS, "HookParameters": {"train.save_interval": "2"}}
PROFILER = {"S3OutputPath": JOBS, "ProfilingIntervalInMilliseconds": 500}


def rules(*names: str) -> list[dict[str, str]]:
    return [{"RuleConfigurationName": name, "RuleEvaluatorImage": "theirs"} for name in names]


INSPECTED: dict[str, Any] = {
    "DebugHookConfig": HOOK,
    "DebugRuleConfigurations": rules("overfit", "exploding_tensor"),
    "ProfilerConfig": PROFILER,
    "ProfilerRuleConfigurations": rules("ProfilerReport"),
}
SAVES = dedent("""
    import os, pathlib
    base = pathlib.Path(os.environ["SAGEMAKER_BASE_DIR"])
    print((base / "input/config/debughookconfig.json").read_text())
    (base / "output/tensors/events").mkdir(parents=True)
    (base / "output/tensors/events/one").write_text("tensors")
    (base / "checkpoints/config.yaml").write_text("seed: 0")
""")


def test_hook_is_configured_and_rules_are_not_evaluated(
    account: Account,
) -> None:
    account.submit("hooked", SAVES, **INSPECTED)
    ended = account.end("hooked")
    assert ended["TrainingJobStatus"] == "Completed"
    assert {name: ended[name] for name in INSPECTED} == INSPECTED
    (given,) = [json.loads(line) for line in account.log("hooked") if line.startswith('{"S3OutputPath"')]
    assert given.pop("LocalPath").endswith("/output/tensors")
    assert given == HOOK
    assert account.keys("jobs/hooked/debug-output/") == {"events/one", "training_job_end.ts"}
    statuses = [*ended["DebugRuleEvaluationStatuses"], *ended["ProfilerRuleEvaluationStatuses"]]
    assert [each["RuleConfigurationName"] for each in statuses] == ["overfit", "exploding_tensor", "ProfilerReport"]
    assert {each["RuleEvaluationStatus"] for each in statuses} == {"Error"}
    assert {each["StatusDetails"] for each in statuses} == {
        "The rehearsal has none of AWS's rules: nothing was evaluated."
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ProfilerRuleConfigurations": rules("overfit", "overfit")}, "must be unique"),
        ({**INSPECTED, "ProfilerRuleConfigurations": rules("overfit")}, "must be unique"),
        ({"ProfilerConfig": {**PROFILER, "ProfilingIntervalInMilliseconds": 300}}, "must be one of"),
        ({"DebugHookConfig": {**HOOK, "LocalPath": "/opt/ml/checkpoints/tensors"}}, "paths of a DebugHookConfig"),
    ],
)
def test_a_wrong_debugger_request_is_refused(account: Account, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ClientError, match=message):
        account.sagemaker.create_training_job(**request("refused", **changes))
