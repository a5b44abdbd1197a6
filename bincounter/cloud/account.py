"""AWS account: credentials, region, account number, bucket and role.

Settings come from the places that every AWS tool reads: ``AWS_*`` variables (``AWS_PROFILE``, ``AWS_REGION``,
``AWS_ENDPOINT_URL``), the files in ``~/.aws``, single sign-on, and the role of the machine.
"""

import json
import logging
import os
import threading
from functools import cache, cached_property
from typing import Any
from urllib.parse import urlsplit

from bincounter.cloud.aws_errors import describe_error, translate_errors
from bincounter.cloud.polling import log_silence
from bincounter.errors import BinCounterError, ConfigError, closest_match

log = logging.getLogger(__name__)

_CONSOLES = {"aws-cn": "console.amazonaws.cn", "aws-us-gov": "console.amazonaws-us-gov.com"}
_STAND_IN_REGION, _STAND_IN_NUMBER = "us-east-1", "000000000000"
_STAND_IN_ROLE = f"arn:aws:iam::{_STAND_IN_NUMBER}:role/stand-in"
_TIMEOUT = 20.0  # seconds to wait for a response; SageMaker responds within one or two
_SLOW_TIMEOUT = 60.0  # for photos, files and models
_SLOW_SERVICES = ("s3", "sagemaker-runtime")
_ATTEMPTS = 4
_DENIED = ("403", "AccessDenied", "AccessDeniedException", "Forbidden")
_MISSING = ("404", "NoSuchBucket", "NotFound")


def _client_of(service: str) -> property:
    return property(lambda account: account.client(service), doc=f"The boto3 client of {service}.")


class Account:
    """AWS account in one region. Creating it sends no request, and a role given as an ARN works offline.

    Args:
        region: ``launcher.region``; ``None`` for that of ``AWS_REGION``, ``AWS_DEFAULT_REGION`` or the profile.
        group: group of settings to name in messages, ``launcher`` or ``target``.
        dry: only show requests, with placeholders for values that need region, credentials or a role, see
            :meth:`shown`.

    Attributes:
        region: the region's name, one that has SageMaker.

    Raises:
        ConfigError: no region is set, SageMaker is not in it, or the profile does not exist.
    """

    sagemaker = _client_of("sagemaker")
    s3 = _client_of("s3")
    logs = _client_of("logs")
    sts = _client_of("sts")
    iam = _client_of("iam")
    runtime = _client_of("sagemaker-runtime")
    autoscaling = _client_of("application-autoscaling")

    def __init__(self, region: str | None, group: str = "launcher", *, dry: bool = False) -> None:
        import boto3

        for name in ("boto3", "botocore", "urllib3"):
            debugging = logging.getLogger(name).isEnabledFor(logging.DEBUG)
            # At DEBUG they log session tokens, and at INFO the source of the credentials.
            logging.getLogger(name).setLevel(logging.INFO if debugging else logging.WARNING)
        self._group = group
        with translate_errors("reading the AWS settings", group):
            self._session = boto3.Session()
            # boto3 itself knows AWS_DEFAULT_REGION only, every other AWS tool knows AWS_REGION.
            self.region = region or os.environ.get("AWS_REGION") or self._session.region_name or ""
            self._stands_in: dict[str, str] = {}
            self._dry, self._nowhere = dry, dry and not self.region
            if self._nowhere:
                self.region = _STAND_IN_REGION
                self._stands_in[_STAND_IN_REGION] = "<region>"
            _check_region(self.region, group)
        self._clients: dict[str, Any] = {}
        self._lock = threading.RLock()  # jobs are submitted from several threads; sessions are not thread-safe

    @cached_property
    def number(self) -> str:
        """The twelve digits of the account, requested once.

        Raises:
            BinCounterError: there are no credentials, or AWS refuses them.
        """
        try:
            with translate_errors("looking up the account of the AWS credentials", self._group):
                return str(self.sts.get_caller_identity()["Account"])
        except BinCounterError:
            if not self._dry:
                raise
            self._stands_in[_STAND_IN_NUMBER] = "<account>"
            return _STAND_IN_NUMBER

    def shown(self, request: Any) -> str:
        """Format a request as JSON, with ``<region>``, ``<account>`` and ``<role>`` for unknown values."""
        text = json.dumps(request, indent=2, ensure_ascii=False, default=str)
        for value, placeholder in sorted(self._stands_in.items(), key=lambda pair: -len(pair[0])):  # roles contain all
            text = text.replace(value, placeholder)
        return text

    def log_placeholders(self) -> None:
        """Log the placeholders that :meth:`shown` has used, if any."""
        known = {
            "<region>": f"{self._group}.region or AWS_REGION is set",
            "<account>": "you are logged in at AWS",
            "<role>": f"{self._group}.role is set",
        }
        for placeholder in self._stands_in.values():
            log.warning("%s in the request stands for what is known once %s.", placeholder, known[placeholder])

    @property
    def default_bucket(self) -> str:
        """Name of the SageMaker SDK's default bucket, which may not exist yet."""
        return f"sagemaker-{self.region}-{self.number}"

    def bucket(self, name: str | None) -> str:
        """Check the bucket for code, checkpoints and models, and return its name.

        Args:
            name: of a bucket that exists in this region; ``None`` for ``sagemaker-<region>-<account>``, the SageMaker
                SDK's default, which is created when it is missing, closed to the public.

        Raises:
            ConfigError: the bucket does not exist, access is denied, or it is in another region.
        """
        from botocore.exceptions import ClientError

        from bincounter.data.s3.error_messages import is_clock_wrong

        used = name or self.default_bucket
        # Bucket names are worldwide: somebody else may have taken the default one to collect other people's uploads.
        owner = {} if name else {"ExpectedBucketOwner": self.number}
        with translate_errors(f"using the bucket {used}", self._group):
            try:
                bucket_region = self._bucket_region(used, **owner)
            except ClientError as error:
                if _code(error) in _DENIED and not is_clock_wrong(error):
                    raise ConfigError(
                        f"access to the bucket {used} is denied: have s3:ListBucket on it added to the policies of "
                        f"your AWS user (docs/sagemaker.md), or, if it is another account's, set {self._group}.bucket "
                        "to one of yours"
                    ) from error
                if _code(error) not in _MISSING:
                    raise
                if name:
                    raise ConfigError(
                        f"{self._group}.bucket={name} does not exist: correct it, make it with `aws s3 mb s3://{name} "
                        f"--region {self.region}`, or leave it out for the default one"
                    ) from error
                self._make_bucket(used)
                return used
        if bucket_region and bucket_region != self.region:
            raise ConfigError(
                f"{self._group}.bucket={used} is in {bucket_region} and what uses it in {self.region}: set "
                f"{self._group}.region={bucket_region}, or leave {self._group}.bucket out for one in {self.region}"
            )
        return used

    def role(self, name_or_arn: str | None) -> str:
        """Return the ARN of the role that SageMaker runs the job as.

        Args:
            name_or_arn: ``launcher.role``, which was checked. An ARN is taken as it is, without a request. A name is
                looked up; where that is not allowed, its ARN is made from the account's number.

        Raises:
            ConfigError: no role is set, or it does not exist.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        if not name_or_arn and self._dry:
            self._stands_in[_STAND_IN_ROLE] = "<role>"
            return _STAND_IN_ROLE
        if not name_or_arn:
            raise ConfigError(
                "SageMaker runs a job as a role, and none is set: create one with the commands of docs/sagemaker.md "
                f"(The role), then set {self._group}.role to its name or ARN"
            )
        if name_or_arn.startswith("arn:"):
            return name_or_arn
        with translate_errors(f"looking up {self._group}.role={name_or_arn}", self._group):
            try:
                return str(self.iam.get_role(RoleName=name_or_arn.rpartition("/")[2])["Role"]["Arn"])
            except ClientError as error:
                if _code(error) not in _DENIED and not self._dry:
                    raise
            except (BotoCoreError, BinCounterError):
                if not self._dry:
                    raise
        partition = self._session.get_partition_for_region(self.region)
        return f"arn:{partition}:iam::{self.number}:role/{name_or_arn}"

    def check_source(self, uri: str) -> None:
        """Check that a job in this region can read an ``s3://`` source.

        Args:
            uri: ``data.source``, an address of a folder or a bucket.

        Raises:
            DataError: it is not an address, or holds nothing that may be read.
            ConfigError: the bucket is in another region than the job, which SageMaker refuses.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        from bincounter.data.s3.address import parse_address
        from bincounter.data.s3.error_messages import MissingError, explain_request

        name, folder = parse_address(uri)
        host = urlsplit(self.s3.meta.endpoint_url).netloc.rpartition("@")[2]
        try:
            bucket_region = self._bucket_region(name)
            if bucket_region and bucket_region != self.region:
                raise ConfigError(
                    f"data.source={uri} is in {bucket_region} and the job in {self.region}, from where SageMaker does "
                    f"not read it: set launcher.region={bucket_region}, or copy the photos to a bucket in {self.region}"
                )
            prefix = f"{folder}/" if folder else ""
            listed = self.s3.list_objects_v2(Bucket=name, Prefix=prefix, MaxKeys=1)
        except ClientError as error:
            raise explain_request(error, uri, host=host, signed=True, reached=True) from error
        except BotoCoreError as error:
            raise describe_error(error, f"checking data.source={uri}") from error
        if not listed.get("KeyCount", len(listed.get("Contents", ()))):
            raise MissingError(f"there is nothing under {uri}: correct data.source, its letters' case included")

    def console_link(self, job_name: str) -> str:
        """URL of a training job in the AWS console."""
        console = _CONSOLES.get(self._session.get_partition_for_region(self.region), "console.aws.amazon.com")
        return f"https://{self.region}.{console}/sagemaker/home?region={self.region}#/jobs/{job_name}"

    def client(self, service: str) -> Any:
        """The boto3 client of a service.

        Args:
            service: its name in boto3, such as ``sagemaker-runtime``.

        Raises:
            ConfigError: no region is set, or ``AWS_ENDPOINT_URL`` is not an address.
        """
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        if self._nowhere:
            raise ConfigError(f"no AWS region is set: set {self._group}.region=us-east-1 or another, or AWS_REGION")
        with self._lock:
            if service not in self._clients:
                retries: dict[str, Any] = {"mode": "adaptive"}  # slows down when AWS throttles
                if "AWS_MAX_ATTEMPTS" not in os.environ:
                    retries["total_max_attempts"] = _ATTEMPTS
                timeout = _SLOW_TIMEOUT if service in _SLOW_SERVICES else _TIMEOUT
                config = Config(
                    retries=retries,
                    connect_timeout=10,
                    read_timeout=timeout,
                    max_pool_connections=32,  # photos are uploaded by many threads
                    user_agent_extra="bincounter",
                )
                try:
                    self._clients[service] = self._session.client(service, region_name=self.region, config=config)
                except (BotoCoreError, ValueError) as error:  # an invalid endpoint is a ValueError
                    raise describe_error(error, f"reaching {service}", self._group) from error
                log_silence(self._clients[service], timeout * _ATTEMPTS)
            return self._clients[service]

    def _bucket_region(self, name: str, **condition: str) -> str | None:
        """Region of a bucket; ``None`` from servers that have one region and do not name it."""
        from botocore.exceptions import ClientError

        try:
            answer = self.s3.head_bucket(Bucket=name, **condition)
        except ClientError as error:
            region = _region_header(error.response)
            if region and region != self.region and _code(error) not in _MISSING:
                return region  # refused for the region, before anything else was checked
            raise
        return answer.get("BucketRegion") or _region_header(answer)

    def _make_bucket(self, name: str) -> None:
        from botocore.exceptions import ClientError

        place = {} if self.region == "us-east-1" else {"LocationConstraint": self.region}
        with translate_errors(f"creating the bucket {name}", self._group):
            try:
                self.s3.create_bucket(Bucket=name, **({"CreateBucketConfiguration": place} if place else {}))
            except ClientError as error:
                if _code(error) != "BucketAlreadyOwnedByYou":  # another command was faster
                    raise
            closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
            self.s3.put_public_access_block(
                Bucket=name, PublicAccessBlockConfiguration=dict.fromkeys(closed, True), ExpectedBucketOwner=self.number
            )


def _check_region(region: str, group: str) -> None:
    if not region:
        raise ConfigError(f"no AWS region is set: set {group}.region=us-east-1 or another, or AWS_REGION")
    if region not in _regions():
        guess = closest_match(region, _regions())
        hint = f"did you mean {group}.region={guess}?" if guess else f"set {group}.region=us-east-1 or another"
        raise ConfigError(f"{region} is not a region of SageMaker: {hint} (AWS_REGION and the profile set it, too)")


@cache
def _regions() -> tuple[str, ...]:
    """List all regions with SageMaker, by botocore's endpoint data; reading it takes a quarter of a second."""
    import boto3

    session = boto3.Session()
    partitions = session.get_available_partitions()
    return tuple(
        name
        for partition in partitions
        for name in session.get_available_regions("sagemaker", partition_name=partition)
    )


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _region_header(answer: dict[str, Any]) -> str | None:
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return headers.get("x-amz-bucket-region") or None
