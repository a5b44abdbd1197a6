"""The rehearsal's control plane, driven with boto3 alone and with tiny programs in place of a training."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.exceptions import ClientError
from rehearsed import ROLE, Account, request

from sagemaker_rehearsal import BUCKET, StartError, rehearsed, without_aws

pytestmark = pytest.mark.long


def spot(interruptions: str) -> dict[str, Any]:
    return {
        "EnableManagedSpotTraining": True,
        "StoppingCondition": {"MaxRuntimeInSeconds": 300, "MaxWaitTimeInSeconds": 600},
        "Environment": {"REHEARSAL_INTERRUPTIONS": interruptions, "ASKED": "yes"},
    }


def channel(name: str, uri: str, **source: str) -> dict[str, Any]:
    return {"ChannelName": name, "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri, **source}}}


BASE = """
import json, os, pathlib, sys, time
base = pathlib.Path(os.environ["SAGEMAKER_BASE_DIR"])
"""


def test_a_job_that_completes(account: Account) -> None:
    account.put("photos/one/a.jpg", b"a")
    account.put("photos/b.jpg", b"bb")
    account.put("photos-of-others/c.jpg", b"c")
    program = BASE + dedent("""
        print("arguments", json.dumps(sys.argv[1:]))
        data = base / "input/data"
        print("data", sorted((str(p.relative_to(data)), p.stat().st_size) for p in data.rglob("*.jpg")))
        print("config", (base / "input/config/inputdataconfig.json").read_text())
        print("names", os.environ["TRAINING_JOB_NAME"], os.environ["TRAINING_JOB_ARN"], os.environ["ASKED"])
        print("loss=0.5\\nloss=0.25\\n\\nüber")
        print("x" * 100_000)
        (base / "model/weights").write_text("w")
        (base / "output/data/note").write_text("n")
        (base / "checkpoints/.hydra").mkdir()
        (base / "checkpoints/.hydra/config.yaml").write_text("c")
    """)
    sent = {"lr": "0.1", "text": 'it\'s "two" words = ü', "sagemaker_program": "start.py"}
    sent["sagemaker_submit_directory"] = f"s3://{BUCKET}/source/completes.tar.gz"
    algorithm = {
        "TrainingImage": "image",
        "TrainingInputMode": "FastFile",
        "MetricDefinitions": [{"Name": "loss", "Regex": r"loss=([\d.]+)"}, {"Name": "absent", "Regex": "no=(.*)"}],
    }
    account.submit(
        "completes",
        program,
        HyperParameters=sent,
        AlgorithmSpecification=algorithm,
        Environment={"ASKED": "yes"},
        InputDataConfig=[
            channel("all", f"s3://{BUCKET}/photos/"),
            channel("folder", f"s3://{BUCKET}/photos/one"),
            channel("file", f"s3://{BUCKET}/photos/b.jpg"),
        ],
        Tags=[{"Key": "project", "Value": "bins"}],
    )
    ended = account.end("completes")

    assert ended["TrainingJobStatus"] == ended["SecondaryStatus"] == "Completed"
    statuses = [entry["Status"] for entry in ended["SecondaryStatusTransitions"]]
    assert statuses == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert all(entry["StartTime"] <= entry["EndTime"] for entry in ended["SecondaryStatusTransitions"])
    assert ended["HyperParameters"] == sent
    assert ended["AlgorithmSpecification"] == algorithm
    assert ended["EnableManagedSpotTraining"] is False
    assert ended["BillableTimeInSeconds"] == ended["TrainingTimeInSeconds"] >= 1
    assert ended["CreationTime"] <= ended["TrainingStartTime"] <= ended["TrainingEndTime"]
    assert [(metric["MetricName"], metric["Value"]) for metric in ended["FinalMetricDataList"]] == [("loss", 0.25)]
    assert "FailureReason" not in ended

    log = account.log("completes")
    said = {line.split()[0]: line for line in log if line}
    assert json.loads(said["arguments"].removeprefix("arguments ")) == ["--lr", "0.1", "--text", sent["text"]]
    folders = [("all/b.jpg", 2), ("all/one/a.jpg", 1), ("file/b.jpg", 2), ("folder/a.jpg", 1)]
    assert said["data"] == f"data {folders}"
    assert '"TrainingInputMode": "FastFile", "S3DistributionType": "FullyReplicated"' in said["config"]
    assert said["names"] == f"names completes {ended['TrainingJobArn']} yes"
    at = log.index("loss=0.5")
    assert log[at : at + 3] == ["loss=0.5", "loss=0.25", "über"]
    assert "".join(log).count("x" * 50_000) == 2

    assert ended["ModelArtifacts"]["S3ModelArtifacts"] == f"s3://{BUCKET}/jobs/completes/output/model.tar.gz"
    assert account.archive(ended["ModelArtifacts"]["S3ModelArtifacts"]) == {"weights": b"w"}
    assert account.archive(f"s3://{BUCKET}/jobs/completes/output/output.tar.gz") == {"note": b"n"}
    assert account.get("jobs/completes/checkpoints/.hydra/config.yaml") == b"c"


def test_a_job_that_fails_tells_its_own_sentence(account: Account) -> None:
    program = BASE + dedent("""
        (base / "checkpoints/last.ckpt").write_text("1")
        (base / "output/failure").write_text("the bins are empty: fill them")
        sys.exit(3)
    """)
    account.submit("fails", program)
    ended = account.end("fails")
    assert ended["TrainingJobStatus"] == ended["SecondaryStatus"] == "Failed"
    assert ended["FailureReason"] == "AlgorithmError: the bins are empty: fill them, exit code: 1"
    assert "ModelArtifacts" not in ended
    assert account.keys("jobs/fails/") == {"checkpoints/last.ckpt"}


def test_a_program_that_breaks_is_told_by_the_toolkit(account: Account) -> None:
    account.submit("breaks", "raise ValueError('no such thing')")
    ended = account.end("breaks")
    assert ended["FailureReason"].startswith("AlgorithmError: ExecuteUserScriptError")
    assert "ValueError: no such thing" in account.log("breaks")


def test_an_interrupted_job_counts_on_from_its_checkpoint(account: Account) -> None:
    program = BASE + dedent("""
        last = base / "checkpoints/last.ckpt"
        count = int(last.read_text()) + 1 if last.exists() else 1
        print("counted", count, "left over:", sorted(p.name for p in (base / "model").iterdir()))
        print("environment", [name for name in os.environ if name.startswith("REHEARSAL")], os.environ["ASKED"])
        (base / f"model/after-{count}").touch()
        last.write_text(str(count))
        time.sleep(0 if count == 3 else 100)
    """)
    account.submit("interrupted", program, **spot("0,0.5"))
    ended = account.end("interrupted")
    assert ended["TrainingJobStatus"] == "Completed"
    statuses = [entry["Status"] for entry in ended["SecondaryStatusTransitions"]]
    attempt = ["Starting", "Downloading", "Training"]
    assert statuses == [*attempt, "Interrupted", *attempt, "Interrupted", *attempt, "Uploading", "Completed"]
    assert account.get("jobs/interrupted/checkpoints/last.ckpt") == b"3"
    assert account.archive(ended["ModelArtifacts"]["S3ModelArtifacts"]) == {"after-3": b""}
    assert ended["BillableTimeInSeconds"] < ended["TrainingTimeInSeconds"]

    streams = account.lines("interrupted")
    assert len(streams) == 3
    counted = [line for lines in streams.values() for line in lines if line.startswith("counted")]
    assert counted == [f"counted {count} left over: []" for count in (1, 2, 3)]
    assert "environment [] yes" in account.log("interrupted")


def test_an_interruption_waits_for_the_named_checkpoint(account: Account) -> None:
    program = BASE + dedent("""
        (base / "checkpoints/settings").touch()
        last = base / "checkpoints/last.ckpt"
        print("resumed" if last.exists() else "begun")
        if not last.exists():
            time.sleep(1)  # several looks at the folder
            print("saving")
            last.touch()
            time.sleep(100)
    """)
    changes = spot("0")
    changes["Environment"]["REHEARSAL_INTERRUPT_AFTER"] = "last.ckpt"
    account.submit("waits", program, **changes)
    assert account.end("waits")["TrainingJobStatus"] == "Completed"
    printed = [line for line in account.log("waits") if line in ("begun", "saving", "resumed")]
    assert printed == ["begun", "saving", "resumed"]


def test_sigterm_reaches_only_the_toolkit_and_checkpoints_are_kept(account: Account) -> None:
    program = BASE + dedent("""
        import signal
        signal.signal(signal.SIGTERM, lambda *_: (base / "checkpoints/heard").touch())
        while True:
            (base / "beat").write_text(str(time.time()))
            (base / "beat").replace(base / "checkpoints/beats")  # the kill may come in the middle of writing
            time.sleep(0.05)
    """)
    account.submit("stopped", program)
    account.wait_for_object("jobs/stopped/checkpoints/beats")
    account.sagemaker.stop_training_job(TrainingJobName="stopped")
    stopping = account.describe("stopped")
    assert stopping["TrainingJobStatus"] in ("Stopping", "Stopped")
    ended = account.end("stopped")
    assert ended["TrainingJobStatus"] == ended["SecondaryStatus"] == "Stopped"
    statuses = [entry["Status"] for entry in ended["SecondaryStatusTransitions"]]
    assert statuses == ["Starting", "Downloading", "Training", "Stopping", "Uploading", "Stopped"]
    assert account.keys("jobs/stopped/checkpoints/") == {"beats"}
    asked = next(entry for entry in ended["SecondaryStatusTransitions"] if entry["Status"] == "Stopping")["StartTime"]
    assert float(account.get("jobs/stopped/checkpoints/beats")) > asked.timestamp()
    assert "ModelArtifacts" not in ended
    with pytest.raises(ClientError, match="its status is Stopped"):
        account.sagemaker.stop_training_job(TrainingJobName="stopped")


def test_a_job_ends_after_its_maximal_runtime_and_leaves_its_model(account: Account) -> None:
    program = BASE + '(base / "model/best").touch()\ntime.sleep(100)'
    account.submit("too-long", program, StoppingCondition={"MaxRuntimeInSeconds": 2})
    ended = account.end("too-long")
    assert (ended["TrainingJobStatus"], ended["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    assert account.archive(ended["ModelArtifacts"]["S3ModelArtifacts"]) == {"best": b""}


def test_a_spot_job_ends_after_its_maximal_wait(account: Account) -> None:
    limits = {"MaxRuntimeInSeconds": 2, "MaxWaitTimeInSeconds": 2}
    account.submit(
        "waited",
        BASE + '(base / "checkpoints/last.ckpt").touch()\ntime.sleep(100)',
        **{**spot("0,0,0,0,0,0"), "StoppingCondition": limits},
    )
    ended = account.end("waited")
    assert (ended["TrainingJobStatus"], ended["SecondaryStatus"]) == ("Stopped", "MaxWaitTimeExceeded")


TWO = {"ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 10}}


def test_two_instances_see_each_other(account: Account) -> None:
    for key in "abc":
        account.put(f"shards/{key}", b"")
    program = BASE + dedent("""
        resources = json.loads((base / "input/config/resourceconfig.json").read_text())
        me = resources["current_host"]
        print("see", me, resources["hosts"], sorted(os.listdir(base / "input/data/shard")))
        assert resources["instance_groups"][0]["hosts"] == resources["hosts"]
        assert resources["network_interface_name"] == "lo"
        (base / "checkpoints" / me).touch()
        (base / "model" / me).touch()
    """)
    shard = channel("shard", f"s3://{BUCKET}/shards/", S3DataDistributionType="ShardedByS3Key")
    account.submit("two", program, InputDataConfig=[shard], **TWO)
    ended = account.end("two")
    assert ended["TrainingJobStatus"] == "Completed"
    hosts = ["127.0.0.1", "127.0.0.2"]
    streams = account.lines("two")
    assert [name.rsplit("-", 1)[0] for name in streams] == ["two/algo-1", "two/algo-2"]
    said = [next(line for line in lines if line.startswith("see")) for lines in streams.values()]
    assert said == [f"see 127.0.0.1 {hosts} ['a', 'c']", f"see 127.0.0.2 {hosts} ['b']"]
    assert account.keys("jobs/two/checkpoints/") == set(hosts)
    assert set(account.archive(ended["ModelArtifacts"]["S3ModelArtifacts"])) == set(hosts)


def test_one_failing_instance_ends_the_other(account: Account) -> None:
    program = BASE + dedent("""
        if os.environ["SM_CURRENT_HOST"] == "127.0.0.1":
            time.sleep(100)
        (base / "output/failure").write_text("no disk left")
        sys.exit(1)
    """)
    account.submit("half", program, **TWO)
    assert account.end("half")["FailureReason"] == "AlgorithmError: no disk left, exit code: 1"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        (f"s3://{BUCKET}/nothing/here", "NoSuchKey: No S3 objects found under S3 URL"),
        ("s3://no-such-bucket-anywhere/x", "NoSuchBucket: "),
    ],
)
def test_a_channel_without_data_fails_the_job(account: Account, uri: str, reason: str) -> None:
    name = reason.partition(":")[0]
    account.submit(name, "", InputDataConfig=[channel("bins", uri)])
    ended = account.end(name)
    assert ended["TrainingJobStatus"] == "Failed"
    assert ended["FailureReason"].startswith(f"ClientError: Data download failed:{reason}")


SPOT = {"EnableManagedSpotTraining": True}
RESOURCES = {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 10}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"TrainingJobName": "x" * 64}, "at 'trainingJobName'.*less than or equal to 63"),
        ({"TrainingJobName": "under_score"}, "at 'trainingJobName'.*regular expression"),
        ({"RoleArn": "arn:aws:iam::1:role/me-and-myself"}, "at 'roleArn'.*regular expression"),
        (
            {"ResourceConfig": {**RESOURCES, "InstanceType": "ml.nothing"}},
            "resourceConfig.instanceType.*enum value set",
        ),
        ({"HyperParameters": {f"k{n}": "" for n in range(101)}}, "less than or equal to 100"),
        ({"HyperParameters": {"k" * 257: ""}}, "less than or equal to 256"),
        ({"HyperParameters": {"k": "v" * 2501}}, "less than or equal to 2500"),
        (SPOT, "needs MaxWaitTimeInSeconds"),
        ({**SPOT, "StoppingCondition": {"MaxRuntimeInSeconds": 9, "MaxWaitTimeInSeconds": 8}}, "at least MaxRuntime"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 8, "MaxWaitTimeInSeconds": 9}}, "managed spot training only"),
        ({**spot("1"), "ResourceConfig": {**RESOURCES, "KeepAlivePeriodInSeconds": 60}}, "warm pool"),
        ({"AlgorithmSpecification": {"TrainingInputMode": "File"}}, "TrainingImage"),
        ({"InputDataConfig": [channel("a", f"s3://{BUCKET}/"), channel("a", f"s3://{BUCKET}/")]}, "channel twice"),
        (
            {"CheckpointConfig": {"S3Uri": f"s3://{BUCKET}/", "LocalPath": "/elsewhere"}},
            "checkpoint paths other than /opt",
        ),
        ({"Environment": {"REHEARSAL_INTERRUPTIONS": "1"}}, "needs a managed spot job with a CheckpointConfig"),
        (spot("1;2"), "must be seconds"),
    ],
)
def test_a_wrong_request_is_refused(account: Account, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ClientError, match=message) as refusal:
        account.sagemaker.create_training_job(**request("refused", **changes))
    assert refusal.value.response["Error"]["Code"] == "ValidationException"
    assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400


def test_names_are_unique_and_jobs_are_listed(account: Account) -> None:
    for name in ("listed-b", "listed-a"):
        account.submit(name, "pass")
        account.end(name)
    with pytest.raises(account.sagemaker.exceptions.ResourceInUse, match="listed-a"):
        account.sagemaker.create_training_job(**request("listed-a"))
    listed = account.sagemaker.list_training_jobs(NameContains="listed", StatusEquals="Completed", SortBy="Name")
    assert [job["TrainingJobName"] for job in listed["TrainingJobSummaries"]] == ["listed-a", "listed-b"]
    pages = account.sagemaker.get_paginator("list_training_jobs").paginate(NameContains="listed", MaxResults=1)
    assert [job["TrainingJobName"] for page in pages for job in page["TrainingJobSummaries"]] == [
        "listed-b",
        "listed-a",
    ]
    for call in (account.sagemaker.describe_training_job, account.sagemaker.stop_training_job):
        with pytest.raises(ClientError, match="Requested resource not found"):
            call(TrainingJobName="never-made")


def test_what_the_plane_does_not_know_is_motos(account: Account) -> None:
    assert account.sagemaker.list_pipelines()["PipelineSummaries"] == []
    iam = boto3.Session().client("iam")
    assert iam.get_role(RoleName="rehearsal")["Role"]["Arn"] == ROLE


def test_a_plane_that_cannot_start_raises_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "moto.py").write_text("raise ImportError('no moto for this test')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(StartError, match="did not start: ImportError: no moto for this test"), rehearsed(tmp_path):
        pass


def test_no_job_outlives_the_plane(tmp_path: Path) -> None:
    program = BASE + '(base / "checkpoints/pid").write_text(str(os.getpid()))\ntime.sleep(300)'
    with rehearsed(tmp_path) as variables:
        account = Account(variables)
        account.submit("outlives", program)
        account.wait_for_object("jobs/outlives/checkpoints/pid")
        pid = int(account.get("jobs/outlives/checkpoints/pid"))
        assert _is_running(pid)
    _wait_for_the_end(pid)


def test_the_plane_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = """
        import os, sys
        from pathlib import Path
        from sagemaker_rehearsal import rehearsed
        with rehearsed(Path(sys.argv[1])) as variables:
            print(variables["AWS_ENDPOINT_URL"], flush=True)
            os.kill(os.getpid(), 9)
    """
    command = [sys.executable, "-c", dedent(program), str(tmp_path)]
    parent = subprocess.run(command, env=without_aws(os.environ), capture_output=True, text=True, check=False)
    address = urlsplit(parent.stdout.strip())
    assert address.port
    deadline = time.monotonic() + 30
    while not _refused(address.port) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _refused(address.port)


def _refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # it is about to end
        return False
    return False


def _command_line(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_text()
    except OSError:
        return ""


def _is_running(pid: int) -> bool:
    return bool(_command_line(pid))  # a zombie has none


def _wait_for_the_end(pid: int) -> None:
    deadline = time.monotonic() + 30
    while _is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.05)
