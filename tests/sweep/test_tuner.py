"""hparams_search=sagemaker_tuner from the command line to sweep.html, on the rehearsed SageMaker."""

import json
import re
import signal
import subprocess
from pathlib import Path

import optuna
import pytest
from bins import square_bins
from commands import REPOSITORY, Run, command, environment
from rehearsed import Account

from bincounter.cloud.job_request import metric_definitions
from bincounter.cloud.tuning_job import Tuning, tuning_name, tuning_request
from bincounter.errors import ConfigError
from sagemaker_rehearsal import without_aws

SEARCH = [
    "hparams_search=sagemaker_tuner",
    "hparams_search.strategy=Grid",
    "launcher.role=arn:aws:iam::123456789012:role/rehearsal",
    "launcher.instance_type=ml.m5.xlarge",
    "data=folders",
    "data.image_size=32",
    "data.batch_size=16",
    "model=cnn",
    "model.backbone.width=8",
    "model.optimizer.lr=0.01,1e30",  # the second one diverges
    "trainer=cpu",
    "trainer.max_epochs=1",
    "callbacks=[none]",
    "+trainer.enable_progress_bar=false",
]
TRAINING = {
    "TrainingJobName": "base",
    "RoleArn": "arn:aws:iam::123456789012:role/rehearsal",
    "AlgorithmSpecification": {
        "TrainingImage": "image",
        "TrainingInputMode": "File",
        "MetricDefinitions": metric_definitions(),
    },
    "HyperParameters": {"sagemaker_program": "start.py"},
    "OutputDataConfig": {"S3OutputPath": "s3://bucket/jobs"},
    "CheckpointConfig": {"S3Uri": "s3://bucket/jobs/base/checkpoints", "LocalPath": "/opt/ml/checkpoints"},
    "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 10},
    "StoppingCondition": {"MaxRuntimeInSeconds": 300, "MaxWaitTimeInSeconds": 600},
    "EnableManagedSpotTraining": True,
    "Tags": [{"Key": "team", "Value": "counting"}],
}
RANGES = {"CategoricalParameterRanges": [{"Name": "data.batch_size", "Values": ["32", "64"]}]}


def tuning(**changes: object) -> Tuning:
    settings: dict[str, object] = {
        "strategy": "Bayesian",
        "metric": "val/accuracy",
        "direction": "Maximize",
        "ranges": RANGES,
        "trials": 8,
        "at_once": 200,
        "epochs": 5,
        "seed": 7,
        "early_stopping": False,
        "parents": [],
        "extra": {},
    }
    return Tuning(**{**settings, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", ["Bayesian", "Random", "Hyperband", "Grid"])
def test_a_request_of_each_strategy_is_one_that_sagemaker_knows(strategy: str) -> None:
    request = tuning_request(TRAINING, tuning(strategy=strategy, parents=["earlier"]), "name")
    config = request["HyperParameterTuningJobConfig"]
    assert config["ResourceLimits"] == {"MaxNumberOfTrainingJobs": 8, "MaxParallelTrainingJobs": 8}
    assert ("StrategyConfig" in config) == (strategy == "Hyperband")
    assert request["Tags"] == TRAINING["Tags"]
    definition = request["TrainingJobDefinition"]
    assert definition["EnableManagedSpotTraining"]
    assert definition["CheckpointConfig"]["S3Uri"] == "s3://bucket/jobs/name/checkpoints"
    assert request["WarmStartConfig"]["ParentHyperParameterTuningJobs"] == [{"HyperParameterTuningJobName": "earlier"}]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trials": 751}, "n_trials=751"),
        ({"seed": -1, "extra": {"Tags": [{"Key": "a"}]}}, "hparams_search.request"),
        ({"extra": {"HyperParameterTuningJobConfig": {"Strategy": "Random"}}}, "use hparams_search.strategy"),
        (
            {"extra": {"HyperParameterTuningJobConfig": {"ResourceLimits": {"MaxNumberOfTrainingJobs": 900}}}},
            "use hparams_search.n_trials",
        ),
        ({"extra": {"HyperParameterTuningJobConfg": {}}}, "did you mean HyperParameterTuningJobConfig"),
    ],
)
def test_what_sagemaker_would_refuse_is_refused_first(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        tuning_request(TRAINING, tuning(**changes), "name")


def test_names_are_sagemakers_whatever_the_study_is_called() -> None:
    for study in ("a", "a_very.long-study--name" * 4):
        assert tuning_name(study).startswith("bincounter-a")
        assert re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,31}", tuning_name(study))


def test_the_objective_is_found_in_a_real_log(train: Run, tmp_path: Path) -> None:
    overrides = [each for each in SEARCH if not each.startswith(("hparams_search", "launcher", "model.optimizer"))]
    bins = square_bins(tmp_path / "bins", photos=40)
    done = train(*overrides, f"data.source={bins}", f"paths.output_dir={tmp_path / 'run'}", "test=false")
    definitions = {each["Name"]: each["Regex"] for each in metric_definitions()}
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())["val"]
    for name in ("val/accuracy", "val/rmse", "val/cross_entropy"):
        found = re.findall(definitions[name], done.stderr)
        assert float(found[-1]) == pytest.approx(scores[name.removeprefix("val/")], rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["hparams_search.n_trials=1"], "tries all 2 combinations"),
        (["data.batch_size=16,4096"], "larger than"),
        (["launcher.max_cost_usd=0.01"], "above launcher.max_cost_usd"),
    ],
)
def test_a_wrong_search_is_refused_in_one_line(
    overrides: list[str], said: str, train: Run, at_plane: dict[str, str], tmp_path: Path
) -> None:
    bins = square_bins(tmp_path / "bins", photos=40)
    place = [f"data.source={bins}", f"paths.output_dir={tmp_path / 'sweep'}"]
    done = train(*SEARCH, *place, *overrides, code=2, **at_plane)
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "sweep").rglob("*.json"))


def test_detached_and_killed_search_is_followed_to_its_best_run(
    account: Account, train: Run, at_plane: dict[str, str], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    bins = square_bins(tmp_path / "bins", photos=80)
    overrides = [*SEARCH, f"data.source={bins}", f"paths.output_dir={sweep}", "hparams_search.study_name=squares"]
    left = train(*overrides, "launcher.wait=false", **at_plane)
    assert left.stderr.rstrip().endswith("is running; the same command with launcher.wait=true follows it.")
    assert left.stdout == ""
    process = subprocess.Popen(
        command("train.py", *overrides),
        cwd=REPOSITORY,
        env={**without_aws(environment()), **at_plane},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert any(line.startswith("trial 0:") for line in process.stderr)
    process.send_signal(signal.SIGKILL)
    process.wait()

    done = train(*overrides, **at_plane)
    listed = account.sagemaker.list_hyper_parameter_tuning_jobs(NameContains="bincounter-squar")
    (tuned,) = listed["HyperParameterTuningJobSummaries"]  # no second one was paid for
    described = account.sagemaker.describe_hyper_parameter_tuning_job(
        HyperParameterTuningJobName=tuned["HyperParameterTuningJobName"]
    )
    study = optuna.load_study(study_name="squares", storage=f"sqlite:///{sweep / 'study.db'}")
    assert sorted(trial.state.name for trial in study.trials) == ["COMPLETE", "FAIL"]
    failed = next(trial for trial in study.trials if trial.state.name == "FAIL")
    assert "not finite any more" in failed.user_attrs["error"]
    final = described["BestTrainingJob"]["FinalHyperParameterTuningJobObjectiveMetric"]
    assert study.best_value == pytest.approx(float(final["Value"]))
    assert study.best_params == {"model.optimizer.lr": 0.01}
    best = sweep / str(study.best_trial.number)
    assert {"best.ckpt", "last.ckpt"} == {path.name for path in (best / "checkpoints").iterdir()}
    assert (best / "report.html").exists()
    assert "test" not in json.loads((best / "metrics.json").read_text())
    assert "model.optimizer.lr=0.01" in (best / "overrides.txt").read_text()
    assert study.best_trial.user_attrs["usd"] > 0
    assert (sweep / "sweep.html").exists()
    *_, page, folder = done.stdout.splitlines()
    assert (page, folder) == (f"More in {sweep / 'sweep.html'}", str(sweep))
    assert "launcher=sagemaker_spot" in done.stdout.splitlines()[-3]  # the command, with what the search had chosen

    again = train(*overrides, **at_plane)
    assert again.stdout == done.stdout
    more = train(*overrides, "hparams_search.strategy=Random", "hparams_search.n_trials=40", code=2, **at_plane)
    assert "which has another chooser: repeat its command unchanged" in more.stderr
    elsewhere = train(*overrides, "launcher=rehearsal", code=2, **at_plane)  # a rehearsal's results are not SageMaker's
    assert "which has another chooser: repeat its command unchanged" in elsewhere.stderr
    by_optuna = train("hparams_search=optuna", *overrides[4:], code=2)
    assert "another chooser" in by_optuna.stderr
