"""launcher=... as users type it: what is refused before anything starts, and what a dry run prints."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from aws_faults import faults
from bins import square_bins
from commands import REPOSITORY, command, environment
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from searches import states, study_of

from bincounter.cli import train_command
from bincounter.cloud.job_plan import PlannedJob
from bincounter.cloud.sagemaker_launcher import SageMakerLauncher
from bincounter.cloud.tuning_job import TuningJob
from bincounter.config.quoting import override_of
from bincounter.sweep.distributions import to_optuna
from bincounter.sweep.search_plan import Plan
from bincounter.sweep.study import recreate_study, storage_url

ROLE = "launcher.role=arn:aws:iam::123456789012:role/bincounter"
OFFLINE = ["launcher.region=eu-west-1", "launcher.bucket=my-bucket", ROLE]
BUCKET = ["data=s3", "data.source=s3://my-bucket/bins"]

RECORD = {
    "name": "killed",
    "number": 1,
    "region": "eu-west-1",
    "checkpoint_uri": "s3://b/c",
    "overrides": [],
    "usd_per_hour": 1.0,
}
Train = Callable[..., tuple[str, str]]


@pytest.fixture
def train(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Train:
    """``bincounter train``, in this process, on a machine without a login at AWS; returns its output."""
    for name, value in {
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(REPOSITORY)
    caplog.set_level(logging.INFO)  # pytest takes the log, which goes to stderr otherwise

    def train_(*arguments: str, code: int | None = 0) -> tuple[str, str]:
        paths = [f"paths.{name}_dir={tmp_path / name}" for name in ("data", "cache", "log")]
        sweep = ["-m"] if "-m" in arguments else []
        rest = [argument for argument in arguments if argument != "-m"]
        monkeypatch.setattr(sys, "argv", ["train.py", *sweep, *paths, *rest])
        returned = train_command.main()
        HydraConfig.instance().cfg = None
        out, err = capsys.readouterr()
        assert returned == code if code is not None else returned in (1, 2), err
        return out, caplog.text + err

    return train_


def test_a_dry_run_prints_the_exact_request_and_needs_no_account(train: Train) -> None:
    out, err = train(
        "launcher=sagemaker_spot",
        *OFFLINE,
        *BUCKET,
        "trainer=gpu",
        "model.optimizer.lr=3e-4",
        "data.counts=[1,2,3]",
        "tags=['it\\'s a bin']",
        "launcher.max_run=3600",
        "launcher.request.Tags=[{Key: team, Value: bins}]",
        "dry_run=true",
    )
    request = json.loads(out[out.index("{") :])
    assert request["HyperParameters"]["model.optimizer.lr"] == "0.0003"
    assert request["HyperParameters"]["trainer"] == "gpu"
    assert not any(key.startswith("launcher") or key == "dry_run" for key in request["HyperParameters"])
    assert "'" not in json.dumps(request["HyperParameters"])  # it would break the toolkit's env file
    assert request["EnableManagedSpotTraining"] is True
    assert request["Tags"] == [{"Key": "team", "Value": "bins"}]
    assert request["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"] == "s3://my-bucket/bins/"
    assert "at most 1.41 USD" in err
    assert "MB packed" in err


@pytest.mark.parametrize(
    "overrides",
    [
        ["dry_run=true"],
        ["-m", "seed=1,2", "dry_run=true"],
        ["hparams_search=sagemaker_tuner", "hparams_search.n_trials=2", "dry_run=true"],
        ["hparams_search=optuna", "hparams_search.n_trials=2", "dry_run=true", "launcher.role=bincounter"],
    ],
)
def test_dry_run_without_login_prints_placeholders_and_writes_nothing(
    overrides: list[str], train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    given = ["launcher=sagemaker_spot", "model=cnn", "trainer=cpu", *BUCKET]
    out, err = train(*overrides, *given, "launcher.instance_type=ml.m5.xlarge")
    named = "launcher.role=bincounter" in overrides
    assert f'"RoleArn": "{"arn:aws:iam::<account>:role/bincounter" if named else "<role>"}"' in out
    assert ("<role> in the request stands for what is known once launcher.role is set" in err) != named
    assert "s3://sagemaker-<region>-<account>/bincounter/jobs" in out
    assert "us-east-1" not in out and "000000000000" not in out
    assert "<region> in the request stands for what is known once launcher.region or AWS_REGION is set" in err
    assert "<account> in the request stands for what is known once you are logged in at AWS" in err
    assert "at most " in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["launcher.max_wait=60", "launcher.max_run=3600"], "launcher.max_wait=60 is shorter than"),
        (["launcher.request.ResourceConfig.KeepAlivePeriodInSeconds=60"], "a warm pool"),
        (["launcher.request.ResourceConfig.InstanceCount=20"], "use launcher.instance_count"),
        (["launcher.request.EnableManagedSpotTraining=false"], "use launcher.spot"),
        (["launcher.request.ResourceConfig=abc"], "ResourceConfig"),
        (["launcher.checkpoint_uri=s3://bucket"], "is not an S3 folder"),
        (["seed=0,1"], "add -m"),
        (["launcher.max_cost_usd=1"], "is above launcher.max_cost_usd=1"),
        (["launcher.instance_type=ml.m5.xlarge", "trainer=gpu"], "has no GPU and trainer.accelerator is gpu"),
        (["launcher.instance_type=ml.x9.huge"], "launcher.instance_type=ml.x9.huge"),
        (["launcher.rolle=x"], "did you mean 'launcher.role'?"),
        (["launcher.instance_count=two"], "launcher.instance_count"),
        (["launcher.input_mode=Pipe"], "launcher.input_mode=Pipe is not one of File, FastFile"),
        (["launcher.framework_version=1.0"], "2.14"),
        (["launcher.region=eu-west-99"], "eu-west-99 is not a region"),
        (["ckpt_path=last", "paths.output_dir=logs"], "launcher.checkpoint_uri=s3://"),
        *((["model.weights=" + name], "is a file of this machine") for name in ("runs/best.ckpt", "w.pt", "docs")),
        (["model=resnet18", "model.weights=IMAGENET9"], "model.weights=IMAGENET9 is not one of"),
        (["train=false", "ckpt_path=README.md"], "remove the launcher"),
        (["+logger.wandb.api_key=0123456789abcdef"], "looks like a secret"),
        (["launcher.environment.WANDB_API_KEY=0123456789abcdef"], "looks like a secret"),
        (["model.optimizer.lr=-1"], "model.optimizer.lr=-1"),
        (["data.source=/no/such/folder", "data=folders"], "/no/such/folder"),
    ],
)
def test_what_cannot_run_is_refused_in_a_line_before_anything_is_sent(
    overrides: list[str], sentence: str, train: Train
) -> None:
    out, err = train("launcher=sagemaker_spot", *OFFLINE, *BUCKET, "dry_run=true", *overrides, code=2)
    message = err.splitlines()[-1]
    assert message.startswith("Error: ")
    assert sentence in message
    assert "0123456789abcdef" not in out + err
    assert "{" not in out  # no request was even shown


def test_a_job_fetches_weights_of_the_hub(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "bincounter.files.download", lambda name: REPOSITORY / "README.md"
    )  # which checks that it exists
    out, _err = train("launcher=sagemaker_spot", *OFFLINE, *BUCKET, "dry_run=true", "model.weights=hf://ada/bins@v1")
    assert json.loads(out)["HyperParameters"]["model.weights"].strip("\"'") == "hf://ada/bins@v1"


def test_a_job_needs_a_role(train: Train) -> None:
    _out, err = train("launcher=sagemaker", *OFFLINE, *BUCKET, "launcher.role=null", code=2)
    assert "none is set: create one with the commands of docs/sagemaker.md" in err.splitlines()[-1]


def test_no_credentials_is_one_sentence(train: Train) -> None:
    _out, err = train("launcher=sagemaker", "launcher.region=eu-west-1", ROLE, *BUCKET, code=2)
    assert "aws configure" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("operation", "code", "message", "options", "sentence"),
    [
        (
            "CreateTrainingJob",
            "ResourceLimitExceeded",
            "The account-level service limit 'ml.g5.xlarge for spot training job usage' is 0 Instances, with current "
            "utilization of 0 Instances and a request delta of 1 Instances.",
            {},
            "Service Quotas",
        ),
        (
            "CreateTrainingJob",
            "ValidationException",
            "Could not assume role arn:aws:iam::123456789012:role/bincounter. Please ensure that the role exists and "
            "allows principal 'sagemaker.amazonaws.com' to assume the role.",
            {},
            "docs/sagemaker.md",
        ),
        (
            "CreateTrainingJob",
            "AccessDeniedException",
            "User: arn:aws:iam::123456789012:user/me is not authorized to perform: sagemaker:CreateTrainingJob on "
            "resource: arn:aws:sagemaker:us-east-1:123456789012:training-job/x",
            {},
            "sagemaker:CreateTrainingJob",
        ),
        ("HEAD /theirs", "301", "", {"status": 301, "headers": {"x-amz-bucket-region": "eu-west-1"}}, "eu-west-1"),
        ("HEAD /theirs", "403", "", {"status": 403}, "theirs"),
        ("GetCallerIdentity", "ExpiredToken", "The security token is expired", {"status": 403}, "log in again"),
    ],
)
def test_what_aws_refuses_is_one_sentence_with_the_next_step(
    operation: str,
    code: str,
    message: str,
    options: dict[str, Any],
    sentence: str,
    train: Train,
    plane: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with faults(plane["AWS_ENDPOINT_URL"]) as server:
        server.refuse(operation, code, message, **options)
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        bucket = "launcher.bucket=theirs" if "theirs" in operation else "launcher.bucket=null"
        _out, err = train("launcher=sagemaker_spot", ROLE, bucket, "model=resnet18", "model.weights=null", code=None)
    told = err.splitlines()[-1]
    assert told.startswith("Error: ")
    assert sentence in told
    assert "Traceback" not in err


def test_multirun_checks_all_jobs_before_the_first_submission(train: Train) -> None:
    _out, err = train("-m", "launcher=sagemaker", *OFFLINE, *BUCKET, "model.optimizer.lr=0.1,-1", code=2)
    assert "job 1 (" in err
    assert "model.optimizer.lr=-1" in err


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["launcher.max_run=3600,7200"], "launcher.max_run is one for all jobs"),
        (["launcher.checkpoint_uri=s3://my-bucket/mine", "seed=0,1"], "keeps one run, not 2"),
        (["launcher.checkpoint_uri=s3://my-bucket/mine", "seed=0,1", "hydra.sweeper.max_batch_size=1"], "not 2"),
        (["launcher.checkpoint_uri=s3://my-bucket/mine", "hparams_search=optuna"], "and a search has many"),
        (["launcher.checkpoint_uri=s3://my-bucket/mine", "hparams_search=sagemaker_tuner"], "and a search has many"),
        (["launcher.wait=false", "seed=range(6)"], "starts all 6 jobs at once"),
    ],
)
def test_jobs_of_a_multirun_do_not_get_into_each_others_way(overrides: list[str], sentence: str, train: Train) -> None:
    _out, err = train("-m", "launcher=sagemaker", *OFFLINE, *BUCKET, "dry_run=true", *overrides, code=2)
    assert sentence in err.splitlines()[-1]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[PlannedJob]:
    """The jobs that would be sent; each completes at once, with a score of 0.5."""
    launched: list[PlannedJob] = []

    def launch(_: SageMakerLauncher, planned: Sequence[PlannedJob]) -> list[JobReturn]:
        launched.extend(planned)
        returned = [JobReturn(status=JobStatus.COMPLETED) for _ in planned]
        for each in returned:
            each.return_value = 0.5
        return returned

    monkeypatch.setattr(SageMakerLauncher, "_launch", launch)
    return launched


SEARCH = [
    "hparams_search=optuna",
    "launcher=sagemaker_spot",
    *OFFLINE,
    "launcher.max_run=600",
    "trainer=gpu",
    "data.batch_size=16",
    "trainer.max_epochs=1",
]


def test_values_that_exclude_each_other_fail_a_trial_and_the_search_goes_on(
    train: Train, launches: list[PlannedJob], tmp_path: Path
) -> None:
    grid = ["model/optimizer=adamw,sgd", "+model.optimizer.amsgrad=true,false", "trainer.devices=1,8"]
    fixed = ["hparams_search/sampler=grid", "hparams_search.max_failure_rate=1", "model.optimizer.lr=0.1"]
    place = f"paths.output_dir={tmp_path / 'sweep'}"
    train(*SEARCH, *BUCKET, *grid, *fixed, "hparams_search.n_jobs=2", place)
    assert len(launches) == 2
    trials = study_of(f"sqlite:///{tmp_path / 'sweep' / 'study.db'}").trials
    assert sorted(states(trials)) == ["COMPLETE"] * 2 + ["FAIL"] * 6
    errors = [trial.user_attrs["error"] for trial in trials if trial.state.name == "FAIL"]
    assert sum("amsgrad" in error for error in errors) == 4
    assert sum("trainer.devices=8 is more than the 1 of" in error for error in errors) == 2


def test_a_search_is_resumed_with_its_photos_wherever_they_are(
    train: Train, launches: list[PlannedJob], tmp_path: Path
) -> None:
    ours, theirs = square_bins(tmp_path / "ours", photos=20), square_bins(tmp_path / "theirs", photos=24)

    def search(source: Path, n_trials: int, *more: str, code: int = 0) -> str:
        given = ["data=folders", f"data.source={source}", "model.optimizer.lr=0.1,0.2", *more]
        given += [f"hparams_search.n_trials={n_trials}"]
        return train(*SEARCH, *given, code=code)[1]

    search(ours, 1)
    assert len(launches) == 1
    assert "has another data set: repeat its command" in search(theirs, 1, code=2)
    assert "has another trainer.max_time: repeat" in search(ours, 1, "trainer.max_time=00:01:00:00", code=2)
    moved = ours.rename(tmp_path / "moved")
    search(moved, 2)
    shutil.rmtree(moved)
    search(moved, 2)  # has ended, and says its result again
    assert [job.number for job in launches] == [0, 1]


def test_the_killed_retraining_of_a_tuning_job_is_resumed(
    train: Train, launches: list[PlannedJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(plan: Plan, *_: object) -> None:
        job = TuningJob("ended", plan.name, "eu-west-1", 1, 1.0, plan.signature, status="Completed")
        plan.folder.mkdir()
        job.save(plan.folder)
        params, space = {"model.optimizer.lr": 0.1}, to_optuna(plan.parameters)
        best = optuna.trial.create_trial(value=0.4, params=params, distributions=space)
        recreate_study(plan, storage_url(None, plan.folder)).add_trial(best)

    bins = square_bins(tmp_path / "bins", photos=20)
    sweep = tmp_path / "sweep"
    given = ["hparams_search=sagemaker_tuner", *SEARCH[1:], "data=folders", "model.optimizer.lr=0.1,0.2"]
    given += ["hparams_search.retrain_best=true", "hparams_search.n_trials=1", f"paths.output_dir={sweep}"]
    with monkeypatch.context() as patch:
        patch.setattr("bincounter.sweep.tuner_search.search", ended)
        train(*given, f"data.source={bins}")
    (sweep / "best").mkdir()
    (sweep / "best" / "job.json").write_text(json.dumps(RECORD))  # of the command that was killed
    train(*given, f"data.source={bins}")
    (job,) = launches
    assert job.folder == sweep / "best" and job.of_search
    other = square_bins(tmp_path / "other", photos=24)
    assert "which has another data set: repeat its command" in train(*given, f"data.source={other}", code=2)[1]


def test_a_folder_that_holds_a_run_is_not_written_over(train: Train, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{}")
    _out, err = train("launcher=sagemaker", *OFFLINE, *BUCKET, f"paths.output_dir={tmp_path}", code=2)
    assert "already holds a run (job.json)" in err


def test_a_warm_pool_is_in_the_ceiling(train: Train) -> None:
    warm = "launcher.request.ResourceConfig.KeepAlivePeriodInSeconds=3600"
    options = ["launcher.max_run=3600", "launcher.usd_per_hour=1", warm]
    _out, err = train("launcher=sagemaker", *OFFLINE, *BUCKET, *options, "dry_run=true")
    assert "at most 2.00 USD" in err


def test_a_secret_out_of_the_environment_does_not_enter_the_request(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", "0123456789abcdef")
    for key in ("WANDB_API_KEY", "OPENAI_KEY"):
        secret = f"launcher.environment.{key}=${{oc.env:MINE}}"
        out, err = train("launcher=sagemaker", *OFFLINE, *BUCKET, secret, "dry_run=true", code=2)
        assert "looks like a secret" in err
        assert "0123456789abcdef" not in out + err


def test_a_rehearsal_cannot_be_left_alone(train: Train) -> None:
    _out, err = train("launcher=rehearsal", "launcher.wait=false", code=2)
    assert "bincounter rehearsal" in err


def test_without_the_rehearsal_the_message_names_what_to_install(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sagemaker_rehearsal", None)  # as if it were not installed
    _out, err = train("launcher=rehearsal", "data=demo", code=2)
    assert "needs the package sagemaker-rehearsal: pip install 'bincounter[rehearsal]'" in err


def test_an_experiment_may_choose_and_set_the_launcher(tmp_path: Path) -> None:
    for name in subprocess.check_output(["git", "ls-files"], cwd=REPOSITORY, text=True).splitlines():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / "conf" / "experiment" / "lab.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /launcher: sagemaker_spot\nlauncher:\n  max_run: 3600\n"
        "  request:\n    Tags: [{Key: project, Value: bins}]\n"
    )

    def lab() -> subprocess.CompletedProcess[str]:
        overrides = ["experiment=lab", *OFFLINE, *BUCKET, "dry_run=true"]
        return subprocess.run(
            command("train.py", *overrides),
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", ".", ":!conf/experiment/lab.yaml"], cwd=tmp_path, check=True)
    assert "conf/experiment/lab.yaml is not tracked by git" in lab().stderr
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    out = lab().stdout
    request = json.loads(out[out.index("{") :])
    assert request["Tags"] == [{"Key": "project", "Value": "bins"}]
    assert request["StoppingCondition"]["MaxRuntimeInSeconds"] == 3600
    assert request["HyperParameters"]["experiment"] == "lab"


def test_flags_may_stand_behind_overrides(train: Train) -> None:
    out, _err = train("seed=7", "--cfg", "job")
    assert "seed: 7" in out


def test_the_ceiling_counts_all_jobs_and_instances(train: Train) -> None:
    options = ["launcher.instance_count=2", "launcher.max_run=3600", "launcher.usd_per_hour=1", "seed=1,2,3"]
    _out, err = train("-m", "launcher=sagemaker", *OFFLINE, *BUCKET, *options, "dry_run=true")
    assert "3 jobs on 2 x ml.g5.xlarge" in err
    assert "at most 6.00 USD" in err


def test_a_local_folder_is_uploaded_and_a_dry_run_only_says_so(train: Train, tmp_path: Path) -> None:
    bins = square_bins(tmp_path / "bins", photos=20)
    out, _err = train("launcher=sagemaker", *OFFLINE, "data=folders", f"data.source={bins}", "dry_run=true")
    request = json.loads(out[out.index("{") :])
    uri = request["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"]
    assert uri.startswith("s3://my-bucket/bincounter/data/bins-")
    assert request["HyperParameters"]["data.source"] == uri.rstrip("/")


def test_a_shipped_file_may_have_any_name(train: Train, tmp_path: Path) -> None:
    bins = square_bins(tmp_path / "bins", photos=20)
    corrections = tmp_path / "bob's fixes.csv"
    corrections.write_text("id,count\n1,3\n")
    given = ["data=folders", f"data.source={bins}", override_of("data.corrections", corrections)]
    out, _err = train("launcher=sagemaker", *OFFLINE, *given, "dry_run=true")
    sent = json.loads(out[out.index("{") :])["HyperParameters"]["data.corrections"]
    assert json.loads(sent) == "corrections/bob's fixes.csv"


def test_dry_run_without_a_launcher_says_what_it_is_for(train: Train) -> None:
    _out, err = train("dry_run=true", code=2)
    assert "launcher=local sends none" in err
