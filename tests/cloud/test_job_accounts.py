"""Jobs in other regions and accounts than those of the command that looks for them, against moto."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from aws_servers import moto_server
from spent import recorded

from bincounter.cloud.account import Account
from bincounter.cloud.job_runner import attach
from bincounter.cloud.jobs import find_submitted
from bincounter.errors import ConfigError
from sagemaker_rehearsal import client_environment

ROLE = "arn:aws:iam::123456789012:role/bincounter"


@pytest.fixture(autouse=True)
def moto(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with moto_server() as address:
        for name, value in client_environment(address).items():
            monkeypatch.setenv(name, value)
        yield


def submitted(folder: Path, region: str) -> str:
    """A job that has completed, with its record; returns its name."""
    job = recorded(folder, None, region=region, rehearsed=False, checkpoint_uri=f"s3://runs/{folder.name}")
    boto3.client("sagemaker", region).create_training_job(
        TrainingJobName=job.name,
        AlgorithmSpecification={"TrainingImage": "image:1", "TrainingInputMode": "File"},
        RoleArn=ROLE,
        OutputDataConfig={"S3OutputPath": "s3://runs/models"},
        ResourceConfig={"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 50},
        StoppingCondition={"MaxRuntimeInSeconds": 60},
    )
    return job.name


def test_each_job_is_looked_for_in_its_own_region(tmp_path: Path) -> None:
    s3 = boto3.client("s3", "us-east-1")
    s3.create_bucket(Bucket="runs")
    for number, region in enumerate(("us-east-1", "eu-west-1")):
        submitted(tmp_path / str(number), region)
        s3.put_object(Bucket="runs", Key=f"{number}/config.yaml", Body=b"seed: 0")
    assert attach(tmp_path) == ([tmp_path / "0", tmp_path / "1"], [])
    assert (tmp_path / "1" / "config.yaml").exists()
    found = find_submitted(Account("us-east-1"), tmp_path / "1")
    assert found is not None and found.description["TrainingJobStatus"] == "Completed"


def test_the_job_of_another_account_is_not_forgotten(tmp_path: Path) -> None:
    submitted(tmp_path, "us-east-1")
    record = tmp_path / "job.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "name": "theirs"}))
    with pytest.raises(ConfigError, match=r"job\.json names the job theirs, which this account does not have in us-e"):
        find_submitted(Account("us-east-1"), tmp_path)
    assert record.exists()
    record.write_text(json.dumps({**json.loads(record.read_text()), "rehearsed": True}))  # and its rehearsal has ended
    assert find_submitted(Account("us-east-1"), tmp_path) is None
    assert not record.exists()
