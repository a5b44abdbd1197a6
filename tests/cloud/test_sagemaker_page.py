"""docs/sagemaker.md against the code and botocore: its policies and that of docs/deploy.md, its settings, its marks."""

import json
import re
from dataclasses import fields
from fnmatch import fnmatchcase
from typing import Any

import pytest
from commands import REPOSITORY

from bincounter.cloud.jobs import job_name
from bincounter.config.deploy_schema import TARGETS, LimitsConfig
from bincounter.config.launcher_schema import RehearsalConfig

PAGE = (REPOSITORY / "docs" / "sagemaker.md").read_text(encoding="utf-8")
DEPLOY_PAGE = (REPOSITORY / "docs" / "deploy.md").read_text(encoding="utf-8")
BLOCKS = {
    kind: re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)  # as the page has them, in order
    for kind in ("json", "bash", "yaml")
}
NUMBER, REGION, BUCKET = "123456789012", "us-east-1", "my-bins"
# Permissions whose names are no operations: the operations they are for, or none.
PERMISSIONS = {
    "s3:ListBucket": "ListObjectsV2",
    "s3:PutBucketPublicAccessBlock": "PutPublicAccessBlock",
    "iam:PassRole": None,
}
# AWS knows no resource for these, or they look at those of all names.
WITHOUT_RESOURCE = {
    "ecr:GetAuthorizationToken",
    "cloudwatch:PutMetricData",
    "cloudwatch:DescribeAlarms",
    *(f"sagemaker:List{kind}" for kind in ("Models", "EndpointConfigs", "Endpoints", "TransformJobs", "Tags")),
    *(f"application-autoscaling:{verb}ScalableTarget" for verb in ("Register", "Deregister")),
    *(f"application-autoscaling:{verb}ScalingPolicy" for verb in ("Put", "Delete")),
    *(f"application-autoscaling:Describe{kind}" for kind in ("ScalableTargets", "ScalingPolicies")),
}


def filled(block: str) -> dict[str, Any]:
    """A policy as the page's ``sed`` leaves it."""
    for word, value in {"ACCOUNT": NUMBER, "REGION": REGION, "BUCKET": BUCKET}.items():
        block = block.replace(word, value)
    policy: dict[str, Any] = json.loads(block)
    assert policy["Version"] == "2012-10-17"
    return policy


TRUST, ROLE, SUBMIT, SERVE = (filled(block) for block in BLOCKS["json"])
(DEPLOY,) = (filled(block) for block in re.findall(r"```json\n(.*?)```", DEPLOY_PAGE, re.DOTALL))
STATEMENTS = [statement for policy in (TRUST, ROLE, SUBMIT, SERVE, DEPLOY) for statement in policy["Statement"]]


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def allowed(policy: dict[str, Any], action: str, resource: str) -> bool:
    return any(
        action in listed(statement["Action"])
        and any(fnmatchcase(resource, one) for one in listed(statement["Resource"]))
        for statement in policy["Statement"]
    )


def test_every_action_exists() -> None:
    import botocore.session

    session = botocore.session.get_session()
    for action in {action for statement in STATEMENTS for action in listed(statement["Action"])}:
        service, _, name = action.partition(":")
        service = "sagemaker-runtime" if name.startswith("InvokeEndpoint") else service
        operation = PERMISSIONS.get(action, name)
        assert operation is None or operation in session.get_service_model(service).operation_names, action


def test_nothing_is_allowed_on_everything() -> None:
    for statement in STATEMENTS:
        assert statement["Effect"] == "Allow"
        assert not any("*" in action for action in listed(statement["Action"]))
        if "*" in listed(statement.get("Resource", "")):
            assert set(listed(statement["Action"])) <= WITHOUT_RESOURCE


def test_only_sagemaker_becomes_the_role() -> None:
    (statement,) = TRUST["Statement"]
    assert statement["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    assert statement["Action"] == "sts:AssumeRole"
    assert statement["Condition"] == {"StringEquals": {"aws:SourceAccount": NUMBER}}


JOB = "bincounter-train-20261121-044202-0-3696"
TUNING = f"arn:aws:sagemaker:{REGION}:{NUMBER}:hyper-parameter-tuning-job"
OBJECTS = f"arn:aws:s3:::{BUCKET}/bincounter"
LOG = f"arn:aws:logs:{REGION}:{NUMBER}:log-group:/aws/sagemaker/TrainingJobs"


@pytest.mark.parametrize(
    ("action", "resource"),
    [
        *(
            (f"sagemaker:{verb}TrainingJob", f"arn:aws:sagemaker:{REGION}:{NUMBER}:training-job/{JOB}")
            for verb in ("Create", "Describe", "Stop")
        ),
        *(
            (f"sagemaker:{verb}HyperParameterTuningJob", f"{TUNING}/bincounter-study-1121080817-b9da")
            for verb in ("Create", "Describe", "Stop", "ListTrainingJobsFor")
        ),
        ("iam:PassRole", f"arn:aws:iam::{NUMBER}:role/bincounter"),
        ("s3:ListBucket", f"arn:aws:s3:::{BUCKET}"),
        ("s3:PutObject", f"{OBJECTS}/source/0123.tar.gz"),
        ("s3:PutObject", f"{OBJECTS}/data/bins-0123/1/a.jpg"),
        ("s3:GetObject", f"{OBJECTS}/jobs/{JOB}/checkpoints/metrics.json"),
        ("logs:DescribeLogStreams", LOG),
        ("logs:GetLogEvents", f"{LOG}:log-stream:{JOB}/algo-1-1"),
    ],
)
def test_what_a_launch_asks_for_is_allowed(action: str, resource: str) -> None:
    assert allowed(SUBMIT, action, resource)
    assert not allowed(
        SUBMIT, action, resource.replace("bincounter", "other").replace(BUCKET, "other").replace("TrainingJobs", "x")
    )


def test_the_role_reads_code_and_photos_and_writes_its_run_alone() -> None:
    for below in ("source/0123.tar.gz", "data/bins/a.jpg", f"jobs/{JOB}/checkpoints/last.ckpt"):
        assert allowed(ROLE, "s3:GetObject", f"{OBJECTS}/{below}")
        assert allowed(ROLE, "s3:PutObject", f"{OBJECTS}/{below}") == below.startswith("jobs/")
    assert not allowed(ROLE, "s3:GetObject", "arn:aws:s3:::other/bincounter/source/x")
    assert allowed(ROLE, "logs:PutLogEvents", f"{LOG}:log-stream:{JOB}/algo-1-1")


ENDPOINT = "bincounter-shelves"
MODEL = f"{ENDPOINT}-0123abcd"
SAGEMAKER = f"arn:aws:sagemaker:{REGION}:{NUMBER}"
ENDPOINT_LOG = f"arn:aws:logs:{REGION}:{NUMBER}:log-group:/aws/sagemaker/Endpoints/{ENDPOINT}"


@pytest.mark.parametrize(
    ("action", "resource"),
    [
        *((f"sagemaker:{verb}Model", f"{SAGEMAKER}:model/{MODEL}") for verb in ("Create", "Describe", "Delete")),
        *(
            (f"sagemaker:{verb}EndpointConfig", f"{SAGEMAKER}:endpoint-config/{MODEL}")
            for verb in ("Create", "Describe", "Delete")
        ),
        *(
            (f"sagemaker:{verb}Endpoint", f"{SAGEMAKER}:endpoint/{ENDPOINT}")
            for verb in ("Create", "Update", "Describe", "Delete", "Invoke")
        ),
        ("sagemaker:InvokeEndpointAsync", f"{SAGEMAKER}:endpoint/{ENDPOINT}"),
        *(
            (f"sagemaker:{verb}TransformJob", f"{SAGEMAKER}:transform-job/{ENDPOINT}-1121121021-039f")
            for verb in ("Create", "Describe", "Stop")
        ),
        ("sagemaker:AddTags", f"{SAGEMAKER}:endpoint/{ENDPOINT}"),
        ("s3:DeleteObject", f"{OBJECTS}/{ENDPOINT}/input/0123.jpg"),
        ("logs:DescribeLogStreams", ENDPOINT_LOG),
        ("logs:GetLogEvents", f"{ENDPOINT_LOG}:log-stream:AllTraffic/i-0123"),
    ],
)
def test_what_a_deployment_asks_for_is_allowed(action: str, resource: str) -> None:
    assert allowed(DEPLOY, action, resource)
    assert not allowed(DEPLOY, action, resource.replace("bincounter", "other"))


def test_role_reads_archives_and_writes_below_the_endpoints_name() -> None:
    assert allowed(SERVE, "s3:GetObject", f"{OBJECTS}/models/0123/model.tar.gz")
    assert not allowed(SERVE, "s3:PutObject", f"{OBJECTS}/models/0123/model.tar.gz")
    for folder in ("input", "output", "failure"):
        assert allowed(SERVE, "s3:PutObject", f"{OBJECTS}/{ENDPOINT}/{folder}/0123.out")
    assert not allowed(SERVE, "s3:PutObject", f"{OBJECTS}/jobs/{JOB}/checkpoints/last.ckpt")
    assert allowed(SERVE, "logs:PutLogEvents", f"{ENDPOINT_LOG}:log-stream:AllTraffic/i-0123")


@pytest.mark.parametrize("stack", ["ray", "pytorch"])
def test_the_role_pulls_the_serving_images(stack: str) -> None:
    from bincounter.cloud.instances import serving_image

    image = serving_image(stack=stack, region=REGION, instance_type=None)
    registry, _, repository = image.partition("/")
    number = registry.partition(".")[0]
    assert allowed(
        SERVE, "ecr:BatchGetImage", f"arn:aws:ecr:{REGION}:{number}:repository/{repository.partition(':')[0]}"
    )


def test_the_role_pulls_the_image_of_the_default_version() -> None:
    from bincounter.cloud.instances import training_image

    launcher = RehearsalConfig()
    image = training_image(
        framework_version=launcher.framework_version, region=REGION, instance_type=launcher.instance_type
    )
    registry, _, repository = image.partition("/")
    number = registry.partition(".")[0]
    assert allowed(
        ROLE, "ecr:BatchGetImage", f"arn:aws:ecr:{REGION}:{number}:repository/{repository.partition(':')[0]}"
    )


def test_every_setting_exists() -> None:
    known = {field.name for field in fields(RehearsalConfig)}
    named = set(re.findall(r"\blauncher\.([a-z_]+)", PAGE))
    assert named and named <= known


def test_every_setting_of_a_deployment_exists() -> None:
    known = {field.name for kind in TARGETS.values() for field in fields(kind)}
    named = set(re.findall(r"\btarget\.([a-z_]+)\b", DEPLOY_PAGE))
    assert named and named <= known
    assert set(re.findall(r"\blimits\.([a-z_]+)", DEPLOY_PAGE)) <= {field.name for field in fields(LimitsConfig)}


def test_request_example_is_one_that_sagemaker_takes() -> None:
    import botocore.session
    import yaml
    from botocore.validate import ParamValidator

    (block,) = BLOCKS["yaml"]
    shape = (
        botocore.session.get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    )
    extra = yaml.safe_load(block)["launcher"]["request"]
    report = ParamValidator().validate(extra, shape).generate_report()
    # It is a part of a request only.
    assert [line for line in report.splitlines() if not line.startswith("Missing required")] == []


def test_every_command_of_aws_or_ours_is_marked() -> None:
    commands = [line for block in BLOCKS["bash"] for line in block.replace("\\\n", " ").splitlines()]
    talking = [line for line in commands if re.search(r"\baws [a-z0-9-]+ |launcher=|bincounter rehearsal", line)]
    assert len(talking) > 15
    for line in talking:
        assert re.search(r"# (rehearsed|unproven)", line), line


def test_names_of_jobs_are_those_that_the_policies_allow() -> None:
    assert re.sub(r"[0-9a-f]", "0", job_name("train", 0)) == re.sub(r"[0-9a-f]", "0", JOB)
