"""``action=delete``, ``list`` and ``status`` with each of their requests denied, throttled and unanswered in turn."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from aws_faults import Faults, faults
from botocore.retries.bucket import TokenBucket
from deployments import ROLE, act
from omegaconf import DictConfig
from scripted_endpoints import scripted_endpoints

from bincounter.cli.deploy_command import run_on_sagemaker
from bincounter.cli.hydra_app import compose
from bincounter.cloud import account, polling
from bincounter.cloud.account import Account
from bincounter.cloud.endpoints.endpoint_requests import TAG
from bincounter.cloud.endpoints.endpoint_state import require_endpoint
from bincounter.errors import BinCounterError, ConfigError

IMAGE = "target.image=123456789012.dkr.ecr.us-east-1.amazonaws.com/ray:1"
REALTIME = ("target=realtime", f"target.role={ROLE}", IMAGE, "target.wait=true")
SCALED = (
    "target.request.ScalableTarget={MinCapacity:1,MaxCapacity:4}",
    "target.request.ScalingPolicy.TargetTrackingScalingPolicyConfiguration={TargetValue:600,"
    "PredefinedMetricSpecification:{PredefinedMetricType:SageMakerVariantInvocationsPerInstance}}",
)
FAULTS = ("denied", "throttled", "silent")
# Requests of an undisturbed action -> whether the action fails without their answer.
DELETE = {
    "DescribeEndpoint": False,
    "DeleteEndpoint": True,
    "DescribeEndpointConfig": False,
    "DescribeModel": False,
    "ListEndpointConfigs": False,
    "ListModels": False,
    "ListTransformJobs": False,
    "ListTags": True,  # it cannot be known whose the configuration and the model are
    "DescribeScalableTargets": False,
    "DeregisterScalableTarget": True,
    "DeleteEndpointConfig": True,
    "DeleteModel": True,
}
STATUS = {"DescribeEndpoint": True, "DescribeEndpointConfig": False, "DescribeScalableTargets": False}
LIST = {
    "ListEndpoints": True,
    "ListTags": False,
    "DescribeEndpoint": False,
    "DescribeEndpointConfig": False,
    "ListEndpointConfigs": False,
    "ListModels": False,
    "ListTransformJobs": True,
}


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """A server with endpoints, and one account for all tests, since making its clients takes longer than a test."""
    with pytest.MonkeyPatch.context() as patch, scripted_endpoints() as (_, url), faults(url) as server:
        for name in ("PROFILE", "SESSION_TOKEN", "DEFAULT_REGION"):
            patch.delenv(f"AWS_{name}", raising=False)
        for name, value in server.environment().items():
            patch.setenv(name, value)
        archive = tmp_path_factory.mktemp("archive") / "model.tar.gz"
        archive.write_bytes(b"an archive")
        act(*REALTIME, "action=deploy", "name=first", *SCALED, archive=archive)  # moto loads its services on use
        act("target=realtime", "action=delete", "name=first")
        patch.setattr(account, "_TIMEOUT", 1.0)
        patch.setattr(account, "_SLOW_TIMEOUT", 1.0)
        patch.setattr(polling, "_RETRY_WINDOW", 0.1)  # seconds that a wait goes on without an answer
        # A client that was throttled waits before each request for long, and the tests share it.
        patch.setattr(TokenBucket, "acquire", lambda *_, **__: True)
        only = account.Account("us-east-1", "target")
        patch.setattr(account, "Account", lambda *_, **__: only)
        yield server


@cache
def _composed(action: str) -> DictConfig:
    return compose(["target=realtime", f"action={action}"], config_name="deploy")


def run(action: str, name: str) -> int:
    """``bincounter deploy target=realtime action=ACTION name=NAME``; returns the exit code."""
    cfg = _composed(action).copy()
    cfg.name = name
    return run_on_sagemaker(cfg, None)


@pytest.fixture
def deployed(aws: Faults, request: pytest.FixtureRequest) -> Iterator[str]:
    """An endpoint with autoscaling, which only this test knows."""
    name = "e" + re.sub("[^a-z]", "", request.node.name.lower())[-40:]
    client = account.Account("us-east-1").sagemaker
    tags, ours = [{"Key": TAG, "Value": name}], f"{name}-0123abcd"
    client.create_model(
        ModelName=ours,
        ExecutionRoleArn=ROLE,
        PrimaryContainer={"Image": "ray:1", "ModelDataUrl": "s3://bins/model.tar.gz"},
        Tags=tags,
    )
    variant = {
        "VariantName": "AllTraffic",
        "ModelName": ours,
        "InstanceType": "ml.m5.xlarge",
        "InitialInstanceCount": 1,
    }
    client.create_endpoint_config(EndpointConfigName=ours, ProductionVariants=[variant], Tags=tags)
    client.create_endpoint(EndpointName=name, EndpointConfigName=ours, Tags=tags)
    account.Account("us-east-1").autoscaling.register_scalable_target(**place(name), MinCapacity=1, MaxCapacity=4)
    aws.operations.clear()
    yield name
    aws.heal()
    if left(name):
        run("delete", name)


def place(name: str) -> dict[str, str]:
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{name}/variant/AllTraffic",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }


def left(name: str) -> list[str]:
    """Resources of an endpoint that exist."""
    only = account.Account("us-east-1")
    listed = [
        *(one["EndpointName"] for one in only.sagemaker.list_endpoints()["Endpoints"]),
        *(one["EndpointConfigName"] for one in only.sagemaker.list_endpoint_configs()["EndpointConfigs"]),
        *(one["ModelName"] for one in only.sagemaker.list_models()["Models"]),
    ]
    targets = only.autoscaling.describe_scalable_targets(
        ServiceNamespace="sagemaker", ResourceIds=[place(name)["ResourceId"]]
    )["ScalableTargets"]
    return [*(one for one in listed if one in (name, f"{name}-0123abcd")), *(["autoscaling"] if targets else [])]


@pytest.mark.parametrize(("action", "requests"), [("delete", DELETE), ("status", STATUS), ("list", LIST)])
def test_these_are_all_requests(action: str, requests: dict[str, bool], deployed: str, aws: Faults) -> None:
    assert run(action, deployed) == 0
    assert set(aws.operations) == set(requests)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", DELETE)
def test_delete_takes_down_what_costs_money_and_names_the_rest(
    operation: str,
    fault: str,
    deployed: str,
    aws: Faults,
    caplog: pytest.LogCaptureFixture,
) -> None:
    aws.disturb(operation, fault)
    if DELETE[operation]:
        with pytest.raises(BinCounterError, match=f"not deleted of name={deployed}: ") as refused:
            run("delete", deployed)
        assert refused.value.exit_code != 0
        assert "\n" not in str(refused.value)
    else:
        assert run("delete", deployed) == 0
    assert "DeleteEndpoint" in aws.operations
    aws.heal()
    there = left(deployed)
    assert bool(there) == DELETE[operation]
    assert (deployed in there) == (operation == "DeleteEndpoint")
    # Nothing that an endpoint needs is deleted while it serves.
    assert len(there) == 4 if operation == "DeleteEndpoint" else len(there) <= 2
    blind = operation == "DescribeScalableTargets"  # what may be registered is deregistered without looking
    assert ("Could not be checked: " in caplog.text) == (not blind and operation[:4] in ("Desc", "List"))
    assert "nothing is billed any more" not in caplog.text or blind
    aws.operations.clear()
    assert run("delete", deployed) == 0  # the second time, with all rights
    assert left(deployed) == []


@pytest.mark.parametrize("fault", ["denied", "silent"])
@pytest.mark.parametrize("operation", STATUS)
def test_status(
    operation: str,
    fault: str,
    deployed: str,
    aws: Faults,
    capsys: pytest.CaptureFixture[str],
) -> None:
    aws.disturb(operation, fault)
    if STATUS[operation]:
        with pytest.raises(BinCounterError, match=f"describing the endpoint {deployed}"):
            run("status", deployed)
        return
    assert run("status", deployed) == 0
    out = capsys.readouterr().out
    assert re.search("^state +InService since", out, re.MULTILINE)
    assert re.search("^(bills|autoscaling) +unknown$", out, re.MULTILINE)


@pytest.mark.parametrize(("reason", "cause"), [("No capacity.", "No capacity"), ("", "SageMaker gives no reason")])
def test_status_of_a_failed_endpoint(
    reason: str, cause: str, deployed: str, aws: Faults, capsys: pytest.CaptureFixture[str]
) -> None:
    aws.change("DescribeEndpoint", lambda there: {**there, "EndpointStatus": "Failed", "FailureReason": reason})
    assert run("status", deployed) == 1
    out = capsys.readouterr().out
    assert re.search("^state +Failed since", out, re.MULTILINE)
    assert re.search(f"^failure +{cause}$", out, re.MULTILINE)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", ["ListTransformJobs", "StopTransformJob", "DescribeTransformJob"])
def test_delete_stops_transform_jobs(
    operation: str, fault: str, deployed: str, aws: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest is deleted, and what may still run is named."""
    job = f"{deployed}-0123456789-abcd"
    arn = account.Account("us-east-1").sagemaker.create_transform_job(
        TransformJobName=job,
        ModelName=f"{deployed}-0123abcd",
        TransformInput={"DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://bins/photos"}}},
        TransformOutput={"S3OutputPath": "s3://bins/answers"},
        TransformResources={"InstanceType": "ml.m5.xlarge", "InstanceCount": 1},
        Tags=[{"Key": TAG, "Value": deployed}],
    )["TransformJobArn"]
    running = {"TransformJobName": job, "TransformJobArn": arn, "TransformJobStatus": "InProgress", "CreationTime": 0}
    aws.change("ListTransformJobs", lambda _: {"TransformJobSummaries": [running]})
    aws.refuse("StopTransformJob", "", status=200)  # moto knows no such operation
    aws.disturb(operation, fault)
    if operation == "StopTransformJob":
        with pytest.raises(BinCounterError, match=rf"not deleted of name={deployed}: the transform job {job} \("):
            run("delete", deployed)
    else:
        assert run("delete", deployed) == 0
        assert "Could not be checked: " in caplog.text
        assert "nothing is billed any more" not in caplog.text
    assert ("StopTransformJob" in aws.operations) == (operation != "ListTransformJobs")
    aws.heal()
    assert {deployed, f"{deployed}-0123abcd"} & set(left(deployed)) <= {f"{deployed}-0123abcd"}


@pytest.fixture(scope="module")
def photos(aws: Faults) -> list[str]:
    """Overrides of a transform job that has an answer for its photo."""
    s3 = account.Account("us-east-1").s3
    s3.create_bucket(Bucket="bins")
    for key in ("photos/1.jpg", "answers/1.jpg.out"):
        s3.put_object(Bucket="bins", Key=key, Body=b"")
    return ["input=s3://bins/photos", "output=s3://bins/answers"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", ["GET /bins", "CreateModel", "CreateTransformJob", "DescribeTransformJob"])
def test_transform(
    operation: str, fault: str, photos: list[str], aws: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs nothing when it cannot be started, and is named when it cannot be followed."""
    monkeypatch.setattr(polling, "_RETRY_WINDOW", 0.1)
    archive = tmp_path / "model.tar.gz"
    archive.write_text(f"{operation} {fault}")
    name = f"name={re.sub('[^a-z]', '', operation.lower())}-{fault}"
    transform = (*REALTIME, "action=transform", name, *photos)
    aws.operations.clear()
    aws.disturb(operation, fault)
    with pytest.raises(BinCounterError) as error:
        act(*transform, archive=archive)
    assert ("CreateTransformJob" in aws.operations) == (operation.endswith("TransformJob"))
    see = f"bincounter deploy target=realtime {name} action=list target.region=us-east-1"
    runs = f"continues at AWS, and may be billed: check it with {see}, and delete it with"
    assert (runs in str(error.value)) == (operation == "DescribeTransformJob")
    aws.heal()
    aws.change("DescribeTransformJob", lambda there: {**there, "CreationTime": 0})  # before that of its answers
    assert act(*transform, archive=archive) == 0


@pytest.mark.parametrize("fault", ["denied", "silent"])
@pytest.mark.parametrize("operation", LIST)
def test_list(
    operation: str,
    fault: str,
    deployed: str,
    aws: Faults,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    aws.disturb(operation, fault)
    assert run("list", deployed) == LIST[operation]
    out = capsys.readouterr().out
    assert "nothing is billed" not in out
    assert "Could not be checked: " in caplog.text
    if operation != "ListEndpoints":
        assert re.search(rf"^{deployed}\tInService\t", out, re.MULTILINE)
        assert ("maybe not of bincounter" in out) == (operation == "ListTags")
        assert ("Total: at least" in out) == operation.startswith("DescribeEndpoint")


def test_a_policy_without_autoscaling_is_enough(
    aws: Faults,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """docs/deploy.md: the last three statements are for autoscaling."""
    for operation in ("DescribeScalableTargets", "DeregisterScalableTarget", "DescribeScalingPolicies"):
        aws.disturb(operation, "denied")
    archive = tmp_path / "model.tar.gz"
    archive.write_bytes(b"an archive")
    act(*REALTIME, "action=deploy", "name=unscaled", archive=archive)
    assert run("status", "unscaled") == 0
    archive.write_bytes(b"another archive")
    assert act(*REALTIME, "action=update", "name=unscaled", archive=archive) == 0
    assert run("delete", "unscaled") == 0
    assert "Could not be checked: describing the autoscaling of unscaled is not allowed" in caplog.text
    aws.heal()
    assert left("unscaled") == []
    capsys.readouterr()
    assert run("status", "unscaled") == 1
    assert "No endpoint named unscaled runs in us-east-1" in capsys.readouterr().err


def test_an_answer_to_delete_that_is_lost(deployed: str, aws: Faults) -> None:
    aws.lose("DeleteEndpoint")
    assert run("delete", deployed) == 0
    assert left(deployed) == []


def test_an_unknown_endpoint_without_the_right_to_list(aws: Faults) -> None:
    aws.disturb("ListEndpoints", "denied")
    with pytest.raises(ConfigError, match="there is no endpoint name=nobody in us-east-1"):
        require_endpoint(account.Account("us-east-1"), "nobody")


def test_a_dry_deletion_without_region_and_login(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(account, "Account", Account)
    cfg = compose(["target=realtime", "action=delete", "dry_run=true"], config_name="deploy")
    assert run_on_sagemaker(cfg, None) == 0
    assert '"sagemaker:DeleteEndpoint"' in capsys.readouterr().out
    assert caplog.text.count("no AWS region is set") == 1
