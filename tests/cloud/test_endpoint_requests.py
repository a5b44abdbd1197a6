"""Requests of an endpoint: their content, their price, and refusals before anything is sent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aws_faults import Faults, faults
from deployments import ROLE, act, requests

from bincounter.cloud.instances import GPU_MACHINE, serving_image
from bincounter.errors import ConfigError

# Each part of target.request as docs/deploy.md shows it: the target, the action, the overrides, and what comes of it.
EXAMPLES: dict[str, tuple[str, str, list[str], str, dict[str, Any]]] = {
    "Model: a network of one's own": (
        "realtime",
        "deploy",
        ["target.request.Model.VpcConfig={SecurityGroupIds:[sg-0a1b],Subnets:[subnet-0a1b,subnet-0c2d]}"],
        "CreateModel",
        {"VpcConfig": {"SecurityGroupIds": ["sg-0a1b"], "Subnets": ["subnet-0a1b", "subnet-0c2d"]}},
    ),
    "Model: tags": (
        "serverless",
        "deploy",
        ["target.request.Model.Tags=[{Key:team,Value:bins}]"],
        "CreateModel",
        {"Tags": [{"Key": "bincounter:endpoint", "Value": "bincounter"}, {"Key": "team", "Value": "bins"}]},
    ),
    "EndpointConfig: data capture": (
        "realtime",
        "deploy",
        [
            "target.request.EndpointConfig.DataCaptureConfig={EnableCapture:true,InitialSamplingPercentage:20,"
            "DestinationS3Uri:'s3://my-bucket/captured',CaptureOptions:[{CaptureMode:Input},{CaptureMode:Output}]}"
        ],
        "CreateEndpointConfig",
        {
            "DataCaptureConfig": {
                "EnableCapture": True,
                "InitialSamplingPercentage": 20,
                "DestinationS3Uri": "s3://my-bucket/captured",
                "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
            }
        },
    ),
    "EndpointConfig: who is told of an asynchronous answer": (
        "async",
        "deploy",
        [
            "target.request.EndpointConfig.AsyncInferenceConfig.OutputConfig.NotificationConfig.SuccessTopic="
            "'arn:aws:sns:us-east-1:123456789012:counted'"
        ],
        "CreateEndpointConfig",
        {
            "AsyncInferenceConfig": {
                "OutputConfig": {
                    "S3OutputPath": "s3://my-bucket/bincounter/bincounter/output",
                    "S3FailurePath": "s3://my-bucket/bincounter/bincounter/failure",
                    "NotificationConfig": {"SuccessTopic": "arn:aws:sns:us-east-1:123456789012:counted"},
                }
            }
        },
    ),
    "ProductionVariant: requests go to the instance with least to do": (
        "realtime",
        "deploy",
        ["target.request.ProductionVariant.RoutingConfig.RoutingStrategy=LEAST_OUTSTANDING_REQUESTS"],
        "CreateEndpointConfig.ProductionVariants.0",
        {"RoutingConfig": {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"}},
    ),
    "ProductionVariant: serverless, one kept warm": (
        "serverless",
        "deploy",
        ["target.request.ProductionVariant.ServerlessConfig.ProvisionedConcurrency=1"],
        "CreateEndpointConfig.ProductionVariants.0",
        {"ServerlessConfig": {"MemorySizeInMB": 4096, "MaxConcurrency": 5, "ProvisionedConcurrency": 1}},
    ),
    "Endpoint: tags": (
        "realtime",
        "deploy",
        ["target.request.Endpoint.Tags=[{Key:cost-centre,Value:'1234'}]"],
        "CreateEndpoint",
        {"Tags": [{"Key": "bincounter:endpoint", "Value": "bincounter"}, {"Key": "cost-centre", "Value": "1234"}]},
    ),
    "UpdateEndpoint: a tenth of the requests first, and back when an alarm goes off": (
        "realtime",
        "update",
        [
            "target.request.UpdateEndpoint.DeploymentConfig={BlueGreenUpdatePolicy:{TrafficRoutingConfiguration:"
            "{Type:CANARY,CanarySize:{Type:CAPACITY_PERCENT,Value:10},WaitIntervalInSeconds:300}},"
            "AutoRollbackConfiguration:{Alarms:[{AlarmName:bincounter-5xx}]}}"
        ],
        "UpdateEndpoint",
        {
            "DeploymentConfig": {
                "BlueGreenUpdatePolicy": {
                    "TrafficRoutingConfiguration": {
                        "Type": "CANARY",
                        "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 10},
                        "WaitIntervalInSeconds": 300,
                    }
                },
                "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "bincounter-5xx"}]},
            }
        },
    ),
    "UpdateEndpoint: one instance after the other": (
        "realtime",
        "update",
        [
            "target.request.UpdateEndpoint.DeploymentConfig.RollingUpdatePolicy="
            "{MaximumBatchSize:{Type:INSTANCE_COUNT,Value:1},WaitIntervalInSeconds:60}"
        ],
        "UpdateEndpoint",
        {
            "DeploymentConfig": {
                "RollingUpdatePolicy": {
                    "MaximumBatchSize": {"Type": "INSTANCE_COUNT", "Value": 1},
                    "WaitIntervalInSeconds": 60,
                }
            }
        },
    ),
    "ScalableTarget: as many instances as there are requests": (
        "realtime",
        "deploy",
        [
            "target.request.ScalableTarget={MinCapacity:1,MaxCapacity:4}",
            "target.request.ScalingPolicy.TargetTrackingScalingPolicyConfiguration={TargetValue:600,"
            "PredefinedMetricSpecification:{PredefinedMetricType:SageMakerVariantInvocationsPerInstance}}",
        ],
        "RegisterScalableTarget",
        {
            "ServiceNamespace": "sagemaker",
            "ResourceId": "endpoint/bincounter/variant/AllTraffic",
            "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
            "MinCapacity": 1,
            "MaxCapacity": 4,
        },
    ),
    "ScalingPolicy: no instance while nothing waits": (
        "async",
        "deploy",
        [
            "target.request.ScalableTarget={MinCapacity:0,MaxCapacity:2}",
            "target.request.ScalingPolicy.TargetTrackingScalingPolicyConfiguration={TargetValue:5,"
            "CustomizedMetricSpecification:{MetricName:ApproximateBacklogSizePerInstance,Namespace:AWS/SageMaker,"
            "Dimensions:[{Name:EndpointName,Value:bincounter}],Statistic:Average}}",
        ],
        "PutScalingPolicy",
        {
            "PolicyName": "bincounter",
            "PolicyType": "TargetTrackingScaling",
            "TargetTrackingScalingPolicyConfiguration": {
                "TargetValue": 5,
                "CustomizedMetricSpecification": {
                    "MetricName": "ApproximateBacklogSizePerInstance",
                    "Namespace": "AWS/SageMaker",
                    "Dimensions": [{"Name": "EndpointName", "Value": "bincounter"}],
                    "Statistic": "Average",
                },
            },
        },
    ),
    "TransformJob: four photos at a time": (
        "realtime",
        "transform",
        [
            "input=s3://photos/bins",
            "output=s3://answers/bins",
            "limits.max_body_mb=20",
            "target.request.TransformJob.MaxConcurrentTransforms=4",
        ],
        "CreateTransformJob",
        {"MaxConcurrentTransforms": 4, "MaxPayloadInMB": 20, "BatchStrategy": "SingleRecord"},
    ),
    "InvokeEndpoint: a name for the request in captured data": (
        "realtime",
        "invoke",
        ["input={photo}", "target.request.InvokeEndpoint.InferenceId=shelf-7"],
        "InvokeEndpoint",
        {"InferenceId": "shelf-7", "ContentType": "image/jpeg", "Accept": "application/json"},
    ),
    "InvokeEndpointAsync: not worth an answer after ten minutes": (
        "async",
        "invoke",
        ["input={photo}", "target.request.InvokeEndpointAsync.RequestTTLSeconds=600"],
        "InvokeEndpointAsync",
        {"RequestTTLSeconds": 600, "ContentType": "image/jpeg"},
    ),
}


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """A server that answers nothing: no request has to be sent for any of this."""
    with faults() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
        assert server.operations == []


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "bin.jpg"
    path.write_bytes(b"a photo")
    return path


@pytest.mark.parametrize(("target", "action", "overrides", "where", "expected"), EXAMPLES.values(), ids=EXAMPLES)
def test_documented_examples(
    target: str,
    action: str,
    overrides: list[str],
    where: str,
    expected: dict[str, Any],
    archive: Path,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [override.replace("{photo}", str(photo)) for override in overrides]
    made: Any = requests(capsys, f"target={target}", f"action={action}", *given, archive=archive)
    for step in where.split("."):
        made = made[int(step)] if step.isdigit() else made[step]
    assert {name: made[name] for name in expected} == expected


def test_a_deployment_is_three_requests_that_carry_the_tag(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = requests(capsys, "target=realtime", "name=bins", archive=archive)
    assert list(made) == ["CreateModel", "CreateEndpointConfig", "CreateEndpoint"]
    model, config, endpoint = made.values()
    assert model["PrimaryContainer"]["ModelDataUrl"].startswith("s3://my-bucket/bincounter/models/")
    assert model["ExecutionRoleArn"] == ROLE
    assert config["ProductionVariants"][0]["ModelName"] == model["ModelName"]
    assert endpoint["EndpointConfigName"] == config["EndpointConfigName"] and endpoint["EndpointName"] == "bins"
    assert all({"Key": "bincounter:endpoint", "Value": "bins"} in request["Tags"] for request in made.values())
    assert model["ModelName"].startswith("bins-") and config["EndpointConfigName"].startswith("bins-")


def test_names_are_of_the_content(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def names(*overrides: str) -> tuple[str, str]:
        made = requests(capsys, "target=realtime", *overrides, archive=archive)
        return made["CreateModel"]["ModelName"], made["CreateEndpointConfig"]["EndpointConfigName"]

    first = names()
    assert names() == first
    other_instance = names("target.instance_type=ml.c5.xlarge")
    assert other_instance[0] == first[0] and other_instance[1] != first[1]
    archive.write_bytes(b"another archive")
    assert names()[0] != first[0] and names()[1] != first[1]


def test_a_serverless_endpoint_has_memory_and_no_instances(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variant = requests(capsys, "target=serverless", "target.memory_mb=2048", archive=archive)["CreateEndpointConfig"][
        "ProductionVariants"
    ][0]
    assert variant["ServerlessConfig"] == {"MemorySizeInMB": 2048, "MaxConcurrency": 5}
    assert not {"InstanceType", "InitialInstanceCount", "ContainerStartupHealthCheckTimeoutInSeconds"} & set(variant)


def test_a_gpu_has_the_machine_image_that_its_driver_needs(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def variant(instance_type: str) -> dict[str, Any]:
        made = requests(capsys, "target=realtime", f"target.instance_type={instance_type}", archive=archive)
        return made["CreateEndpointConfig"]["ProductionVariants"][0]

    assert variant("ml.g5.xlarge")["InferenceAmiVersion"] == GPU_MACHINE
    assert "InferenceAmiVersion" not in variant("ml.m5.xlarge")


def test_the_older_image_is_told_where_its_functions_are(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    container = requests(capsys, "target=realtime", "target.stack=pytorch", archive=archive)["CreateModel"][
        "PrimaryContainer"
    ]
    assert container["Environment"]["SAGEMAKER_PROGRAM"] == "inference.py"
    assert container["Environment"]["SAGEMAKER_SUBMIT_DIRECTORY"] == "/opt/ml/model/code"
    assert container["Environment"]["TS_MAX_REQUEST_SIZE"] == "25000000"


@pytest.mark.parametrize(
    ("stack", "instance_type", "ends"),
    [
        ("ray", "ml.m5.xlarge", "/ray:serve-ml-sagemaker-cpu"),
        ("ray", "ml.g5.xlarge", "/ray:serve-ml-sagemaker-cuda"),
        ("ray", None, "/ray:serve-ml-sagemaker-cpu"),
        ("pytorch", "ml.g5.xlarge", "/pytorch-inference:2.6-gpu-py312"),
    ],
)
def test_images_are_those_of_the_sdk(stack: str, instance_type: str | None, ends: str) -> None:
    image = serving_image(stack=stack, region="eu-west-1", instance_type=instance_type)
    assert ".dkr.ecr.eu-west-1." in image and ends in image


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["target=realtime", "target.request.Modle.Tags=[]"], "did you mean Model?"),
        (
            ["target=realtime", "target.request.ModelPackage={}"],
            "register the model with `aws sagemaker create-model-pack",
        ),
        (["target=realtime", "target.request.Model=1"], "target.request.Model=1 is not a mapping"),
        (
            ["target=realtime", "target.request.ProductionVariant.RoutingConfg={}"],
            "target.request.ProductionVariant.RoutingConfg is not a parameter",
        ),
        (
            ["target=realtime", "target.request.ProductionVariant.RoutingConfig.RoutingStrategy=RANDM"],
            "RoutingStrategy=RANDM is not a value that SageMaker knows: did you mean RANDOM?",
        ),
        (["target=realtime", "target.request.ProductionVariant.InstanceType=ml.g5.xlarge"], "target.instance_type"),
        (["target=realtime", "target.request.EndpointConfig.ShadowProductionVariants=[{}]"], "one variant"),
        (["target=realtime", "target.request.ScalableTarget.MaxCapacity=4"], "add target.request.ScalingPolicy"),
        (
            ["target=realtime", "target.request.ScalableTarget.ResourceId=endpoint/x/variant/y"],
            "it comes from the endpoint itself",
        ),
        (["target=realtime", "target.instance_type=ml.g5.xlrage"], "did you mean ml.g5.xlarge?"),
        (
            ["target=realtime", "target.environment.API_TOKEN=hunter2"],
            "API_TOKEN looks like a secret",
        ),
        (["target=realtime", f"name={'b' * 60}"], "shorten it"),
        (["target=realtime", "target.region=us-east1"], "did you mean target.region=us-east-1?"),
    ],
)
def test_refusals(overrides: list[str], sentence: str, archive: Path) -> None:
    given = [f"target.role={ROLE}", "target.bucket=my-bucket", "target.image=123.dkr.ecr/ray:1", "dry_run=true"]
    with pytest.raises(ConfigError) as refused:
        act(*given, *overrides, archive=archive)
    assert sentence in str(refused.value)
    assert "launcher" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "usd"),
    [
        (["target=realtime", "target.instance_type=ml.g5.xlarge", "target.instance_count=2"], 2.816),
        (["target=async", "target.usd_per_hour=1.5", "target.instance_count=3"], 4.5),
        (
            [
                "target=realtime",
                "target.request.ScalableTarget={MinCapacity:1,MaxCapacity:10}",
                "target.request.ScalingPolicy.TargetTrackingScalingPolicyConfiguration={TargetValue:600}",
            ],
            2.3,
        ),
        (["target=realtime", "target.request.ProductionVariant.ManagedInstanceScaling.MaxInstanceCount=5"], 1.15),
        (["target=serverless"], 1.44),
        (["target=serverless", "target.request.ProductionVariant.ServerlessConfig.ProvisionedConcurrency=5"], 2.88),
    ],
)
def test_a_price_above_the_ceiling_is_refused(overrides: list[str], usd: float, archive: Path) -> None:
    given = [f"target.role={ROLE}", "target.bucket=my-bucket", "target.image=123.dkr.ecr/ray:1", "dry_run=true"]
    assert act(*given, *overrides, f"target.max_usd_per_hour={usd + 0.01}", archive=archive) == 0
    with pytest.raises(ConfigError, match=rf"^{usd:.4g} USD per hour is above target.max_usd_per_hour"):
        act(*given, *overrides, f"target.max_usd_per_hour={usd - 0.01}", archive=archive)
