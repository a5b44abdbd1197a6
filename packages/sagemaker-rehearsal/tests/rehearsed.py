"""A rehearsal for all tests of a session, and what they do with it as a user of AWS would."""

import io
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from textwrap import dedent
from typing import Any

import boto3
import pytest

from sagemaker_rehearsal import BUCKET, rehearsed

ROLE = "arn:aws:iam::123456789012:role/rehearsal"
LOG_GROUP = "/aws/sagemaker/TrainingJobs"
ENDED = ("Completed", "Failed", "Stopped")
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
"""Members of a request that SageMaker's Debugger and Profiler inspect."""
SAVES = """
    import os, pathlib
    base = pathlib.Path(os.environ["SAGEMAKER_BASE_DIR"])
    print((base / "input/config/debughookconfig.json").read_text())
    (base / "output/tensors/events").mkdir(parents=True)
    (base / "output/tensors/events/one").write_text("tensors")
    (base / "checkpoints/config.yaml").write_text("seed: 0")
"""
"""Program of such a job."""


class Account:
    """Calls to AWS that tests make."""

    def __init__(self, variables: dict[str, str]) -> None:
        session = boto3.Session(
            aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
            region_name=variables["AWS_REGION"],
        )
        endpoint = variables["AWS_ENDPOINT_URL"]
        self.s3, self.logs, self.sagemaker = (
            session.client(service, endpoint_url=endpoint) for service in ("s3", "logs", "sagemaker")
        )

    def put(self, key: str, body: bytes) -> None:
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=body)

    def get(self, uri: str) -> bytes:
        return self.s3.get_object(Bucket=BUCKET, Key=uri.removeprefix(f"s3://{BUCKET}/"))["Body"].read()

    def keys(self, prefix: str) -> set[str]:
        found = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return {entry["Key"].removeprefix(prefix) for entry in found}

    def archive(self, uri: str) -> dict[str, bytes]:
        with tarfile.open(fileobj=io.BytesIO(self.get(uri))) as archive:
            files = {member.name: archive.extractfile(member) for member in archive.getmembers()}
            return {name: file.read() for name, file in files.items() if file}

    def submit(self, name: str, program: str, **changes: Any) -> None:
        """Create a training job that runs ``program``; ``changes`` are members of the request."""
        self.ship(name, program)
        self.sagemaker.create_training_job(**request(name, **changes))

    def ship(self, name: str, program: str) -> None:
        """Put ``program`` where :func:`request` looks for it."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            source = dedent(program).encode()
            member = tarfile.TarInfo("start.py")
            member.size = len(source)
            archive.addfile(member, io.BytesIO(source))
        self.put(f"source/{name}.tar.gz", packed.getvalue())

    def describe(self, name: str) -> dict[str, Any]:
        return self.sagemaker.describe_training_job(TrainingJobName=name)

    def until(self, name: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + 100
        while not wanted(description := self.describe(name)):
            assert time.monotonic() < deadline, description
            time.sleep(0.1)
        return description

    def end(self, name: str) -> dict[str, Any]:
        return self.until(name, lambda description: description["TrainingJobStatus"] in ENDED)

    def wait_for_object(self, prefix: str) -> None:
        deadline = time.monotonic() + 60
        while not self.keys(prefix):
            assert time.monotonic() < deadline, f"nothing at {prefix}"
            time.sleep(0.1)

    def lines(self, name: str) -> dict[str, list[str]]:
        """The lines of each of a job's log streams, by the stream's name."""
        streams = self.logs.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix=f"{name}/")["logStreams"]
        lines = {}
        for stream in sorted(stream["logStreamName"] for stream in streams):
            answer = self.logs.get_log_events(logGroupName=LOG_GROUP, logStreamName=stream, startFromHead=True)
            lines[stream] = [event["message"] for event in answer["events"]]
        return lines

    def log(self, name: str) -> list[str]:
        return [line for stream in self.lines(name).values() for line in stream]


def request(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "TrainingJobName": name,
        "RoleArn": ROLE,
        "AlgorithmSpecification": {"TrainingImage": "image", "TrainingInputMode": "File"},
        "HyperParameters": {
            "sagemaker_program": "start.py",
            "sagemaker_submit_directory": f"s3://{BUCKET}/source/{name}.tar.gz",
        },
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/jobs"},
        "CheckpointConfig": {"S3Uri": f"s3://{BUCKET}/jobs/{name}/checkpoints"},
        "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 10},
        "StoppingCondition": {"MaxRuntimeInSeconds": 300},
        **changes,
    }


def tuning(name: str, strategy: str, ranges: dict[str, Any], jobs: int | None, **changes: Any) -> dict[str, Any]:
    """A request; ``changes`` are members of it, of its configuration, or of its definition of training jobs."""
    training = request(name)
    config = {
        "Strategy": strategy,
        "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "val/accuracy"},
        "ResourceLimits": {
            **({} if jobs is None else {"MaxNumberOfTrainingJobs": jobs}),
            "MaxParallelTrainingJobs": changes.pop("parallel", 2),
        },
        "ParameterRanges": ranges,
        "RandomSeed": 0,
    }
    metrics = [{"Name": "val/accuracy", "Regex": r"val/accuracy=([-+0-9.eE]+|nan)"}]
    definition = {
        "StaticHyperParameters": training["HyperParameters"],
        "AlgorithmSpecification": {**training["AlgorithmSpecification"], "MetricDefinitions": metrics},
        "CheckpointConfig": {"S3Uri": f"s3://{BUCKET}/tuning/{name}/checkpoints"},
        **{kept: training[kept] for kept in ("RoleArn", "OutputDataConfig", "ResourceConfig", "StoppingCondition")},
    }
    outer: dict[str, Any] = {key: changes.pop(key) for key in ("WarmStartConfig", "Autotune") if key in changes}
    for key in ("Strategy", "StrategyConfig", "HyperParameterTuningJobObjective", "TrainingJobEarlyStoppingType"):
        if key in changes:
            config[key] = changes.pop(key)
    return {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobConfig": config,
        "TrainingJobDefinition": {**definition, **changes},
        **outer,
    }


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A control plane; the variables that lead AWS clients to it, to be added to an environment without AWS's own."""
    with rehearsed(tmp_path_factory.mktemp("rehearsal"), grace=0.5) as variables:
        yield variables


@pytest.fixture
def at_plane(plane: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The control plane, with this process's environment set so that every AWS client finds it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in plane.items():
        monkeypatch.setenv(name, value)
    return plane


@pytest.fixture
def account(at_plane: dict[str, str]) -> Account:
    return Account(at_plane)
