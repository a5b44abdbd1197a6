"""Every refusal a first user meets is one sentence with the next step: real clients against AWS's own answers."""

from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from aws_faults import Faults, faults
from botocore.exceptions import ClientError

from bincounter.cloud import account, polling
from bincounter.cloud.account import Account
from bincounter.cloud.aws_errors import NotAnswered, describe_error, translate_errors
from bincounter.cloud.jobs import Job
from bincounter.cloud.jobs import submit as submit_job
from bincounter.data.s3.error_messages import explain_request
from bincounter.errors import BinCounterError, ConfigError, DataError, ResourceError, UserError

ROLE = "arn:aws:iam::123456789012:role/bincounter"
SECRET = "hunter2-is-my-token"
REQUEST: dict[str, Any] = {
    "TrainingJobName": "demo-1",
    "RoleArn": ROLE,
    "AlgorithmSpecification": {
        "TrainingImage": "123456789012.dkr.ecr.us-east-1.amazonaws.com/x:1",
        "TrainingInputMode": "File",
    },
    "OutputDataConfig": {"S3OutputPath": "s3://bucket/jobs"},
    "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 50},
    "StoppingCondition": {"MaxRuntimeInSeconds": 60},
    "Environment": {"TOKEN": SECRET},
}
USER = "User: arn:aws:iam::123456789012:user/ada"


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials and no settings of the person who runs the tests."""
    for name in ("PROFILE", "SESSION_TOKEN", "ENDPOINT_URL", "DEFAULT_REGION", "REGION", "ACCESS_KEY_ID"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.fixture
def aws(nobody: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """A server that refuses what a test says, and the environment that leads there."""
    with faults() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def connected() -> Iterator[tuple[Faults, Account]]:
    """Such a server with a client that is made once: that takes longer than all its requests."""
    with faults() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        account = Account(None)
        assert account.sagemaker
        yield server, account


def submit(account: Account | None = None, **changes: Any) -> BinCounterError:
    """The error that submitting a training job ends in."""
    with pytest.raises(BinCounterError) as caught, translate_errors("creating the training job demo-1"):
        (account or Account("us-east-1")).sagemaker.create_training_job(**REQUEST | changes)
    return check(caught.value)


def check(error: BinCounterError) -> BinCounterError:
    """Properties of every sentence: one line, a next step, and nothing of the request's values."""
    sentence = str(error)
    assert "\n" not in sentence and len(sentence) < 600
    assert ": " in sentence, "no next step"
    assert SECRET not in sentence and "Traceback" not in sentence
    return error


REFUSALS = {
    "expired": (
        "ExpiredTokenException",
        "The security token included in the request is expired",
        ConfigError,
        ["expired", "log in again"],
    ),
    "unknown": (
        "UnrecognizedClientException",
        "The security token included in the request is invalid.",
        ConfigError,
        ["does not know these credentials", "AWS_PROFILE"],
    ),
    "secret key": (
        "InvalidSignatureException",
        "The request signature we calculated does not match the signature you provided.",
        ConfigError,
        ["AWS_SECRET_ACCESS_KEY"],
    ),
    "clock": (
        "InvalidSignatureException",
        "Signature expired: 20261120T100000Z is now earlier than 20261120T110000Z",
        ConfigError,
        ["clock"],
    ),
    "not signed up": (
        "OptInRequired",
        "The AWS Access Key Id needs a subscription for the service",
        ConfigError,
        ["sign-up", "launcher.region"],
    ),
    "not allowed": (
        "AccessDeniedException",
        f"{USER} is not authorized to perform: sagemaker:CreateTrainingJob on resource: "
        "arn:aws:sagemaker:us-east-1:123456789012:training-job/demo-1 because no identity-based policy allows the "
        "sagemaker:CreateTrainingJob action",
        ConfigError,
        ["sagemaker:CreateTrainingJob", "training-job/demo-1", "docs/sagemaker.md"],
    ),
    "without a resource": (
        "AccessDeniedException",
        f"{USER} is not authorized to perform: sagemaker:AddTags because no session policy allows it",
        ConfigError,
        ["have sagemaker:AddTags added"],
    ),
    "without a word": ("AccessDeniedException", "", ConfigError, ["CreateTrainingJob", "docs/sagemaker.md"]),
    "forbidden": (
        "AccessDeniedException",
        f"{USER} is not authorized to perform: sagemaker:CreateTrainingJob on resource: arn:aws:sagemaker:x with an "
        "explicit deny in a service control policy",
        ConfigError,
        ["forbids sagemaker:CreateTrainingJob", "administrator"],
    ),
    "pass role": (
        "AccessDeniedException",
        f"{USER} is not authorized to perform: iam:PassRole on resource: {ROLE} because no identity-based policy "
        "allows the iam:PassRole action",
        ConfigError,
        [f"pass {ROLE} to SageMaker", "iam:PassRole", "docs/sagemaker.md"],
    ),
    "trust": (
        "ValidationException",
        f"Could not assume role {ROLE}. Please ensure that the role exists and allows principal "
        "'sagemaker.amazonaws.com' to assume the role.",
        ConfigError,
        [f"cannot act as {ROLE}:", "trust policy", "docs/sagemaker.md"],
    ),
    "quota": (
        "ResourceLimitExceeded",
        "The account-level service limit 'ml.g5.xlarge for spot training job usage' is 0 Instances, with current "
        "utilization of 0 Instances and a request delta of 1 Instances. Please use AWS Service Quotas to request an "
        "increase for this quota.",
        ResourceError,
        ["'ml.g5.xlarge for spot training job usage' of this account is 0", "Service Quotas", "launcher.instance_type"],
    ),
    "other quota": (
        "ResourceLimitExceeded",
        "You have too many resources",
        ResourceError,
        ["too many resources", "Service Quotas"],
    ),
    "no such machine here": (
        "ResourceLimitExceeded",
        "The requested resource training-job/ml.p5.48xlarge is not available in this region",
        ConfigError,
        ["ml.p5.48xlarge", "launcher.region"],
    ),
    "throttled": (
        "ThrottlingException",
        "Rate exceeded",
        ResourceError,
        ["again in a minute", "launcher.max_parallel_jobs"],
    ),
    "name taken": (
        "ResourceInUse",
        "Training job names must be unique within an AWS account and region, and one of this name already exists",
        ConfigError,
        ["the name is in use", "task_name"],
    ),
    "no photos": (
        "ValidationException",
        'No S3 objects found under S3 URL "s3://bins/2026/" given in input data source. Please ensure that the bucket '
        f"exists in the selected region (us-east-1), that objects exist under that S3 prefix, and that the role "
        f'"{ROLE}" has "s3:ListBucket" permissions on bucket "bins".',
        DataError,
        ["s3://bins/2026/", "data.source", "s3:ListBucket"],
    ),
    "bucket elsewhere": (
        "ValidationException",
        "The bucket bins must be in the same AWS region as your training job.",
        ConfigError,
        ["another region", "launcher.region"],
    ),
    "no image": (
        "ValidationException",
        "Cannot find the requested image: 763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:9.9",
        ConfigError,
        ["image does not exist", "launcher.framework_version", "launcher.image"],
    ),
    "image of others": (
        "ValidationException",
        "The repository of your image 1.dkr.ecr.us-east-1.amazonaws.com/x does not grant ecr:GetDownloadUrlForLayer, "
        "ecr:BatchGetImage, ecr:BatchCheckLayerAvailability permission to sagemaker.amazonaws.com service principal.",
        ConfigError,
        ["may not pull it", "ECR"],
    ),
    "no such machine": (
        "ValidationException",
        "1 validation error detected: Value 'ml.g9.huge' at 'resourceConfig.instanceType' failed to satisfy "
        "constraint: Member must satisfy enum value set: [" + ", ".join(f"ml.x{i}.large" for i in range(200)) + "]",
        ConfigError,
        ["launcher.instance_type=ml.g9.huge"],
    ),
    "wrong values": (
        "ValidationException",
        f"2 validation errors detected: Value '{{TOKEN={SECRET}}}' at 'environment' failed to satisfy constraint: Map "
        "value must satisfy constraint: [Member must have length less than or equal to 512]; Value '-1' at "
        "'stoppingCondition.maxRuntimeInSeconds' failed to satisfy constraint: Member must have value greater than or "
        "equal to 1",
        ConfigError,
        ["environment: Map value", "stoppingCondition.maxRuntimeInSeconds: Member", "launcher.request"],
    ),
    "anything else": ("TeapotException", "I am a teapot.", ConfigError, ["TeapotException: I am a teapot)"]),
}


@pytest.mark.parametrize(("code", "message", "kind", "said"), REFUSALS.values(), ids=REFUSALS)
def test_refused_requests(
    connected: tuple[Faults, Account], code: str, message: str, kind: type[BinCounterError], said: list[str]
) -> None:
    server, account = connected
    server.refuse("CreateTrainingJob", code, message)
    error = submit(account)
    assert type(error) is kind
    for words in said:
        assert words in str(error)


def test_trouble_at_aws(aws: Faults) -> None:
    aws.refuse("CreateTrainingJob", "InternalFailure", status=500)
    error = submit()
    assert isinstance(error, ResourceError) and "again later" in str(error)


def test_a_throttled_request_is_repeated(aws: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    aws.refuse("CreateTrainingJob", "AccessDeniedException", "at last")
    aws.refuse("CreateTrainingJob", "ThrottlingException", "Rate exceeded", times=2)
    assert "is not allowed" in str(submit())
    assert aws.operations.count("CreateTrainingJob") == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"Environment": {"TOKEN": ["x, value: ", SECRET]}}, "Environment.TOKEN, valid types"),
        ({"EnableManagedSpotTrainin": True}, '"EnableManagedSpotTrainin"'),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 0, "MaxWaitTimeInSeconds": SECRET}}, ", and 1 more"),
        ({"RoleArn": "short"}, "RoleArn"),
    ],
)
def test_requests_the_api_does_not_have(aws: Faults, changes: dict[str, Any], said: str) -> None:
    error = submit(**changes)
    assert isinstance(error, ConfigError) and said in str(error)
    assert "launcher.request" in str(error) and not aws.operations


class TestWithoutAnAnswer:
    def test_no_credentials(self) -> None:
        error = submit()
        assert isinstance(error, UserError) and "aws configure" in str(error)

    def test_half_credentials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
        error = submit()
        assert isinstance(error, UserError) and "AWS_PROFILE" in str(error)

    def test_no_such_profile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        error = submit()
        assert isinstance(error, UserError) and "nobody" in str(error)

    def test_login_missing(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "config").write_text(
            "[profile lab]\nsso_session=lab\nsso_account_id=123456789012\nsso_role_name=x\n"
            "[sso-session lab]\nsso_start_url=https://lab.invalid/start\nsso_region=us-east-1\n"
        )
        monkeypatch.setenv("AWS_PROFILE", "lab")
        error = submit()
        assert isinstance(error, ConfigError) and "aws sso login --profile lab" in str(error)

    def test_no_endpoint(self, aws: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@127.0.0.1:9")
        error = submit()
        assert isinstance(error, ResourceError)
        assert "127.0.0.1:9 cannot be reached" in str(error) and "AWS_ENDPOINT_URL" in str(error)

    def test_no_network(self, aws: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:{SECRET}@127.0.0.1:9")
        error = submit()
        assert isinstance(error, ResourceError) and "HTTPS_PROXY" in str(error)

    def test_endpoint_that_is_none(self, aws: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", SECRET)
        error = submit()
        assert isinstance(error, UserError) and "AWS_ENDPOINT_URL" in str(error)


def test_an_upload_that_is_refused(aws: Faults, tmp_path: Path) -> None:
    """boto3's transfers raise an error of their own, which tells less."""
    (tmp_path / "source.tar.gz").write_bytes(b"x")
    aws.refuse("PUT /bucket/source.tar.gz", "NoSuchBucket", "The specified bucket does not exist", status=404)
    with pytest.raises(ConfigError, match=r"launcher\.bucket or data\.source") as caught, translate_errors("uploading"):
        Account(None).s3.upload_file(str(tmp_path / "source.tar.gz"), "bucket", "source.tar.gz")
    check(caught.value)


def test_errors_of_ours_pass() -> None:
    with pytest.raises(KeyError), translate_errors("looking"):
        raise KeyError("x")


PAST = {"HTTPHeaders": {"date": "Fri, 01 Mar 2024 10:00:00 GMT"}, "HTTPStatusCode": 403}


@pytest.mark.parametrize(
    ("code", "message", "metadata"),
    [
        ("RequestTimeTooSkewed", "", {}),
        ("SignatureDoesNotMatch", "Signature expired: 20261101T000000Z is now earlier than 20261128T000000Z", {}),
        ("InvalidSignatureException", "Signature not yet current: 20261128T000000Z is still later", {}),
        ("AccessDenied", "The difference between the request time and the current time is too large.", {}),
        ("403", "Forbidden", PAST),  # an answer to HEAD has no message
        ("SignatureDoesNotMatch", "The request signature we calculated does not match", PAST),
    ],
)
def test_a_wrong_clock_is_no_missing_right(code: str, message: str, metadata: dict[str, Any]) -> None:
    error = ClientError({"Error": {"Code": code, "Message": message}, "ResponseMetadata": metadata}, "HeadBucket")
    assert "the clock of this machine is wrong" in str(check(describe_error(error, "using the bucket bins")))
    ours = explain_request(error, "s3://bins/1.jpg", host="s3", signed=True, reached=True)
    assert "the clock of this machine is wrong" in str(ours)


def test_a_right_clock_is_a_missing_right() -> None:
    now = {"HTTPHeaders": {"date": formatdate(usegmt=True)}, "HTTPStatusCode": 403}
    error = ClientError({"Error": {"Code": "403", "Message": "Forbidden"}, "ResponseMetadata": now}, "HeadBucket")
    assert "is not allowed" in str(describe_error(error, "using the bucket bins"))


def job(folder: Path) -> Job:
    return Job("demo-1", 0, folder, "us-east-1", "s3://bucket/jobs/demo-1", [], 1.0)


@pytest.fixture
def impatient(aws: Faults, monkeypatch: pytest.MonkeyPatch) -> Faults:
    monkeypatch.setattr(account, "_TIMEOUT", 0.5)
    monkeypatch.setattr(polling, "_SILENT_AFTER", 0.1)
    return aws


def test_a_job_whose_creation_is_not_answered_is_not_forgotten(
    impatient: Faults, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    impatient.silence("CreateTrainingJob|DescribeTrainingJob")
    with pytest.raises(NotAnswered, match="AWS did not answer submitting demo-1, and it may have been done: look"):
        submit_job(Account("us-east-1"), job(tmp_path), REQUEST)
    assert "No response from AWS to CreateTrainingJob for 0 s: waiting and retrying" in caplog.text
    assert (tmp_path / "job.json").exists()
    assert impatient.operations.count("CreateTrainingJob") == 1


def test_a_job_that_was_not_created_is_forgotten(impatient: Faults, tmp_path: Path) -> None:
    impatient.silence("CreateTrainingJob")
    impatient.refuse("DescribeTrainingJob", "ValidationException", "Requested resource not found.")
    with pytest.raises(ResourceError, match="does not answer submitting demo-1") as error:
        submit_job(Account("us-east-1"), job(tmp_path), REQUEST)
    assert not isinstance(error.value, NotAnswered)
    assert not (tmp_path / "job.json").exists()


def test_a_job_that_was_created_without_an_answer_is_taken(aws: Faults, tmp_path: Path) -> None:
    aws.refuse("CreateTrainingJob", "InternalFailure", status=500)
    aws.refuse("DescribeTrainingJob", "", status=200)
    submit_job(Account("us-east-1"), job(tmp_path), REQUEST)
    assert (tmp_path / "job.json").exists()
