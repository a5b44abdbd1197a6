"""Account, region, role and bucket, against a server with AWS's API and a proxy that rejects requests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aws_faults import Faults, faults

from bincounter.cloud.account import Account
from bincounter.errors import ConfigError, DataError, ResourceError

NUMBER = "123456789012"
TRUST = '{"Version": "2012-10-17", "Statement": []}'


@pytest.fixture
def aws(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    for name in ("PROFILE", "SESSION_TOKEN", "DEFAULT_REGION", "ENDPOINT_URL_S3"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    with faults(moto) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


class TestRegion:
    def test_the_override_comes_first(self, aws: Faults) -> None:
        assert Account("eu-west-1").region == "eu-west-1"
        assert Account("eu-west-1").s3.meta.region_name == "eu-west-1"
        assert Account(None).region == "us-east-1"

    def test_the_profile_counts(self, aws: Faults, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "config").write_text("[profile lab]\nregion=ap-south-1\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", "lab")
        monkeypatch.delenv("AWS_REGION")
        assert Account(None).region == "ap-south-1"

    def test_none(self, aws: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_REGION")
        with pytest.raises(ConfigError, match=r"launcher\.region=us-east-1 or another, or AWS_REGION"):
            Account(None)

    @pytest.mark.parametrize(
        ("region", "said"), [("us-east1", "did you mean launcher.region=us-east-1"), ("mars", "mars is not a region")]
    )
    def test_misspelt(self, aws: Faults, region: str, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            Account(region)


class TestNumber:
    def test_asked_for_once(self, aws: Faults) -> None:
        account = Account(None)
        assert account.number == account.number == NUMBER
        assert aws.operations == ["GetCallerIdentity"]

    def test_expired(self, aws: Faults) -> None:
        aws.refuse("GetCallerIdentity", "ExpiredToken", "The security token included in the request is expired")
        with pytest.raises(ConfigError, match="have expired: log in again"):
            assert Account(None).number


class TestBucket:
    @pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"])
    def test_the_default_one_is_made_closed(self, aws: Faults, region: str) -> None:
        account = Account(region)
        name = account.bucket(None)
        assert name == f"sagemaker-{region}-{NUMBER}"
        closed = account.s3.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"]
        assert len(closed) == 4 and all(closed.values())
        aws.operations.clear()
        assert account.bucket(None) == name
        assert aws.operations == [f"HEAD /{name}"]

    def test_one_of_ours(self, aws: Faults) -> None:
        Account("us-east-1").s3.create_bucket(Bucket="mine")
        assert Account("us-east-1").bucket("mine") == "mine"

    def test_in_another_region(self, aws: Faults) -> None:
        place = {"LocationConstraint": "eu-west-1"}
        Account("eu-west-1").s3.create_bucket(Bucket="far", CreateBucketConfiguration=place)
        with pytest.raises(
            ConfigError, match=r"far is in eu-west-1 and what uses it in us-east-1: set launcher\.region=eu-west-1"
        ):
            Account("us-east-1").bucket("far")

    @pytest.mark.parametrize("status", [301, 400, 403])
    def test_in_another_region_as_s3_itself_answers(self, aws: Faults, status: int) -> None:
        aws.refuse("HEAD /far2", "", status=status, headers={"x-amz-bucket-region": "eu-west-1"})
        with pytest.raises(ConfigError, match="far2 is in eu-west-1"):
            Account("us-east-1").bucket("far2")

    def test_missing(self, aws: Faults) -> None:
        with pytest.raises(ConfigError, match=r"launcher\.bucket=no-such does not exist: correct it"):
            Account(None).bucket("no-such")

    @pytest.mark.parametrize("name", ["theirs", None])
    def test_of_others(self, aws: Faults, name: str | None) -> None:
        aws.refuse("HEAD /.*", "", status=403, headers={"x-amz-bucket-region": "us-east-1"})
        with pytest.raises(ConfigError, match="denied: have s3:ListBucket"):
            Account(None).bucket(name)

    def test_that_may_not_be_made(self, aws: Faults) -> None:
        message = f"User: arn:aws:iam::{NUMBER}:user/ada is not authorized to perform: s3:CreateBucket on resource: x"
        aws.refuse("PUT /sagemaker-.*", "AccessDenied", message, status=403)
        with pytest.raises(ConfigError, match=r"creating the bucket .* is not allowed: have s3:CreateBucket on"):
            Account("ap-south-1").bucket(None)


class TestRole:
    ARN = f"arn:aws:iam::{NUMBER}:role/service-role/bin.counter"

    def test_an_arn_needs_no_request(self, aws: Faults) -> None:
        assert Account(None).role(self.ARN) == self.ARN
        assert not aws.operations

    def test_none(self, aws: Faults) -> None:
        with pytest.raises(ConfigError, match=r"docs/sagemaker.md .*launcher.role"):
            Account(None).role(None)

    def test_a_name_is_looked_up_with_its_path(self, aws: Faults) -> None:
        account = Account(None)
        account.iam.create_role(RoleName="named", Path="/service-role/", AssumeRolePolicyDocument=TRUST)
        assert account.role("named") == f"arn:aws:iam::{NUMBER}:role/service-role/named"

    def test_a_name_nobody_knows(self, aws: Faults) -> None:
        with pytest.raises(ConfigError, match=r"launcher\.role=unknown finds nothing of that name: correct it"):
            Account(None).role("unknown")

    def test_looking_up_is_denied(self, aws: Faults) -> None:
        aws.refuse("GetRole", "AccessDenied", "not authorized to perform: iam:GetRole", status=403)
        assert Account("cn-north-1").role("named") == f"arn:aws-cn:iam::{NUMBER}:role/named"


class TestSource:
    @pytest.fixture
    def account(self, aws: Faults) -> Account:
        account = Account("us-east-1")
        account.s3.create_bucket(Bucket="bins")
        account.s3.put_object(Bucket="bins", Key="2026/3/a.jpg", Body=b"x")
        return account

    @pytest.mark.parametrize("uri", ["s3://bins", "s3://bins/", "s3://bins/2026", "s3://bins/2026/"])
    def test_readable(self, account: Account, uri: str) -> None:
        account.check_source(uri)

    @pytest.mark.parametrize(
        "uri", ["s3://bins/202", "s3://bins/2027", "s3://nobody-has-it", "s3://", "s3://bad@bins/x"]
    )
    def test_nothing_there(self, account: Account, uri: str) -> None:
        with pytest.raises(DataError, match=": "):
            account.check_source(uri)

    def test_elsewhere(self, account: Account) -> None:
        with pytest.raises(ConfigError, match="is in us-east-1 and the job in eu-west-1"):
            Account("eu-west-1").check_source("s3://bins/2026")

    @pytest.mark.parametrize("operation", ["HEAD /bins", "GET /bins"])
    def test_denied(self, account: Account, aws: Faults, operation: str) -> None:
        aws.refuse(operation, "AccessDenied", "Access Denied", status=403)
        with pytest.raises(DataError, match="access to s3://bins/2026 is denied: have s3:ListBucket"):
            account.check_source("s3://bins/2026")

    def test_unreachable(self, aws: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(ResourceError, match="cannot be reached"):
            Account(None).check_source("s3://bins/2026")


@pytest.mark.parametrize(
    ("region", "start"),
    [
        ("eu-west-1", "https://eu-west-1.console.aws.amazon.com/sagemaker/home?region=eu-west-1#"),
        ("us-gov-west-1", "https://us-gov-west-1.console.amazonaws-us-gov.com/sagemaker/home?"),
        ("cn-north-1", "https://cn-north-1.console.amazonaws.cn/sagemaker/home?"),
    ],
)
def test_console_link(aws: Faults, region: str, start: str) -> None:
    link = Account(region).console_link("demo-1")
    assert link.startswith(start) and link.endswith("#/jobs/demo-1")


def test_clients_are_made_once_and_work_side_by_side(aws: Faults) -> None:
    from concurrent.futures import ThreadPoolExecutor

    account = Account(None)

    def ask(_: int) -> Any:
        return account.s3, account.iam, account.number

    with ThreadPoolExecutor(8) as pool:
        assert len({(id(s3), id(iam), number) for s3, iam, number in pool.map(ask, range(16))}) == 1
