"""The request for a training job: what is in it, and what is refused before anything is sent."""

import copy
from typing import Any

import pytest

from bincounter.cloud.api_shapes import check_request
from bincounter.cloud.job_request import metric_definitions, training_request
from bincounter.config.launcher_schema import SageMakerConfig
from bincounter.errors import ConfigError


def settings(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(vars(SageMakerConfig())), **changes}


def request(**changes: Any) -> dict[str, Any]:
    return training_request(
        settings(**changes),
        name="bincounter-train-1",
        hyperparameters={"model.optimizer.lr": "0.01"},
        source_uri="s3://bucket/bincounter/source/0.tar.gz",
        region="eu-west-1",
        image="123456789012.dkr.ecr.eu-west-1.amazonaws.com/pytorch:2.14",
        role="arn:aws:iam::123456789012:role/bincounter",
        folder_uri="s3://bucket/bincounter/jobs",
        channel_uri="s3://bucket/bins",
    )


def test_spot_request_has_max_wait_and_checkpoints() -> None:
    made = request(spot=True, max_run=3600)
    assert made["EnableManagedSpotTraining"] is True
    assert made["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200}
    assert made["CheckpointConfig"] == {
        "S3Uri": "s3://bucket/bincounter/jobs/bincounter-train-1/checkpoints",
        "LocalPath": "/opt/ml/checkpoints",
    }
    # "bins" without a slash would match s3://bucket/bins-old too.
    assert made["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"] == "s3://bucket/bins/"


def test_on_demand_there_is_nothing_to_wait_for() -> None:
    made = request()
    assert made["EnableManagedSpotTraining"] is False
    assert "MaxWaitTimeInSeconds" not in made["StoppingCondition"]
    assert "Environment" not in made


def test_everything_else_the_api_knows_is_merged_in() -> None:
    extra = {
        "Tags": [{"Key": "team", "Value": "bins"}],
        "VpcConfig": {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]},
        "OutputDataConfig": {"KmsKeyId": "alias/mine"},
        "ResourceConfig": {"KeepAlivePeriodInSeconds": 600},
        "RetryStrategy": {"MaximumRetryAttempts": 3},
    }
    made = request(request=extra)
    assert made["OutputDataConfig"] == {"S3OutputPath": "s3://bucket/bincounter/jobs", "KmsKeyId": "alias/mine"}
    assert made["ResourceConfig"]["InstanceCount"] == 1
    assert made["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 600
    assert made["Tags"] == extra["Tags"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"request": {"Tagz": []}},
            "launcher.request.Tagz is not a parameter of CreateTrainingJob: did you mean Tags?",
        ),
        ({"request": {"VpcConfig": {"Subnetz": []}}}, "launcher.request.VpcConfig.Subnetz is not a parameter"),
        ({"request": {"Tags": [{"Key": "team"}]}}, "Missing required parameter in Tags[0]"),
        ({"request": {"RetryStrategy": {"MaximumRetryAttempts": "three"}}}, "Invalid type for parameter"),
        ({"request": {"RetryStrategy": {"MaximumRetryAttempts": 99}}}, "MaximumRetryAttempts=99 is out of range"),
        ({"instance_type": "ml.g5.xlrage"}, "did you mean ml.g5.xlarge?"),
        ({"checkpoint_uri": "http://bucket/x"}, "launcher.checkpoint_uri=http://bucket/x does not have the form"),
        ({"environment": {"A": "x" * 2000}}, "launcher.request.Environment.A="),
    ],
)
def test_what_the_service_model_does_not_know_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        request(**changes)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_model_is_asked_for_other_operations_too() -> None:
    with pytest.raises(ConfigError, match="CreateEndpoint"):
        check_request({"EndpointName": "x"}, "CreateEndpoint")


def test_metric_expressions_are_what_sagemaker_takes() -> None:
    names = [definition["Name"] for definition in metric_definitions()]
    assert {"train/loss", "val/accuracy", "val/cross_entropy"} <= set(names)
    assert len(names) <= 40  # SageMaker's limit
