"""Price of a job, and the image it runs in."""

from pathlib import Path

import boto3
import pytest
import yaml

from bincounter.cloud import instances
from bincounter.cloud.instances import Price, cost_ceiling, gpu_count, saving_percent, training_image, usd_per_hour
from bincounter.errors import ConfigError


def test_a_price_of_the_table_says_of_when_and_where_it_is() -> None:
    price = usd_per_hour("ml.g5.xlarge", None)
    assert price.usd == 1.408
    assert "2026-" in price.origin and "us-east-1" in price.origin and "other regions" in price.origin


def test_a_given_price_goes_before_the_table_and_beyond_it() -> None:
    assert usd_per_hour("ml.g5.xlarge", 0.5) == Price(0.5, "launcher.usd_per_hour")
    assert usd_per_hour("ml.brand.new", 7).usd == 7


@pytest.mark.parametrize(
    ("instance_type", "step"),
    [
        ("ml.g5.xlrge", "correct it to ml.g5.xlarge, or set launcher.usd_per_hour="),
        ("ml.g6e.xlarge", ": set launcher.usd_per_hour="),  # known, its price is not
        ("warehouse", ": set launcher.usd_per_hour="),
    ],
)
def test_a_missing_price_is_asked_for(instance_type: str, step: str) -> None:
    with pytest.raises(ConfigError, match=r"has no price in the table of \d{4}-\d\d-\d\d: ") as refused:
        usd_per_hour(instance_type, None)
    assert f"launcher.instance_type={instance_type} " in str(refused.value)
    assert step in str(refused.value)


@pytest.mark.parametrize(
    ("instance_type", "number"),
    [("ml.m5.large", 0), ("ml.g4dn.xlarge", 1), ("ml.g5.16xlarge", 1), ("ml.g5.12xlarge", 4), ("ml.g6e.48xlarge", 8)],
)
def test_gpus_of_a_type(instance_type: str, number: int) -> None:
    assert gpu_count(instance_type) == number


def test_gpus_of_an_unknown_type_are_unknown() -> None:
    assert gpu_count("ml.brand.new") is None


def test_every_type_of_the_table_is_one_that_the_api_takes() -> None:
    table = yaml.safe_load(Path(instances.__file__).with_name("prices.yaml").read_text())
    client = boto3.client("sagemaker", "us-east-1", aws_access_key_id="none", aws_secret_access_key="none")
    kinds = ("TrainingInstanceType", "ProductionVariantInstanceType")
    known = {name for kind in kinds for name in client.meta.service_model.shape_for(kind).enum}
    assert set(table["types"]) <= known
    assert all(entry["gpus"] >= 0 and entry.get("usd", 1) > 0 for entry in table["types"].values())


def test_the_ceiling_counts_every_instance_of_every_job() -> None:
    assert cost_ceiling(Price(1.5, "given"), max_run=7200, instances=2, jobs=4) == pytest.approx(24)


@pytest.mark.parametrize(("training", "billable", "saved"), [(1000, 300, 70), (1000, 1000, 0), (0, 0, 0)])
def test_saving_of_spot_capacity(training: int, billable: int, saved: float) -> None:
    assert saving_percent(training, billable) == pytest.approx(saved)


def test_the_image_has_cuda_where_the_instance_has_gpus() -> None:
    of_gpus = training_image(framework_version="2.14", region="eu-west-1", instance_type="ml.g5.xlarge")
    of_cpus = training_image(framework_version="2.14", region="eu-west-1", instance_type="ml.m5.large")
    assert ".dkr.ecr.eu-west-1." in of_gpus and "/pytorch:2.14-cu" in of_gpus
    assert "/pytorch:2.14-cpu" in of_cpus


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            {"framework_version": "9.9"},
            r"launcher.framework_version=9\.9 has no .*choose one of .*2\.14.* launcher\.image=",
        ),
        ({"region": "mars-north-1"}, r"region mars-north-1 has no .*launcher\.region"),
        ({"instance_type": "warehouse"}, r"launcher\.instance_type=warehouse is not a type"),
    ],
)
def test_a_missing_image_is_one_sentence(wrong: dict[str, str], sentence: str) -> None:
    right = {"framework_version": "2.14", "region": "us-east-1", "instance_type": "ml.g5.xlarge"}
    with pytest.raises(ConfigError, match=sentence):
        training_image(**right | wrong)
