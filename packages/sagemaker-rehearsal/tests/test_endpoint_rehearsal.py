"""Requests for models, endpoints and transform jobs that the control plane rejects; no container starts."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from rehearsed import ROLE, Account

from sagemaker_rehearsal import BUCKET, keeper


def packed(**files: str) -> bytes:
    """An archive of files, their dots written ``__``."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name.replace("__", "."))
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return archive.getvalue()


def model(account: Account, name: str) -> str:
    """Create a model whose archive is ``models/NAME.tar.gz``; returns its ARN."""
    container = {"Image": "ray:serve", "ModelDataUrl": f"s3://{BUCKET}/models/{name}.tar.gz"}
    return account.sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer=container)["ModelArn"]


def configuration(account: Account, name: str, model_name: str) -> None:
    variant = {"VariantName": "AllTraffic", "ModelName": model_name, "InstanceType": "ml.m5.large"}
    variants = [{**variant, "InitialInstanceCount": 1}]
    account.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants)


def failed(account: Account, name: str, archive: bytes | None) -> dict[str, Any]:
    """An endpoint of an archive that cannot be served, once it has failed."""
    if archive is not None:
        account.put(f"models/{name}.tar.gz", archive)
    model(account, name)
    configuration(account, name, name)
    account.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    deadline = time.monotonic() + 60
    while (described := account.sagemaker.describe_endpoint(EndpointName=name))["EndpointStatus"] == "Creating":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return described


@pytest.mark.parametrize(
    ("name", "archive", "says"),
    [
        ("absent", None, "Could not find model data"),
        ("damaged", b"no archive", "Failed to extract"),
        ("empty", packed(README__md="nothing"), "no config.yaml"),
        ("needy", packed(**{"code/requirements__txt": "no-such-distribution-of-ours\n"}), "No matching distribution"),
    ],
)
def test_an_endpoint_that_cannot_start_says_why_in_one_paragraph(
    account: Account, name: str, archive: bytes | None, says: str
) -> None:
    described = failed(account, name, archive)
    assert described["EndpointStatus"] == "Failed"
    assert says in described["FailureReason"]
    assert "\n" not in described["FailureReason"]
    with pytest.raises(ClientError, match="in-progress"):
        account.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=name)
    with pytest.raises(ClientError, match="is Failed"):
        boto3.client("sagemaker-runtime").invoke_endpoint(EndpointName=name, Body=b"photo")
    account.sagemaker.delete_endpoint(EndpointName=name)


def test_a_model_that_was_deleted_fails_the_endpoint(account: Account) -> None:
    model(account, "fleeting")
    configuration(account, "fleeting", "fleeting")
    account.sagemaker.delete_model(ModelName="fleeting")
    account.sagemaker.create_endpoint(EndpointName="fleeting", EndpointConfigName="fleeting")
    deadline = time.monotonic() + 30
    while (end := account.sagemaker.describe_endpoint(EndpointName="fleeting"))["EndpointStatus"] == "Creating":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert 'Could not find model "fleeting"' in end["FailureReason"]


def test_names_are_taken_and_missing_ones_are_not_found(account: Account) -> None:
    model(account, "twice")
    with pytest.raises(ClientError, match="Cannot create already existing model"):
        model(account, "twice")
    with pytest.raises(ClientError, match='Could not find model "never"'):
        configuration(account, "never", "never")
    with pytest.raises(ClientError, match='Could not find endpoint configuration "never"'):
        account.sagemaker.create_endpoint(EndpointName="never", EndpointConfigName="never")
    with pytest.raises(ClientError, match='Could not find endpoint "never"'):
        account.sagemaker.describe_endpoint(EndpointName="never")


def test_the_runtime_bounds_bodies_and_knows_its_endpoints(account: Account) -> None:
    runtime = boto3.client("sagemaker-runtime")
    with pytest.raises(ClientError, match="not found"):
        runtime.invoke_endpoint(EndpointName="never", Body=b"photo")
    failed(account, "bounded", None)
    with pytest.raises(ClientError, match="more than 25000000 bytes") as refused:
        runtime.invoke_endpoint(EndpointName="bounded", Body=bytes(25_000_001))
    assert refused.value.response["Error"]["Code"] == "ValidationError"


def test_what_is_ours_has_tags_here_and_what_is_motos_has_them_there(account: Account) -> None:
    group = account.sagemaker.create_model_package_group(
        ModelPackageGroupName="kept-by-moto", Tags=[{"Key": "project", "Value": "bins"}]
    )["ModelPackageGroupArn"]
    for arn in (model(account, "tagged"), group):
        account.sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "more", "Value": "yes"}])
        assert {"Key": "more", "Value": "yes"} in account.sagemaker.list_tags(ResourceArn=arn)["Tags"]
    account.sagemaker.delete_tags(ResourceArn=group, TagKeys=["more"])
    assert account.sagemaker.list_tags(ResourceArn=group)["Tags"] == [{"Key": "project", "Value": "bins"}]


def test_a_transform_job_needs_objects_that_the_rehearsal_can_send(account: Account) -> None:
    model(account, "batched")
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/nothing/"}}
    with pytest.raises(ClientError, match="does not support splitting of objects"):
        account.sagemaker.create_transform_job(
            TransformJobName="split",
            ModelName="batched",
            TransformInput={"DataSource": source, "SplitType": "Line"},
            TransformOutput={"S3OutputPath": f"s3://{BUCKET}/answers"},
            TransformResources={"InstanceType": "ml.m5.large", "InstanceCount": 1},
        )


def test_containers_end_with_a_killed_control_plane(tmp_path: Path) -> None:
    leaving = tmp_path / "leaving.py"  # like Ray's: in a session of its own, with a parent that ends
    leaving.write_text(
        "import os, pathlib, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork(): os._exit(0)\n"
        f"    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    plane = tmp_path / "plane.py"
    plane.write_text(
        "import subprocess, sys\nsubprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True).wait()\n"
    )
    command = [sys.executable, str(plane), sys.executable, "-I", str(keeper.__file__), sys.executable, str(leaving)]
    with subprocess.Popen(command) as process:
        _until(lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text()))
        left = int((tmp_path / "pid").read_text())
        os.kill(left, 0)
        process.send_signal(signal.SIGKILL)
    _until(lambda: not Path(f"/proc/{left}").exists())


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)
