"""launcher=... as users type it: what is refused before anything starts, and what a dry run prints."""

import json
from pathlib import Path

import pytest
from bins import square_bins
from commands import Run

ROLE = "launcher.role=arn:aws:iam::123456789012:role/bincounter"
OFFLINE = ["launcher.region=eu-west-1", "launcher.bucket=my-bucket", ROLE]
NOBODY = {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true"}
BUCKET = ["data=s3", "data.source=s3://my-bucket/bins"]


def test_a_dry_run_prints_the_exact_request_and_needs_no_account(train: Run) -> None:
    done = train(
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
        **NOBODY,
    )
    request = json.loads(done.stdout[done.stdout.index("{") :])
    assert request["HyperParameters"]["model.optimizer.lr"] == "0.0003"
    assert request["HyperParameters"]["trainer"] == "gpu"
    assert not any(key.startswith("launcher") or key == "dry_run" for key in request["HyperParameters"])
    assert "'" not in json.dumps(request["HyperParameters"])  # it would break the toolkit's env file
    assert request["EnableManagedSpotTraining"] is True
    assert request["Tags"] == [{"Key": "team", "Value": "bins"}]
    assert request["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"] == "s3://my-bucket/bins/"
    assert "at most 1.41 USD" in done.stderr
    assert "MB packed" in done.stderr


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["launcher.max_wait=60", "launcher.max_run=3600"], "launcher.max_wait=60 is shorter than launcher.max_run=3600"),
        (["launcher.request.ResourceConfig.KeepAlivePeriodInSeconds=60"], "a warm pool"),
        (["launcher.max_cost_usd=1"], "is above launcher.max_cost_usd=1"),
        (["launcher.instance_type=ml.m5.xlarge", "trainer=gpu"], "has no GPU and trainer.accelerator is gpu"),
        (["launcher.instance_type=ml.x9.huge"], "launcher.instance_type=ml.x9.huge"),
        (["launcher.role=null"], "docs/sagemaker.md"),
        (["launcher.rolle=x"], "did you mean launcher.role?"),
        (["launcher.instance_count=two"], "launcher.instance_count"),
        (["launcher.input_mode=Pipe"], "launcher.input_mode=Pipe is not one of File, FastFile"),
        (["launcher.framework_version=1.0"], "2.14"),
        (["launcher.region=eu-west-99"], "launcher.region=eu-west-99"),
        (["ckpt_path=last", "paths.output_dir=nowhere"], "holds no run to go on with"),
        (["model.weights=runs/best.ckpt"], "is a file of this machine"),
        (["train=false", "ckpt_path=best.ckpt"], "leave the launcher out"),
        (["+logger.wandb.api_key=0123456789abcdef"], "looks like a secret"),
        (["launcher.environment.WANDB_API_KEY=0123456789abcdef"], "looks like a secret"),
        (["model.optimizer.lr=-1"], "model.optimizer.lr=-1"),
        (["data.source=/no/such/folder", "data=folders"], "/no/such/folder"),
    ],
)
def test_what_cannot_run_is_refused_in_a_line_before_anything_is_sent(
    overrides: list[str], sentence: str, train: Run
) -> None:
    done = train("launcher=sagemaker_spot", *OFFLINE, *BUCKET, "dry_run=true", *overrides, code=2, **NOBODY)
    message = done.stderr.splitlines()[-1]
    assert message.startswith("Error: ")
    assert sentence in message
    assert "0123456789abcdef" not in done.stdout + done.stderr
    assert "{" not in done.stdout  # no request was even shown


def test_no_credentials_is_one_sentence(train: Run) -> None:
    done = train("launcher=sagemaker", "launcher.region=eu-west-1", ROLE, *BUCKET, code=2, **NOBODY)
    assert "aws configure" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_every_job_of_a_multirun_is_checked_before_the_first_is_submitted(train: Run) -> None:
    done = train("-m", "launcher=sagemaker", *OFFLINE, *BUCKET, "model.optimizer.lr=0.1,-1", code=2, **NOBODY)
    assert "job 1 (" in done.stderr
    assert "model.optimizer.lr=-1" in done.stderr


def test_the_ceiling_counts_all_jobs_and_instances(train: Run) -> None:
    options = ["launcher.instance_count=2", "launcher.max_run=3600", "launcher.usd_per_hour=1", "seed=1,2,3"]
    done = train("-m", "launcher=sagemaker", *OFFLINE, *BUCKET, *options, "dry_run=true", **NOBODY)
    assert "3 jobs on 2 x ml.g5.xlarge" in done.stderr
    assert "at most 6.00 USD" in done.stderr


def test_a_local_folder_is_uploaded_and_a_dry_run_only_says_so(train: Run, tmp_path: Path) -> None:
    bins = square_bins(tmp_path / "bins", photos=20)
    done = train("launcher=sagemaker", *OFFLINE, "data=folders", f"data.source={bins}", "dry_run=true", **NOBODY)
    request = json.loads(done.stdout[done.stdout.index("{") :])
    uri = request["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"]
    assert uri.startswith("s3://my-bucket/bincounter/data/bins-")
    assert request["HyperParameters"]["data.source"] == uri.rstrip("/")


def test_dry_run_without_a_launcher_says_what_it_is_for(train: Run) -> None:
    done = train("dry_run=true", code=2)
    assert "launcher=local sends none" in done.stderr
