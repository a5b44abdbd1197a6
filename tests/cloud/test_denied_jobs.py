"""Training and tuning jobs, followed and stopped with each request denied, throttled and unanswered in turn."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aws_faults import Faults, faults
from botocore.retries.bucket import TokenBucket
from rehearsed import Account as Plane
from rehearsed import tuning

from bincounter.cli.main import main
from bincounter.cloud import account, job_runner, polling, tuning_monitor
from bincounter.cloud.job_runner import attach
from bincounter.cloud.jobs import Job, read_job
from bincounter.cloud.tuning_job import TuningJob
from bincounter.cloud.tuning_monitor import TuningJobMonitor, fetch_runs
from bincounter.errors import BinCounterError
from bincounter.files import lock
from sagemaker_rehearsal import BUCKET

FAULTS = ("denied", "throttled", "silent")
JOBS = f"s3://{BUCKET}/jobs"
QUICK = """
import os, pathlib
(pathlib.Path(os.environ["SAGEMAKER_BASE_DIR"]) / "checkpoints/config.yaml").write_text("seed: 0")
print("epoch 1 of 1: val/accuracy=0.5")
"""
SLOW = f"{QUICK}\nimport time\ntime.sleep(250)"
# Requests of `attach` -> the end of the message, or "" where the job is followed and fetched without.
ATTACH = {
    "DescribeTrainingJob": "may still run, and be billed: follow with ",
    "DescribeLogStreams": "",
    "GetLogEvents": "",
    f"GET /{BUCKET}": "could not be fetched (",
    f"(GET|HEAD) /{BUCKET}/jobs/.+": "could not be fetched (",
}
FOLLOW = {
    "DescribeHyperParameterTuningJob": "may still run, and be billed: the same command follows it",
    "ListTrainingJobsForHyperParameterTuningJob": "has ended: the same command fetches its trials",
    "DescribeTrainingJob": "has ended: the same command fetches its trials",
}


@pytest.fixture(scope="module")
def plane_account(plane: dict[str, str]) -> Plane:
    return Plane(plane)


@pytest.fixture(scope="module")
def server(plane: dict[str, str]) -> Iterator[Faults]:
    """A server before the rehearsal, and one account of the product, since making its clients takes long."""
    with pytest.MonkeyPatch.context() as patch, faults(plane["AWS_ENDPOINT_URL"]) as server:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in {**plane, "AWS_ENDPOINT_URL": server.endpoint, "AWS_MAX_ATTEMPTS": "1"}.items():
            patch.setenv(name, value)
        patch.setattr(account, "_TIMEOUT", 1.0)
        patch.setattr(account, "_SLOW_TIMEOUT", 1.0)
        patch.setattr(polling, "_RETRY_WINDOW", 0.5)
        patch.setattr(TokenBucket, "acquire", lambda *_, **__: True)  # a throttled client waits longer than the job
        only = account.Account("us-east-1")
        patch.setattr(account, "Account", lambda *_, **__: only)
        yield server


@pytest.fixture
def aws(server: Faults) -> Iterator[Faults]:
    server.heal()
    server.operations.clear()
    yield server
    server.heal()


@pytest.fixture(scope="module")
def ended(plane_account: Plane) -> str:
    """A training job that has completed."""
    plane_account.submit("undisturbed", QUICK)
    plane_account.end("undisturbed")
    return "undisturbed"


@pytest.fixture(scope="module")
def tuned(plane_account: Plane) -> str:
    """A tuning job that has completed, with one trial."""
    return tune(plane_account, "tuned", QUICK)


def tune(plane: Plane, name: str, program: str) -> str:
    plane.ship(name, program)
    ranges = {"CategoricalParameterRanges": [{"Name": "size", "Values": ["32"]}]}
    plane.sagemaker.create_hyper_parameter_tuning_job(**tuning(name, "Grid", ranges, None))
    return name


def recorded(name: str, folder: Path) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(name, 0, folder, "us-east-1", f"{JOBS}/{name}/checkpoints", [], 1.0, rehearsed=True)
    job.save()
    return job


def monitor(name: str, folder: Path) -> TuningJobMonitor:
    job = TuningJob(name, "study", "us-east-1", 1, 1.0, {})
    only: Any = account.Account("us-east-1")
    return TuningJobMonitor(only, job, folder, lambda tuned: [], rehearsed=False)


@contextmanager
def ctrl_c(disturbed: str, stop: str, aws: Faults, *, heals: bool = True, waits: float = 2) -> Iterator[None]:
    """Press Ctrl-C while a job is followed, heal AWS once it was asked to stop the job, and press Ctrl-C again.

    AWS heals ``waits`` seconds after the request to stop; silence is waited for one second.
    """

    def wait_for(operation: str) -> None:
        deadline = time.monotonic() + 60
        while operation not in aws.operations and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)

    def press() -> None:
        wait_for(f"Describe{stop.removeprefix('Stop')}")
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(stop)
        time.sleep(waits)
        if heals:
            aws.heal()
        if disturbed == stop:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_these_are_all_requests(ended: str, tuned: str, aws: Faults, tmp_path: Path) -> None:
    recorded(ended, tmp_path / "run")
    assert attach(tmp_path / "run") == ([tmp_path / "run"], [])
    paths = {f"{way} /{BUCKET}/jobs/{ended}/checkpoints/config.yaml" for way in ("GET", "HEAD")}
    assert set(aws.operations) - paths == set(ATTACH) - {f"(GET|HEAD) /{BUCKET}/jobs/.+"}
    aws.operations.clear()
    described, (trial,) = monitor(tuned, tmp_path).follow()
    assert described["HyperParameterTuningJobStatus"] == trial.job.description["TrainingJobStatus"] == "Completed"
    assert set(FOLLOW) <= set(aws.operations) <= {*FOLLOW, "DescribeLogStreams", "GetLogEvents"}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", ATTACH)
def test_attach(
    operation: str, fault: str, ended: str, aws: Faults, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorded(ended, tmp_path)
    aws.disturb(operation, fault)
    folders, errors = attach(tmp_path)
    if ATTACH[operation]:
        assert ATTACH[operation] in str(errors[0])
        assert str(errors[0]).endswith(f"bincounter attach {tmp_path}")
    else:
        assert (folders, errors) == ([tmp_path], [])
        assert caplog.text.count("The log cannot be read: ") == 1
    aws.heal()
    assert attach(tmp_path) == ([tmp_path], [])
    assert (tmp_path / "config.yaml").exists()


def test_a_run_that_is_resumed_here_is_not_overwritten(ended: str, tuned: str, aws: Faults, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recorded(ended, run)
    with (run / ".lock").open("w") as file:
        assert lock(file, wait=0)
        _, (error,) = attach(run)
    assert f"({run} is in use by another process" in str(error)
    assert not (run / "config.yaml").exists()
    _, trials = monitor(tuned, tmp_path).follow()
    bucket, _, key = trials[0].job.checkpoint_uri.removeprefix("s3://").partition("/")
    account.Account("us-east-1").s3.put_object(Bucket=bucket, Key=f"{key}/config.yaml", Body=b"seed: 0")
    for folder in (run, tmp_path / "0"):
        assert attach(folder) == ([folder], [])
        assert (folder / "config.yaml").read_text() == "seed: 0"
        (folder / "config.yaml").write_text("resumed: here")
    assert attach(run) == ([run], [])
    fetch_runs(account.Account("us-east-1"), trials, tuned)
    _, trials = monitor(tuned, tmp_path).follow()  # as the search's command does when it is repeated
    fetch_runs(account.Account("us-east-1"), trials, tuned)
    assert [(folder / "config.yaml").read_text() for folder in (run, tmp_path / "0")] == ["resumed: here"] * 2


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        ("DescribeTrainingJob", "throttled"),
        ("DescribeTrainingJob", "silent"),
        ("DescribeLogStreams", "denied"),
        ("GetLogEvents", "silent"),
        ("StopTrainingJob", "denied"),
        ("StopTrainingJob", "throttled"),
        ("StopTrainingJob", "silent"),
    ],
)
def test_ctrl_c_stops_a_job(
    operation: str,
    fault: str,
    plane_account: Plane,
    aws: Faults,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = f"stop-{operation}-{fault}"
    plane_account.submit(name, SLOW)
    monkeypatch.setattr(polling, "_RETRY_WINDOW", 60.0)
    monkeypatch.setattr(job_runner, "ask_to_stop", lambda running: running == 1)
    recorded(name, tmp_path)
    aws.disturb(operation, fault)
    with ctrl_c(operation, "StopTrainingJob", aws):
        folders, (error,) = attach(tmp_path)
    assert folders == []
    assert f"{name} was stopped (Stopped)" in str(error)
    assert read_job(tmp_path / "job.json").description["TrainingJobStatus"] == "Stopped"
    warned = f"{name} still runs, and is billed: press Ctrl-C to try again" in caplog.text
    assert warned == (operation == "StopTrainingJob")


def test_ctrl_c_again_while_aws_does_not_answer(
    plane_account: Plane, aws: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(job_runner, "ask_to_stop", lambda _: True)
    monkeypatch.setattr(tuning_monitor, "ask_to_stop", lambda _: True)
    plane_account.submit("impatient", SLOW)
    recorded("impatient", tmp_path)
    aws.disturb("StopTrainingJob", "silent")
    with ctrl_c("StopTrainingJob", "StopTrainingJob", aws, waits=0):
        _, (error,) = attach(tmp_path)
    assert "impatient was stopped (Stopped)" in str(error)
    tune(plane_account, "impatient-too", SLOW)
    aws.disturb("StopHyperParameterTuningJob", "silent")
    with ctrl_c("StopHyperParameterTuningJob", "StopHyperParameterTuningJob", aws, waits=0):
        described, _ = monitor("impatient-too", tmp_path).follow()
    assert described["HyperParameterTuningJobStatus"] == "Stopped"
    assert "press Ctrl-C to try again" not in caplog.text


def test_ctrl_c_stops_the_job_that_can_no_longer_be_followed_too(
    plane_account: Plane, aws: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["unfollowed", "followed"]
    for number, name in enumerate(names):
        plane_account.submit(name, SLOW)
        recorded(name, tmp_path / str(number))
    monkeypatch.setattr(job_runner, "ask_to_stop", lambda running: True)
    aws.refuse("DescribeTrainingJob", "AccessDeniedException", "not authorized", times=1)
    with ctrl_c("DescribeTrainingJob", "StopTrainingJob", aws):
        folders, errors = attach(tmp_path)
    assert folders == []
    assert sum("was stopped (Stopped)" in str(error) for error in errors) == 1
    assert sum("is not allowed" in str(error) for error in errors) == 1
    assert [plane_account.end(name)["TrainingJobStatus"] for name in names] == ["Stopped", "Stopped"]


def test_attach_leaves_out_a_damaged_record(
    ended: str, aws: Faults, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(ended, tmp_path / "0")
    recorded("forgotten", tmp_path / "1")
    damaged = tmp_path / "1" / "job.json"
    damaged.write_text("{")
    assert main(["attach", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(tmp_path / "0")]
    assert err.splitlines()[-1].startswith(
        f"Error: 1 of the jobs of {tmp_path} were not followed: {damaged} is damaged"
    )
    assert not (tmp_path / "1" / "config.yaml").exists()
    assert main(["attach", str(tmp_path / "1")]) == 2


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", FOLLOW)
def test_a_tuning_job_that_has_ended(operation: str, fault: str, tuned: str, aws: Faults, tmp_path: Path) -> None:
    aws.disturb(operation, fault)
    with pytest.raises(BinCounterError, match=rf"\. {tuned} {FOLLOW[operation]}"):
        monitor(tuned, tmp_path).follow()
    aws.heal()
    described, trials = monitor(tuned, tmp_path).follow()
    assert (described["HyperParameterTuningJobStatus"], len(trials)) == ("Completed", 1)


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        ("DescribeHyperParameterTuningJob", "throttled"),
        ("ListTrainingJobsForHyperParameterTuningJob", "denied"),
        ("ListTrainingJobsForHyperParameterTuningJob", "silent"),
        ("DescribeTrainingJob", "denied"),
        ("StopHyperParameterTuningJob", "denied"),
        ("StopHyperParameterTuningJob", "throttled"),
    ],
)
def test_ctrl_c_stops_a_tuning_job(
    operation: str,
    fault: str,
    plane_account: Plane,
    aws: Faults,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = tune(plane_account, f"{operation[:16]}-{fault}", SLOW)
    monkeypatch.setattr(polling, "_RETRY_WINDOW", 60.0)
    monkeypatch.setattr(tuning_monitor, "ask_to_stop", lambda _: True)
    aws.disturb(operation, fault)
    heals = fault != "denied" or operation.startswith("Stop")
    if not heals:
        with (
            pytest.raises(BinCounterError, match="has ended: the same command fetches its trials"),
            ctrl_c(operation, "StopHyperParameterTuningJob", aws, heals=False),
        ):
            monitor(name, tmp_path).follow()
        assert "StopHyperParameterTuningJob" in aws.operations
        return
    with ctrl_c(operation, "StopHyperParameterTuningJob", aws):
        described, trials = monitor(name, tmp_path).follow()
    assert described["HyperParameterTuningJobStatus"] == "Stopped"
    assert [trial.summary["TrainingJobStatus"] for trial in trials] == ["Stopped"]
    warned = f"{name} still runs, and is billed: press Ctrl-C to try again" in caplog.text
    assert warned == operation.startswith("Stop")
