"""launcher=sagemaker_spot from the command line to the fetched run, carried out by the rehearsal's control plane."""

import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from aws_faults import faults
from bins import square_bins
from commands import Run, Start
from launched import launched, wait_for

from bincounter.cloud.account import Account
from bincounter.training.results import best_value

ROLE = "launcher.role=arn:aws:iam::123456789012:role/rehearsal"
LAUNCHER = ["launcher=sagemaker_spot", ROLE, "launcher.instance_type=ml.m5.xlarge"]
INTERRUPTED = [  # twice, each time as soon as there is something to resume from
    "launcher.environment.REHEARSAL_INTERRUPTIONS='0,0'",
    "launcher.environment.REHEARSAL_INTERRUPT_AFTER=last.ckpt",
]
SMALL = [
    "data=folders",
    "data.image_size=32",
    "data.batch_size=16",
    "model=cnn",
    "model.backbone.width=8",
    "trainer=cpu",
    "callbacks=[none]",
    "+trainer.enable_progress_bar=false",
    "checkpoint.every_n_train_steps=3",
]
LONG = [*SMALL, "trainer.max_epochs=16"]  # some seconds, so that it can be interrupted


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return square_bins(tmp_path_factory.mktemp("bins"), photos=320)


@pytest.fixture(scope="module")
def undisturbed(bins: Path, start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that jobs have to equal, carried out here and without a launcher."""
    folder = tmp_path_factory.mktemp("undisturbed")
    paths = [f"paths.output_dir={folder / 'run'}", f"paths.data_dir={folder / 'data'}"]
    process = start("train.py", *LONG, f"data.source={bins}", *paths)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return folder / "run"


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "job.json").read_text())


def handed_over(run: Path, plane: dict[str, str]) -> set[str]:
    """The files in a job's model archive."""
    uri = record(run)["description"]["ModelArtifacts"]["S3ModelArtifacts"]
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in plane.items():
            patch.setenv(name, value)
        archive = io.BytesIO(Account(None).s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    return {Path(name).name for name in tarfile.open(fileobj=archive).getnames()} - {"."}


def assert_same_run(run: Path, other: Path) -> None:
    ours, theirs = tensors(run), tensors(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (run / "logs" / "metrics.csv").read_bytes() == (other / "logs" / "metrics.csv").read_bytes()
    assert (run / "predictions.csv").read_bytes() == (other / "predictions.csv").read_bytes()


def test_spot_job_interrupted_twice_equals_a_local_run(
    bins: Path, undisturbed: Path, train: Run, plane: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    done = train(*LAUNCHER, *LONG, *INTERRUPTED, f"data.source={bins}", f"paths.output_dir={folder}", **plane)

    assert done.stdout.splitlines()[-1] == str(folder)
    assert done.stderr.count("Interrupted: ") == 2
    assert "epoch 16 of 16: " in done.stderr
    assert "not resumable" not in done.stderr
    assert "sagemaker-training-toolkit" not in done.stderr
    assert_same_run(folder, undisturbed)
    assert (folder / "report.html").exists()
    assert {path.name for path in undisturbed.iterdir()} <= {path.name for path in folder.iterdir()} | {".lock"}
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["commit"] == json.loads((undisturbed / "provenance.json").read_text())["commit"]

    description = record(folder)["description"]
    trained, billed = description["TrainingTimeInSeconds"], description["BillableTimeInSeconds"]
    assert f"{trained} s of training, {billed} s billed" in done.stderr
    assert f"managed spot saving {100 * (1 - billed / trained):.1f} %" in done.stderr
    metrics = {metric["MetricName"]: metric["Value"] for metric in description["FinalMetricDataList"]}
    assert metrics["val/accuracy"] == pytest.approx(last_logged(folder, "val/accuracy"), rel=1e-5)
    best = best_value(folder, "val/accuracy", "max")
    assert best == pytest.approx(json.loads((folder / "metrics.json").read_text())["val"]["accuracy"], abs=0.05)


def last_logged(run: Path, metric: str) -> float:
    lines = (run / "logs" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index(metric)
    return [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]][-1]


def test_of_three_jobs_one_fails_and_its_own_message_is_on_screen(
    bins: Path, run: Run, plane: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    paths = [f"paths.output_dir={folder}", f"paths.log_dir={tmp_path}"]
    counts = "data.counts=[0,1,2,3],[8,9],[0,1]"
    options = [*SMALL, "trainer.max_epochs=1", counts, f"data.source={bins}", "launcher.max_parallel_jobs=2"]
    done = run("train.py", "-m", *LAUNCHER, *options, *paths, code=1, **plane)
    assert "3 jobs on 1 x ml.m5.xlarge" in done.stderr
    told = re.search(r"^Error in job 1: (.*)$", done.stderr, re.MULTILINE)
    assert told, done.stderr
    assert "data.counts=[8, 9]" in told[1] or "data.counts=[8,9]" in told[1]
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == [str(folder / number) for number in "02"]
    assert lines[2:4] == ["3 jobs, 1 of them failed, best first:", lines[3]]
    assert lines[3].split() == ["folder", "val/accuracy", "counts"]
    assert {lines[4].split()[0], lines[5].split()[0]} == {"0", "2"}
    assert lines[6].split()[:2] == ["1", "failed"] and lines[7:] == [str(folder)]
    assert all((folder / number / "report.html").exists() for number in "02")
    assert not (folder / "1" / "metrics.json").exists()
    assert record(folder / "1")["description"]["TrainingJobStatus"] == "Failed"
    assert record(folder / "2")["description"]["TrainingJobStatus"] == "Completed"


def test_a_stopped_job_is_fetched_and_goes_on_here_and_there(
    bins: Path, undisturbed: Path, train: Run, plane: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = [*LAUNCHER, *LONG, f"data.source={bins}"]
    process = launched(*options, f"paths.output_dir={folder}", plane=plane)
    wait_for("epoch 2 of 16", process)
    assert record(folder)["overrides"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in plane.items():
            patch.setenv(name, value)
        Account(None).sagemaker.stop_training_job(TrainingJobName=record(folder)["name"])
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 1
    message = rest.splitlines()[-1]
    uri = record(folder)["checkpoint_uri"]
    assert "was stopped (Stopped) and is incomplete" in message
    assert f"launcher.checkpoint_uri={uri}" in message
    assert f"ckpt_path=last paths.output_dir={folder}" in message
    assert record(folder)["description"]["TrainingJobStatus"] == "Stopped"
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert not (folder / "metrics.json").exists()
    assert handed_over(folder, plane) == {"best.ckpt", "config.yaml"}
    assert "/algo-1/" not in (folder / "overrides.txt").read_text()

    there = tmp_path / "there"
    train(*options, f"launcher.checkpoint_uri={uri}", f"paths.output_dir={there}", **plane)
    assert_same_run(there, undisturbed)
    train("ckpt_path=last", f"paths.output_dir={folder}")
    assert_same_run(folder, undisturbed)


def test_jobs_that_were_left_alone_are_attached_to_and_fetched(
    bins: Path, train: Run, run: Run, plane: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = [*SMALL, "trainer.max_epochs=2", f"data.source={bins}", f"paths.output_dir={folder}"]
    done = train(*LAUNCHER, *options, "launcher.wait=false", **plane)
    assert f"bincounter attach {folder}" in done.stderr
    assert not (folder / "metrics.json").exists()

    attached = run("-m", "bincounter", "attach", str(folder), **plane)
    assert attached.stdout.splitlines()[-1] == str(folder)
    assert (folder / "report.html").exists()
    assert "epoch 2 of 2" in attached.stderr

    nothing = run("-m", "bincounter", "attach", str(tmp_path / "data"), code=2, **plane)
    assert "holds no job.json" in nothing.stderr


def test_ctrl_c_leaves_the_job_and_says_how_to_attach(bins: Path, plane: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = [*SMALL, "trainer.max_epochs=2", f"data.source={bins}", f"paths.output_dir={folder}"]
    process = launched(*LAUNCHER, *options, plane=plane)
    wait_for("Training", process)
    os.kill(process.pid, signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 1
    assert rest.splitlines()[-1].startswith("Error: ")
    assert "may still run, and be billed" in rest
    assert f"bincounter attach {folder}" in rest


def test_ctrl_c_at_a_terminal_asks_and_y_stops_the_job(bins: Path, plane: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ours, theirs = pty.openpty()
    options = [*SMALL, "trainer.max_epochs=500", f"data.source={bins}", f"paths.output_dir={folder}"]
    process = launched(*LAUNCHER, *options, plane=plane, stdin=theirs)
    wait_for("epoch 1 of 500", process)
    os.write(ours, b"y\ny\n")
    os.kill(process.pid, signal.SIGINT)
    try:
        _, rest = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:  # Python loses an interrupt that it raises in a destructor: one presses again
        os.kill(process.pid, signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    os.close(ours)
    assert "Stop the 1 running job? [y/N]" in rest
    assert "was stopped (Stopped) and is incomplete" in rest.splitlines()[-1]
    assert (folder / "checkpoints" / "best.ckpt").exists()


def test_expired_login_leaves_the_job_running_and_advises_attach(
    bins: Path, train: Run, plane: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = [*SMALL, "trainer.max_epochs=1", f"data.source={bins}", f"paths.output_dir={folder}"]
    with faults(plane["AWS_ENDPOINT_URL"]) as server:
        server.refuse(
            "DescribeLogStreams", "AccessDeniedException", "not authorized to perform: logs:DescribeLogStreams"
        )
        server.refuse("DescribeTrainingJob", "ExpiredTokenException", "The security token included is expired")
        done = train(*LAUNCHER, *options, code=2, **{**plane, "AWS_ENDPOINT_URL": server.endpoint})
    message = done.stderr.splitlines()[-1]
    assert "log in again" in message
    assert f"may still run, and be billed: follow with bincounter attach {folder}" in message


def test_job_without_log_is_followed_and_a_lost_reply_submits_once(
    bins: Path, train: Run, plane: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = [*SMALL, "trainer.max_epochs=1", f"data.source={bins}", f"paths.output_dir={folder}"]
    with faults(plane["AWS_ENDPOINT_URL"]) as server:
        server.refuse(
            "DescribeLogStreams", "AccessDeniedException", "not authorized to perform: logs:DescribeLogStreams"
        )
        server.lose("CreateTrainingJob")
        done = train(*LAUNCHER, *options, **{**plane, "AWS_ENDPOINT_URL": server.endpoint})
    assert server.operations.count("CreateTrainingJob") == 2
    assert done.stderr.count("The log cannot be read") == 1
    assert done.stdout.splitlines()[-1] == str(folder)
    assert (folder / "report.html").exists()


@pytest.mark.long
def test_demo_bins_are_rendered_in_the_job(train: Run, tmp_path: Path) -> None:
    options = ["experiment=demo", "data.layout.photos=120", "trainer.max_epochs=1", "callbacks=[none]"]
    interrupted = [
        "launcher.interruptions=[0]",
        "checkpoint.every_n_train_steps=1",
        f"paths.output_dir={tmp_path / 'run'}",
    ]
    done = train("launcher=rehearsal", *options, *interrupted, AWS_PROFILE="of-somebody")
    assert done.stdout.splitlines()[-1] == str(tmp_path / "run")
    assert "Rehearsing on this machine" in done.stderr
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.photos
def test_real_photos_interrupted_twice_give_the_same_weights(
    abid_photos: Path, train: Run, plane: dict[str, str], tmp_path: Path
) -> None:
    part = tmp_path / "abid"
    for photo in sorted((abid_photos / "bin-images").iterdir())[:100]:
        for folder, name in (("bin-images", photo.name), ("metadata", f"{photo.stem}.json")):
            (part / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(abid_photos / folder / name, part / folder / name)
    options = ["data=abid", f"data.source={part}", "data.image_size=64", "data.batch_size=16", "model=cnn"]
    options += ["trainer=cpu", "trainer.max_epochs=20", "checkpoint.every_n_train_steps=1"]
    options += ["callbacks=[none]", "+trainer.enable_progress_bar=false", "data.split.method=random"]
    train(*options, f"paths.output_dir={tmp_path / 'undisturbed'}")
    done = train(*LAUNCHER, *options, *INTERRUPTED, f"paths.output_dir={tmp_path / 'interrupted'}", **plane)
    assert done.stderr.count("Interrupted: ") == 2
    assert_same_run(tmp_path / "interrupted", tmp_path / "undisturbed")
