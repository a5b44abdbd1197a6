"""The rehearsal's tuning jobs, driven with boto3 alone and with tiny programs in place of a training."""

import re
import time
from itertools import product
from textwrap import dedent
from typing import Any

import pytest
from botocore.exceptions import ClientError
from rehearsed import ENDED, Account, tuning

LR = {"Name": "lr", "MinValue": "0.0001", "MaxValue": "0.1", "ScalingType": "Logarithmic"}
EPOCHS = {"Name": "max_epochs", "MinValue": "1", "MaxValue": "5", "ScalingType": "Linear"}
SIZES = {"Name": "size", "Values": ["32", "64"]}
MODELS = {"Name": "model", "Values": ["cnn", '["resnet18"]']}
ALL: dict[str, list[dict[str, Any]]] = {
    "ContinuousParameterRanges": [LR],
    "IntegerParameterRanges": [EPOCHS],
    "CategoricalParameterRanges": [SIZES],
}

TRIAL = """
import json, os, pathlib, sys, time
base = pathlib.Path(os.environ["SAGEMAKER_BASE_DIR"])
given = json.loads((base / "input/config/hyperparameters.json").read_text())
name = os.environ["TRAINING_JOB_NAME"]
number = int(name.split("-")[-2])
"""


def tune(account: Account, name: str, program: str, *args: Any, **changes: Any) -> None:
    account.ship(name, TRIAL + dedent(program))
    account.sagemaker.create_hyper_parameter_tuning_job(**tuning(name, *args, **changes))


def describe(account: Account, name: str) -> dict[str, Any]:
    return account.sagemaker.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)


def end(account: Account, name: str) -> dict[str, Any]:
    deadline = time.monotonic() + 100
    while (description := describe(account, name))["HyperParameterTuningJobStatus"] not in ENDED:
        assert time.monotonic() < deadline, description
        time.sleep(0.1)
    return description


def trials(account: Account, name: str, **filters: Any) -> list[dict[str, Any]]:
    pages = account.sagemaker.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job").paginate(
        HyperParameterTuningJobName=name, PaginationConfig={"PageSize": 2}, **filters
    )
    return [trial for page in pages for trial in page["TrainingJobSummaries"]]


def value(trial: dict[str, Any]) -> float:
    return trial["FinalHyperParameterTuningJobObjectiveMetric"]["Value"]


def counted(description: dict[str, Any]) -> dict[str, int]:
    counters = description["TrainingJobStatusCounters"]
    return {name: number for name, number in counters.items() if number}


def test_random_trials_of_which_some_fail(account: Account) -> None:
    program = """
        assert sys.argv[1::2] == ["--lr", "--max_epochs", "--size"], sys.argv
        print("told", os.environ["ASKED"])
        print(f"epoch 1 of 1: val/accuracy={given['lr']}")
        if given["size"] == "64":
            (base / "output/failure").write_text("64 is too much")
            sys.exit(1)
        time.sleep(0.5)
    """
    tune(account, "random", program, "Random", ALL, 5, Environment={"ASKED": "yes"})
    started = describe(account, "random")
    assert started["HyperParameterTuningJobStatus"] == "InProgress"
    assert "HyperParameterTuningEndTime" not in started
    ended = end(account, "random")
    found = trials(account, "random")

    assert [re.sub("[0-9a-f]{8}$", "HEX", trial["TrainingJobName"]) for trial in found] == [
        f"random-{number:03d}-HEX" for number in range(1, 6)
    ]
    failed = [trial for trial in found if trial["TunedHyperParameters"]["size"] == "64"]
    assert 1 <= len(failed) < 5
    assert ended["HyperParameterTuningJobStatus"] == "Completed"
    assert counted(ended) == {"Completed": 5 - len(failed), "NonRetryableError": len(failed)}
    assert ended["ObjectiveStatusCounters"] == {"Succeeded": 5 - len(failed), "Pending": 0, "Failed": len(failed)}
    for trial in failed:
        assert trial["FailureReason"] == "AlgorithmError: 64 is too much, exit code: 1"
        assert trial["ObjectiveStatus"] == "Failed"
        assert "FinalHyperParameterTuningJobObjectiveMetric" not in trial

    best = max((trial for trial in found if trial not in failed), key=value)
    assert ended["BestTrainingJob"] == best
    assert value(best) == pytest.approx(float(best["TunedHyperParameters"]["lr"]))
    assert best["CreationTime"] <= best["TrainingStartTime"] < best["TrainingEndTime"]
    for trial in found:
        tuned = trial["TunedHyperParameters"]
        assert 1e-4 <= float(tuned["lr"]) <= 0.1
        assert re.fullmatch(r"0\.\d+", tuned["lr"])
        assert int(tuned["max_epochs"]) in range(1, 6)
    job = account.describe(best["TrainingJobName"])
    assert job["TuningJobArn"] == ended["HyperParameterTuningJobArn"]
    static = ended["TrainingJobDefinition"]["StaticHyperParameters"]
    objective = {"_tuning_objective_metric": "val/accuracy"}
    assert job["HyperParameters"] == {**static, **best["TunedHyperParameters"], **objective}
    assert "told yes" in account.log(best["TrainingJobName"])
    moments = [(trial["CreationTime"], 1) for trial in found] + [(trial["TrainingEndTime"], -1) for trial in found]
    at_once = [sum(change for moment, change in moments if moment <= until) for until, _ in moments]
    assert max(at_once) == 2

    assert trials(account, "random", StatusEquals="Failed", SortOrder="Descending") == failed[::-1]
    ordered = trials(account, "random", SortBy="FinalObjectiveMetricValue")
    assert [value(trial) for trial in ordered] == sorted(value(trial) for trial in found if trial not in failed)


def test_a_grid_tries_every_combination_once_and_the_last_value_counts(account: Account) -> None:
    program = """
        loss = 4.0 - number if number < 4 else 9.0
        print(f"val/accuracy=0.0 \\nval/accuracy={loss}\\nval/accuracy=nan")
    """
    ranges = {"CategoricalParameterRanges": [SIZES, MODELS]}
    minimize = {"Type": "Minimize", "MetricName": "val/accuracy"}
    tune(account, "grid", program, "Grid", ranges, None, HyperParameterTuningJobObjective=minimize)
    ended = end(account, "grid")
    tried = [
        (trial["TunedHyperParameters"]["size"], trial["TunedHyperParameters"]["model"])
        for trial in trials(account, "grid")
    ]
    assert tried == list(product(SIZES["Values"], MODELS["Values"]))
    assert value(ended["BestTrainingJob"]) == 1.0
    assert ended["BestTrainingJob"]["TunedHyperParameters"] == {"size": "64", "model": "cnn"}


def test_early_stopping_ends_a_trial_that_promises_little(account: Account) -> None:
    program = """
        print(f"val/accuracy={(0.5, 0.4, 0.7)[number - 1]}")
        time.sleep(100 if number == 2 else 0)
    """
    tune(account, "median", program, "Random", ALL, 3, parallel=1, TrainingJobEarlyStoppingType="Auto")
    ended = end(account, "median")
    found = trials(account, "median")
    assert [trial["TrainingJobStatus"] for trial in found] == ["Completed", "Stopped", "Completed"]
    assert [value(trial) for trial in found] == [0.5, 0.4, 0.7]
    assert ended["BestTrainingJob"] == found[2]


@pytest.mark.parametrize(
    ("name", "program", "reason"),
    [("failing", "sys.exit(1)", "All training jobs failed"), ("silent", "pass", "logged the objective metric val/acc")],
)
def test_without_any_value_the_tuning_job_fails(account: Account, name: str, program: str, reason: str) -> None:
    tune(account, name, program, "Random", ALL, 2)
    ended = end(account, name)
    assert ended["HyperParameterTuningJobStatus"] == "Failed"
    assert reason in ended["FailureReason"]
    assert "BestTrainingJob" not in ended
    assert ended["ObjectiveStatusCounters"] == {"Succeeded": 0, "Pending": 0, "Failed": 2}


def test_a_stopped_tuning_job_stops_its_trials_and_starts_no_more(account: Account) -> None:
    program = """
        (base / "checkpoints" / name).touch()
        time.sleep(100)
    """
    tune(account, "stop-me", program, "Random", ALL, 5)
    account.wait_for_object("tuning/stop-me/checkpoints/stop-me-002")
    account.sagemaker.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName="stop-me")
    assert describe(account, "stop-me")["HyperParameterTuningJobStatus"] in ("Stopping", "Stopped")
    ended = end(account, "stop-me")
    assert ended["HyperParameterTuningJobStatus"] == "Stopped"
    assert counted(ended) == {"Stopped": 2}
    listed = account.sagemaker.list_hyper_parameter_tuning_jobs(NameContains="stop", StatusEquals="Stopped")
    assert [job["HyperParameterTuningJobName"] for job in listed["HyperParameterTuningJobSummaries"]] == ["stop-me"]
    with pytest.raises(ClientError, match="its status is Stopped"):
        account.sagemaker.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName="stop-me")
    with pytest.raises(account.sagemaker.exceptions.ResourceInUse):
        account.sagemaker.create_hyper_parameter_tuning_job(**tuning("STOP-me", "Random", ALL, 1))
    with pytest.raises(account.sagemaker.exceptions.ResourceNotFound):
        describe(account, "never-made")


def test_interrupted_trials_go_on_in_their_own_folders(account: Account) -> None:
    program = """
        last = base / "checkpoints" / name / "last.ckpt"
        resumed = last.exists()
        last.parent.mkdir(exist_ok=True)
        last.write_text(name)
        time.sleep(0 if resumed else 100)
        print("val/accuracy=0.5")
    """
    spot = {
        "EnableManagedSpotTraining": True,
        "StoppingCondition": {"MaxRuntimeInSeconds": 300, "MaxWaitTimeInSeconds": 600},
        "Environment": {"REHEARSAL_INTERRUPTIONS": "0"},
    }
    tune(account, "spot", program, "Random", ALL, 2, **spot)
    assert end(account, "spot")["HyperParameterTuningJobStatus"] == "Completed"
    names = [trial["TrainingJobName"] for trial in trials(account, "spot")]
    assert account.keys("tuning/spot/checkpoints/") == {f"{name}/last.ckpt" for name in names}
    for name in names:
        assert account.get(f"tuning/spot/checkpoints/{name}/last.ckpt") == name.encode()
        assert "Interrupted" in [entry["Status"] for entry in account.describe(name)["SecondaryStatusTransitions"]]


def continuous(**changes: str) -> dict[str, Any]:
    return {"ContinuousParameterRanges": [{**LR, **changes}]}


GRID = {"CategoricalParameterRanges": [SIZES]}


@pytest.mark.parametrize(
    ("strategy", "ranges", "jobs", "changes", "message"),
    [
        ("Random", {}, 2, {}, "holds no range"),
        ("Random", continuous(MinValue="0.1"), 2, {}, "MinValue of lr must be less"),
        ("Random", continuous(MinValue="0"), 2, {}, "Logarithmic scaling of lr needs"),
        ("Random", continuous(MinValue="low"), 2, {}, "bounds of lr must be numbers"),
        ("Random", {"IntegerParameterRanges": [{**EPOCHS, "MaxValue": "2.5"}]}, 2, {}, "max_epochs.*whole numbers"),
        ("Random", {"CategoricalParameterRanges": [{**SIZES, "Values": ["x"] * 31}]}, 2, {}, "values'.*length less"),
        ("Random", {"CategoricalParameterRanges": [SIZES, SIZES]}, 2, {}, "names a hyperparameter twice"),
        (
            "Random",
            {kind: [{**each, "Name": f"{kind}{n}"} for n in range(16)] for kind, (each,) in list(ALL.items())[:2]},
            2,
            {},
            "32 ranges, more than 30",
        ),
        ("Random", {"CategoricalParameterRanges": [{**SIZES, "Name": "sagemaker_program"}]}, 2, {}, "static and tuned"),
        ("Random", ALL, None, {}, "MaxNumberOfTrainingJobs is required"),
        ("Random", ALL, 751, {}, "MaxNumberOfTrainingJobs is 751"),
        ("Random", ALL, 200, {"parallel": 101}, "MaxParallelTrainingJobs is 101"),
        ("Random", ALL, 2, {"StrategyConfig": {}}, "for the Hyperband strategy only"),
        ("Grid", ALL, None, {}, "categorical ranges only"),
        ("Grid", GRID, 3, {}, "number of its combinations, 2"),
        ("Hyperband", ALL, 2, {}, "does not support the Hyperband strategy"),
        (
            "Random",
            ALL,
            2,
            {"HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "val/acc"}},
            "objective metric val/acc is not one of",
        ),
        ("Random", ALL, 2, {"EnableManagedSpotTraining": True}, "needs MaxWaitTimeInSeconds"),
        (
            "Random",
            ALL,
            2,
            {
                "WarmStartConfig": {
                    "ParentHyperParameterTuningJobs": [{"HyperParameterTuningJobName": "none"}],
                    "WarmStartType": "TransferLearning",
                }
            },
            "does not support warm starts",
        ),
        ("Random", ALL, 2, {"Autotune": {"Mode": "Enabled"}}, "does not support Autotune"),
    ],
)
def test_a_wrong_request_is_refused(
    account: Account, strategy: str, ranges: dict[str, Any], jobs: int | None, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ClientError, match=message):
        account.sagemaker.create_hyper_parameter_tuning_job(**tuning("refused", strategy, ranges, jobs, **changes))
    assert (
        account.sagemaker.list_hyper_parameter_tuning_jobs(NameContains="refused")["HyperParameterTuningJobSummaries"]
        == []
    )


def test_a_name_has_32_characters_at_most(account: Account) -> None:
    with pytest.raises(ClientError, match=r"at 'hyperParameterTuningJobName'.*less than or equal to 32"):
        account.sagemaker.create_hyper_parameter_tuning_job(**tuning("x" * 33, "Random", ALL, 1))
