"""Every refusal and failure of an endpoint is one sentence with the next step."""

import pytest
from botocore.exceptions import ClientError

from bincounter.cloud.aws_errors import describe_endpoint_failure, translate_endpoint_errors
from bincounter.errors import BinCounterError, ConfigError, ResourceError

REFUSALS = {
    "quota": (
        "ResourceLimitExceeded",
        "The account-level service limit 'Memory size in MB per serverless endpoint' is 3072 MBs, with current "
        "utilization of 0 MBs and a request delta of 4096 MBs.",
        ResourceError,
        "is 3072, 0 are in use and 4096 more asked for: ask for a higher one of exactly that name",
    ),
    "not allowed": (
        "AccessDeniedException",
        "User: arn:aws:iam::123456789012:user/ada is not authorized to perform: sagemaker:CreateEndpoint on resource: "
        "arn:aws:sagemaker:us-east-1:123456789012:endpoint/bins",
        ConfigError,
        "have sagemaker:CreateEndpoint on arn:aws:sagemaker:us-east-1:123456789012:endpoint/bins added",
    ),
    "asked too often": (
        "ThrottlingException",
        "Rate exceeded",
        ResourceError,
        "the same command again in a minute",
    ),
    "name": (
        "ValidationException",
        'Cannot create already existing endpoint "arn:aws:sagemaker:us-east-1:1:endpoint/bins".',
        ConfigError,
        "set name to another, or use action=update",
    ),
    "busy": (
        "ValidationException",
        'Cannot update in-progress endpoint "arn:aws:sagemaker:us-east-1:1:endpoint/bins".',
        ConfigError,
        "wait until action=status shows it InService",
    ),
    "archive": (
        "ValidationException",
        'Could not access model data at s3://bins/model.tar.gz. Please ensure that the role "x" exists and that its '
        "trust relationship policy allows the action",
        ConfigError,
        "target.role may not read the archive s3://bins/model.tar.gz: give it s3:GetObject",
    ),
    "role": (
        "ValidationException",
        "Could not assume role arn:aws:iam::1:role/x. Please ensure that the role exists",
        ConfigError,
        "SageMaker cannot act as arn:aws:iam::1:role/x: make sure that the role exists",
    ),
    "instance type": (
        "ValidationException",
        "1 validation error detected: Value 'ml.m9.huge' at 'productionVariants.1.member.instanceType' failed to "
        "satisfy constraint: Member must satisfy enum value set",
        ConfigError,
        "target.instance_type=ml.m9.huge is not an instance type of SageMaker",
    ),
    "not there": (
        "ValidationError",
        "Endpoint bins of account 123456789012 not found.",
        ConfigError,
        "the endpoint bins does not exist in this region: action=list",
    ),
    "another": ("ValidationException", "Something new.", ConfigError, "what target.request adds to it"),
}


@pytest.mark.parametrize(("code", "message", "kind", "sentence"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(code: str, message: str, kind: type[BinCounterError], sentence: str) -> None:
    error = ClientError({"Error": {"Code": code, "Message": message}}, "CreateEndpoint")
    with pytest.raises(kind) as refused, translate_endpoint_errors("creating the endpoint bins"):
        raise error
    assert sentence in str(refused.value)
    assert "launcher" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("reason", "line", "sentence"),
    [
        (
            "The primary container for production variant AllTraffic did not pass the ping health check.",
            "KeyError: 'counts'",
            "the container never answered its health check; its log ends with \"KeyError: 'counts'\"",
        ),
        (
            "Failed to download model data for container from URL s3://bins/model.tar.gz. Please ensure",
            None,
            "target.role may not read the archive s3://bins/model.tar.gz: give it s3:GetObject",
        ),
        ("Unable to provision requested ML compute capacity due to InsufficientInstanceCapacity", None, "again later"),
        ("", None, "SageMaker gives no reason"),
        ("Something new happened.", None, "Something new happened"),
    ],
)
def test_failures(reason: str, line: str | None, sentence: str) -> None:
    assert sentence in describe_endpoint_failure(reason, line)
