"""SageMaker Debugger in a rehearsal: its hook's files are moved as on AWS, its rules are not evaluated."""

import json
from typing import Any

import pytest
from botocore.exceptions import ClientError
from rehearsed import HOOK, INSPECTED, PROFILER, SAVES, Account, request, rules


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
