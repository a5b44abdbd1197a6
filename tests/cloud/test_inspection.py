"""debugger= and profiler= on SageMaker: what the request asks of AWS, and how what AWS answers comes back."""

import json
from typing import Any

import pytest
import smdebug_rulesconfig  # type: ignore[import-untyped]
from commands import REPOSITORY, Run

from bincounter.cloud.api_shapes import check_request
from bincounter.cloud.code_archive import pinned_requirements
from bincounter.smdebug.settings import COLLECTIONS, DEBUG_RULES, PROFILER_RULES

ROLE = "launcher.role=arn:aws:iam::123456789012:role/bincounter"
DRY = ["launcher=sagemaker_spot", "launcher.region=eu-west-1", "launcher.bucket=my-bucket", ROLE, "dry_run=true"]
BINS = ["data=s3", "data.source=s3://my-bucket/bins"]
OWN_IMAGE = ["launcher.image=mine:1", "launcher.image_has_smdebug=true"]
PROFILED = ["profiler=simple", "profiler.sagemaker_interval=500"]
RULES_IMAGE = "929884845733.dkr.ecr.eu-west-1.amazonaws.com/sagemaker-debugger-rules:latest"
OFFLINE = {
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def requested(train: Run, *overrides: str) -> dict[str, Any]:
    """The request that a dry run prints."""
    out = train(*DRY, *BINS, *overrides, **OFFLINE).stdout
    return json.loads(out[out.index("{") :])


def test_smdebug_becomes_a_hook_and_rules_in_the_request(train: Run) -> None:
    made = requested(
        train,
        *OWN_IMAGE,
        "debugger=smdebug",
        "debugger.save_interval.train=100",
        "debugger.include_regex=[relu_output]",
        "debugger.sagemaker_rules=[loss_not_decreasing,overfit,dead_relu]",
        "debugger.sagemaker_parameters.overfit.patience=3",
    )
    hook = made["DebugHookConfig"]
    assert hook["S3OutputPath"] == "s3://my-bucket/bincounter/jobs" == made["OutputDataConfig"]["S3OutputPath"]
    assert "LocalPath" not in hook
    assert hook["HookParameters"] == {
        "train.save_interval": "100",
        "eval.save_interval": "10",
        "predict.save_interval": "10",
        "include_regex": "relu_output",
    }
    assert [each["CollectionName"] for each in hook["CollectionConfigurations"]] == list(COLLECTIONS)
    assert made["DebugRuleConfigurations"] == [
        {
            "RuleConfigurationName": name,
            "RuleEvaluatorImage": RULES_IMAGE,
            "RuleParameters": {"rule_to_invoke": invoke, **parameters},
        }
        for name, invoke, parameters in (
            ("loss_not_decreasing", "LossNotDecreasing", {}),
            ("overfit", "Overfit", {"patience": "3"}),
            ("dead_relu", "DeadRelu", {}),
        )
    ]
    assert "ProfilerConfig" not in made
    assert made["HyperParameters"]["debugger"] == "smdebug"
    check_request(made, "CreateTrainingJob")


def test_profiler_interval_requests_samples_and_a_report(train: Run) -> None:
    made = requested(train, "debugger=tensors", *PROFILED)
    assert made["ProfilerConfig"] == {
        "S3OutputPath": "s3://my-bucket/bincounter/jobs",
        "ProfilingIntervalInMilliseconds": 500,
    }
    (rule,) = made["ProfilerRuleConfigurations"]
    assert rule["RuleConfigurationName"] == rule["RuleParameters"]["rule_to_invoke"] == "ProfilerReport"
    assert rule["RuleEvaluatorImage"] == RULES_IMAGE
    assert not {"DebugHookConfig", "DebugRuleConfigurations"} & made.keys()


def test_what_watches_a_run_by_itself_asks_nothing_of_aws(train: Run) -> None:
    made = requested(train, "debugger=tensors", "profiler=pytorch")
    assert not {name for name in made if name.startswith(("Debug", "Profiler"))}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["debugger=smdebug"], "use debugger=tensors, which runs everywhere, or launcher.image=URI"),
        (["debugger=smdebug", "launcher.image_has_smdebug=true"], "AWS's image of PyTorch 2.14 cannot run smdebug"),
        (["debugger=smdebug", "launcher.image=mine:1"], "set launcher.image_has_smdebug=true if it has them"),
        (["debugger=smdebug", *OWN_IMAGE, "launcher.region=ca-west-1"], "ca-west-1 has none of AWS's rules"),
        (["debugger=smdebug", *OWN_IMAGE, f"debugger.include_regex=[{'a' * 300}]"], "debugger.include_regex="),
        (["profiler=simple", "profiler.sagemaker_interval=300"], "profiler.sagemaker_interval=300 is not one of 100, "),
        (
            ["profiler=simple", "profiler.sagemaker_rules=[Dataloader]"],
            "profiler.sagemaker_rules=Dataloader is not one of ProfilerReport, ",
        ),
        (
            ["hparams_search=sagemaker_tuner", *PROFILED, "launcher.max_cost_usd=1000"],
            "profiler.sagemaker_interval is not available to the trials of a tuning job",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_line(overrides: list[str], sentence: str, train: Run) -> None:
    done = train(*DRY, *BINS, *overrides, code=2, **OFFLINE)
    assert sentence in done.stderr.splitlines()[-1]
    assert "{" not in done.stdout


def test_names_of_rules_are_those_that_aws_has() -> None:
    for name, rule in DEBUG_RULES.items():
        theirs = getattr(smdebug_rulesconfig, name)()["DebugRuleConfiguration"]["RuleParameters"]
        assert theirs["rule_to_invoke"] == rule.invoke
    for name in PROFILER_RULES:
        assert getattr(smdebug_rulesconfig, name)().rule_parameters["rule_to_invoke"] == name


def test_a_job_with_smdebug_keeps_the_numpy_of_its_image() -> None:
    pyproject = REPOSITORY / "pyproject.toml"
    ours, theirs = (
        set(pinned_requirements(pyproject, ("csv",), smdebug=smdebug).splitlines()) for smdebug in (False, True)
    )
    assert {line.partition("==")[0] for line in ours - theirs} <= {"numpy", "protobuf"}
    assert "numpy" in {line.partition("==")[0] for line in ours - theirs}
