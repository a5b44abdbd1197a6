"""Requests of deploy.py to SageMaker and the resources it leaves, against moto, whose endpoints exist at once."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from aws_faults import Faults, faults
from deployments import ROLE, act

from bincounter.cloud.account import Account
from bincounter.cloud.endpoints import batch_transform
from bincounter.errors import BinCounterError, ConfigError, ResourceError

IMAGE = "target.image=123456789012.dkr.ecr.us-east-1.amazonaws.com/ray:1"
REALTIME = ("target=realtime", f"target.role={ROLE}", IMAGE)
SCALED = (
    "target.request.ScalableTarget={MinCapacity:1,MaxCapacity:4}",
    "target.request.ScalingPolicy.TargetTrackingScalingPolicyConfiguration={TargetValue:600,"
    "PredefinedMetricSpecification:{PredefinedMetricType:SageMakerVariantInvocationsPerInstance}}",
)


@pytest.fixture
def aws(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    for name in ("PROFILE", "SESSION_TOKEN", "DEFAULT_REGION"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    with faults(moto) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


def made(aws: Faults) -> list[str]:
    """The operations that changed something, in order."""
    return [name for name in aws.operations if re.match("(Create|Delete|Update|Put|Register|Deregister)", name)]


def test_a_second_deployment_of_the_same_changes_nothing(
    aws: Faults, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert act(*REALTIME, "action=deploy", "name=twice", archive=archive) == 0
    assert made(aws) == ["CreateModel", "CreateEndpointConfig", "CreateEndpoint"]
    assert act(*REALTIME, "action=deploy", "name=twice", archive=archive) == 0
    assert len(made(aws)) == 3
    assert capsys.readouterr().out.splitlines()[-1].endswith("/endpoints/twice/invocations")


def test_another_deployment_of_the_name_is_refused(aws: Faults, archive: Path) -> None:
    act(*REALTIME, "action=deploy", "name=taken", archive=archive)
    with pytest.raises(ConfigError, match="use action=update, or another name"):
        act(*REALTIME, "action=deploy", "name=taken", "target.instance_count=2", archive=archive)
    assert len(made(aws)) == 3


def test_status_and_list_say_what_bills(aws: Faults, archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    act(*REALTIME, "action=deploy", "name=billed", "target.instance_count=2", *SCALED, archive=archive)
    act("target=realtime", "action=status", "name=billed")
    status = capsys.readouterr().out
    assert re.search(r"^state +InService since", status, re.MULTILINE)
    assert re.search(r"^on +2 x ml.m5.xlarge$", status, re.MULTILINE)
    assert re.search(r"^autoscaling +1 to 4$", status, re.MULTILINE)
    assert re.search(r"^bills +0.46 USD/h$", status, re.MULTILINE)
    client = boto3.client("sagemaker", "us-east-1")
    config = client.describe_endpoint(EndpointName="billed")["EndpointConfigName"]
    client.create_endpoint(EndpointName="of-somebody", EndpointConfigName=config)
    act("target=realtime", "action=list")
    listed = capsys.readouterr().out
    assert "billed\tInService\t2 x ml.m5.xlarge\t0.46 USD/h" in listed
    assert "of-somebody" not in listed and "1 endpoint, not of bincounter" in listed
    client.delete_endpoint(EndpointName="of-somebody")


def test_delete_leaves_nothing_that_bills(
    aws: Faults, archive: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    act(*REALTIME, "action=deploy", "name=gone", *SCALED, archive=archive)
    act(*REALTIME, "action=deploy", "name=gone-too", archive=archive)
    capsys.readouterr()
    aws.operations.clear()
    act("target=realtime", "action=delete", "name=gone", "dry_run=true")
    assert not made(aws)
    assert re.findall(r'"operation": "(.*)"', capsys.readouterr().out) == [
        "sagemaker:DeleteEndpoint",
        "application-autoscaling:DeregisterScalableTarget",
        "sagemaker:DeleteEndpointConfig",
        "sagemaker:DeleteModel",
    ]
    assert act("target=realtime", "action=delete", "name=gone") == 0
    assert made(aws) == ["DeleteEndpoint", "DeregisterScalableTarget", "DeleteEndpointConfig", "DeleteModel"]
    client = boto3.client("sagemaker", "us-east-1")
    names = [config["EndpointConfigName"] for config in client.list_endpoint_configs()["EndpointConfigs"]]
    assert not [name for name in names if re.fullmatch("gone-[0-9a-f]{8}", name)]
    assert [name for name in names if re.fullmatch("gone-too-[0-9a-f]{8}", name)]
    assert not boto3.client("application-autoscaling", "us-east-1").describe_scalable_targets(
        ServiceNamespace="sagemaker", ResourceIds=["endpoint/gone/variant/AllTraffic"]
    )["ScalableTargets"]
    with caplog.at_level("INFO"):
        assert act("target=realtime", "action=delete", "name=gone") == 0
    assert "No endpoint gone, and no resources of it, in us-east-1: nothing to delete." in caplog.text


def test_what_was_left_is_listed_as_free(aws: Faults, archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    act(*REALTIME, "action=deploy", "name=left", archive=archive)
    boto3.client("sagemaker", "us-east-1").delete_endpoint(EndpointName="left")
    capsys.readouterr()
    act("target=realtime", "action=list")
    assert re.search(r"Left over, and free: .*left-[0-9a-f]{8}", capsys.readouterr().out)
    act("target=realtime", "action=delete", "name=left")
    act("target=realtime", "action=list")
    assert "left-" not in capsys.readouterr().out


def test_what_was_made_for_a_refused_endpoint_is_deleted(aws: Faults, archive: Path) -> None:
    aws.refuse(
        "CreateEndpoint",
        "ResourceLimitExceeded",
        "The account-level service limit 'ml.m5.xlarge for endpoint usage' is 0 Instances, with current utilization of "
        "0 Instances and a request delta of 1 Instances. Please contact AWS support.",
    )
    with pytest.raises(ResourceError, match=r"the quota 'ml\.m5\.xlarge for endpoint usage' of this account is 0, 0"):
        act(*REALTIME, "action=deploy", "name=refused", archive=archive)
    asked = ["CreateModel", "CreateEndpointConfig", "CreateEndpoint", "DeleteEndpointConfig", "DeleteModel"]
    assert made(aws) == asked


def test_a_lost_answer_is_no_failure(aws: Faults, archive: Path) -> None:
    aws.lose("CreateEndpoint")
    assert act(*REALTIME, "action=deploy", "name=lost", archive=archive) == 0
    assert made(aws) == ["CreateModel", "CreateEndpointConfig", "CreateEndpoint"]


def test_an_archive_is_uploaded_once(aws: Faults, archive: Path, caplog: pytest.LogCaptureFixture) -> None:
    archive.write_bytes(b"an archive that nobody has uploaded yet")
    with caplog.at_level("INFO"):
        act(*REALTIME, "action=deploy", "name=one", "target.wait=false", archive=archive)
        assert "bincounter deploy target=realtime name=one action=status target.region=us-east-1" in caplog.text
        act(*REALTIME, "action=deploy", "name=another", archive=archive)
    assert "bincounter deploy target=realtime name=another action=delete target.region=us-east-1" in caplog.text
    assert len([name for name in aws.operations if re.fullmatch(r"PUT .*/model\.tar\.gz", name)]) == 1


def test_an_endpoint_that_is_not_there(aws: Faults, archive: Path, tmp_path: Path) -> None:
    act(*REALTIME, "action=deploy", "name=there", archive=archive)
    (tmp_path / "bin.jpg").write_bytes(b"a photo")
    for action in (["action=update"], ["action=invoke", f"input={tmp_path / 'bin.jpg'}"]):
        with pytest.raises(ConfigError, match=r"there is no endpoint name=ther in us-east-1 \(there are .*\bthere\b"):
            act(*REALTIME, *action, "name=ther", archive=archive)


def test_a_folder_with_more_than_photos_is_no_batch(aws: Faults, archive: Path) -> None:
    s3 = boto3.client("s3", "us-east-1")
    s3.create_bucket(Bucket="photos")
    given = (*REALTIME, "action=transform", "input=s3://photos/bins", "output=s3://photos/answers")
    with pytest.raises(BinCounterError, match="no objects under s3://photos/bins"):
        act(*given, archive=archive)
    for key in ("bins/1.jpg", "bins/1.json"):
        s3.put_object(Bucket="photos", Key=key, Body=b"x")
    with pytest.raises(BinCounterError, match=r"1 of the 2 objects .* are not photos \(bins/1.json\)"):
        act(*given, archive=archive)
    s3.delete_object(Bucket="photos", Key="bins/1.json")
    s3.put_object(Bucket="photos", Key="bins/._1.jpg", Body=b"x")
    with pytest.raises(BinCounterError, match=r"1 of the 2 objects .* are not photos \(bins/._1.jpg\).*none hidden"):
        act(*given, archive=archive)
    with pytest.raises(BinCounterError, match=r"no objects under s3://photos/bins/1.jpg/: name the folder"):
        act(*(word.replace("photos/bins", "photos/bins/1.jpg") for word in given), archive=archive)
    assert not made(aws)


def test_photos_of_a_batch_without_an_answer_are_counted(aws: Faults, archive: Path) -> None:
    s3 = boto3.client("s3", "us-east-1")
    s3.create_bucket(Bucket="batch")
    answers = ("own/bins/a/0.jpg.out", "own/bins/b/0.jpg.out", "below/a/0.jpg.out", "half/a/0.jpg.out")
    for key in ("bins/a/0.jpg", "bins/b/0.jpg", *answers):
        s3.put_object(Bucket="batch", Key=key, Body=b"x")

    def count(output: str, created: float) -> int:
        aws.change("DescribeTransformJob", lambda there: {**there, "CreationTime": created})
        given = ("action=transform", "name=batch", "input=s3://batch/bins", f"output=s3://batch/{output}")
        return act(*REALTIME, *given, archive=archive)

    assert count("own", 0) == 0
    with pytest.raises(ResourceError, match=r"has no answer for 1 photos \(bins/b/0\.jpg\)"):
        count("half", 0)
    with pytest.raises(ResourceError, match="has no answer for 2 photos"):  # these are of an earlier job
        count("own", time.time() + 3600)
    s3.put_object(Bucket="batch", Key="below/b/0.jpg.out", Body=b"x")
    assert count("below", 0) == 0


def test_a_folder_of_requests_in_json_is_a_batch(aws: Faults) -> None:
    s3 = boto3.client("s3", "us-east-1")
    s3.create_bucket(Bucket="requests")
    for key in ("bins/1.json", "bins/2.json"):
        s3.put_object(Bucket="requests", Key=key, Body=b'{"image": "AA==", "expected": 3}')
    account = Account("us-east-1", "target", dry=False)
    assert batch_transform._content_type(account, "s3://requests/bins") == "application/json"
