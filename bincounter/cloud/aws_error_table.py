"""Table of AWS errors that refuse a request or fail a job or an endpoint, with a message for each.

The patterns are the wording of the services in 2026, as users report it. The first case that matches counts, so that
general ones stand last. ``{group}`` in a message is the group of settings that the request was made from, ``launcher``
or ``target``; the other names are in :data:`SETTINGS`.
"""

import re
from dataclasses import dataclass

from bincounter.errors import BinCounterError, ConfigError, DataError, ResourceError

_IMAGE = (
    r"(?:[Cc]annot find the requested image|repository of your image|Cannot ?[Pp]ull ?(?:Container|algorithm)"
    r"|ecr:(?:BatchGetImage|GetDownloadUrlForLayer|GetAuthorizationToken|BatchCheckLayerAvailability)"
    r"|(?:Image|Repository)NotFoundException)"
)
_NO_IMAGE = (
    "the image does not exist in this region, or {group}.role may not pull it: correct {image}, or give the role the "
    "ECR actions of docs/sagemaker.md"
)
_NO_ROLE = (
    "SageMaker cannot act as {role}: make sure that the role exists and that its trust policy names "
    "sagemaker.amazonaws.com, as docs/sagemaker.md shows (a new role takes some seconds to be known)"
)
_NO_OBJECTS = (
    "SageMaker finds no object under {url}: correct {source}, its letters' case included, or give {group}.role "
    "s3:ListBucket and s3:GetObject on it (docs/sagemaker.md)"
)
_ELSEWHERE = (
    "a bucket is in another region than what uses it: set {group}.region to the bucket's, or use a bucket of "
    "{group}.region"
)


_NO_ARCHIVE = (
    "target.role may not read the archive {url}: give it s3:GetObject there, as docs/sagemaker.md shows, and "
    "kms:Decrypt where the bucket is encrypted with a key of its own"
)
SETTINGS = {
    "launcher": {
        "source": "data.source",
        "image": "launcher.framework_version or launcher.image",
        "amount": "launcher.instance_type, launcher.instance_count or launcher.max_parallel_jobs",
        "fewer": ", or lower launcher.max_parallel_jobs",
        "vpc": "launcher.request.VpcConfig",
    },
    "target": {
        "source": "input",
        "image": "target.image",
        "amount": "target.instance_type, target.instance_count, target.memory_mb or target.max_concurrency",
        "fewer": "",
        "vpc": "target.request.Model.VpcConfig",
    },
}
"""Group -> its settings of photos, image, capacity and network, and advice that reduces requests."""


@dataclass(frozen=True)
class AwsErrorCase:
    """One refusal or failure.

    Attributes:
        codes: error codes that it applies to, separated by spaces; empty for any.
        message: regular expression that AWS's message matches.
        error: class to raise.
        sentence: message to raise it with, a format string.
        group: the only group that it applies to; empty for both.
    """

    codes: str
    message: str
    error: type[BinCounterError]
    sentence: str
    group: str = ""

    def match(self, code: str, message: str, group: str) -> re.Match[str] | None:
        """Match an error code and a message of AWS."""
        if (self.codes and code not in self.codes.split()) or self.group not in ("", group):
            return None
        return re.search(self.message, message, re.DOTALL)


_DENIED = "AccessDenied AccessDeniedException UnauthorizedOperation AuthorizationError Forbidden 403"
THROTTLED = "Throttling ThrottlingException ThrottledException TooManyRequestsException RequestLimitExceeded SlowDown"
CASES = (
    AwsErrorCase(
        "ValidationException ResourceInUse ConflictException",
        r"[Cc]annot create already existing|already exists",
        ConfigError,
        "the name is in use, so {doing} is refused: set name to another, or use action=update",
        "target",
    ),
    AwsErrorCase(
        "ValidationException ResourceInUse ConflictException",
        r"in-progress|in progress|[Cc]annot (?:update|delete) endpoint.*(?:Creating|Updating|RollingBack|Deleting)",
        ConfigError,
        "the endpoint is busy, so {doing} is refused: wait until action=status shows it InService",
        "target",
    ),
    AwsErrorCase(
        "ValidationException",
        r"model data at (?P<url>s3://[^\s,\"]+?)[.,]?(?:\s|$)",
        ConfigError,
        _NO_ARCHIVE,
        "target",
    ),
    AwsErrorCase(
        "ValidationError ValidationException",
        r"Endpoint (?P<name>\S+) of account(?: \d+)? not found",
        ConfigError,
        "the endpoint {name} does not exist in this region: action=list shows all",
        "target",
    ),
    AwsErrorCase(
        "ExpiredToken ExpiredTokenException RequestExpired TokenRefreshRequired",
        "",
        ConfigError,
        "the AWS credentials have expired: log in again{login}",
    ),
    AwsErrorCase(
        "InvalidSignatureException SignatureDoesNotMatch IncompleteSignature",
        "",
        ConfigError,
        "the secret key does not belong to the access key ({code}): correct AWS_SECRET_ACCESS_KEY, or set AWS_PROFILE",
    ),
    AwsErrorCase(
        "UnrecognizedClientException InvalidClientTokenId InvalidAccessKeyId InvalidToken AuthFailure "
        "MissingAuthenticationToken MissingAuthenticationTokenException",
        "",
        ConfigError,
        "AWS does not know these credentials, or not in this region ({code}): log in again{login}, correct "
        "AWS_ACCESS_KEY_ID, or set AWS_PROFILE to another profile",
    ),
    AwsErrorCase(
        "OptInRequired SubscriptionRequiredException",
        "",
        ConfigError,
        "this AWS account is not yet active for what was asked ({code}): finish its sign-up in the console, or set "
        "{group}.region to a region it has enabled",
    ),
    AwsErrorCase("", _IMAGE, ConfigError, _NO_IMAGE),
    AwsErrorCase(
        _DENIED,
        r"perform: iam:PassRole on resource: (?P<role>[^\s\"]+)",
        ConfigError,
        "your AWS user may not pass {role} to SageMaker: have iam:PassRole allowed on that role, as the policy of the "
        "submitting user in docs/sagemaker.md does",
    ),
    AwsErrorCase(
        _DENIED,
        r"perform: (?P<action>[\w-]+:\w+).*(?:explicit deny|service control policy|permissions boundary)",
        ConfigError,
        "a policy of this account forbids {action}: ask the administrator of this AWS account, or set AWS_PROFILE "
        "to a profile of another account",
    ),
    AwsErrorCase(
        _DENIED,
        r"perform: (?P<action>[\w-]+:\w+) on resource: \"?(?P<resource>[^\s\"]+)",
        ConfigError,
        "{doing} is not allowed: have {action} on {resource} added to the policies of your AWS user (docs/sagemaker.md "
        "has all that is needed), or set AWS_PROFILE to another",
    ),
    AwsErrorCase(
        _DENIED,
        r"(?:.*perform: (?P<action>[\w-]+:\w+))?",
        ConfigError,
        "{doing} is not allowed: have {action} added to the policies of your AWS user (docs/sagemaker.md has all that "
        "is needed), or set AWS_PROFILE to another",
    ),
    AwsErrorCase(
        "ResourceLimitExceeded",
        r"(?P<instance>ml\.[\w.-]+) is not available in this region",
        ConfigError,
        "SageMaker has no {instance} in this region: set {group}.instance_type or {group}.region to another",
    ),
    AwsErrorCase(
        "ResourceLimitExceeded",
        r"limit '(?P<quota>[^']+)' is (?P<limit>\d+).*?utilization of (?P<used>\d+).*?delta of (?P<more>\d+)",
        ResourceError,
        "the quota '{quota}' of this account is {limit}, {used} are in use and {more} more asked for: ask for a higher "
        "one of exactly that name (console: Service Quotas, Amazon SageMaker; spot and on-demand have quotas of their "
        "own), or change {amount}",
    ),
    AwsErrorCase(
        "ResourceLimitExceeded ServiceQuotaExceededException LimitExceededException",
        "",
        ResourceError,
        "a quota of this account prevents {doing} ({message}): ask for more under Service Quotas, Amazon "
        "SageMaker, or wait until other jobs have ended",
    ),
    AwsErrorCase(
        THROTTLED,
        "",
        ResourceError,
        "AWS throttles {doing} ({code}): run the same command again in a minute{fewer}",
    ),
    AwsErrorCase(
        "ResourceInUse ResourceInUseException ConflictException",
        "",
        ConfigError,
        "the name is in use, so {doing} is refused: set task_name to another, or wait until the job has ended",
    ),
    AwsErrorCase("", r"[Cc]ould not assume role (?P<role>\S+?)[.,]?(?:\s|$)", ConfigError, _NO_ROLE),
    AwsErrorCase("ValidationException", r"No S3 objects found under S3 URL \"(?P<url>[^\"]+)", DataError, _NO_OBJECTS),
    AwsErrorCase(
        "ValidationException",
        r"bucket.*(?:same|different|another|wrong) .*region",
        ConfigError,
        _ELSEWHERE,
    ),
    AwsErrorCase(
        "PermanentRedirect AuthorizationHeaderMalformed IllegalLocationConstraintException BucketRegionError 301",
        "",
        ConfigError,
        _ELSEWHERE,
    ),
    AwsErrorCase(
        "ValidationException",
        r"Value '(?P<instance>ml\.[\w.-]+)' at '[\w.]*[iI]nstanceType' failed",
        ConfigError,
        "{group}.instance_type={instance} is not an instance type of SageMaker: correct it",
    ),
    AwsErrorCase(
        "ValidationException ValidationError InvalidParameterException",
        "",
        ConfigError,
        "AWS refuses {doing} ({message}): correct the setting it names, or what {group}.request adds to it",
    ),
    AwsErrorCase(
        "NoSuchBucket",
        "",
        ConfigError,
        "the bucket{bucket} does not exist: correct {group}.bucket or {source}, or create it with `aws s3 mb`",
    ),
    AwsErrorCase(
        "NoSuchEntity",
        "",
        ConfigError,
        "{doing} finds nothing of that name: correct it, or create the role as docs/sagemaker.md shows",
    ),
    AwsErrorCase(
        "ResourceNotFound ResourceNotFoundException 404 NoSuchKey",
        "",
        ConfigError,
        "what {doing} needs does not exist ({message}): correct its name, and {group}.region",
    ),
)

OUT_OF_MEMORY = (
    "the instance ran out of memory: set data.batch_size or data.image_size lower, or launcher.instance_type to one "
    "with more"
)
_UNREADABLE = (
    "{group}.role may not read {url}: give it s3:ListBucket and s3:GetObject there, as docs/sagemaker.md shows, and "
    "kms:Decrypt where the bucket is encrypted with a key of its own"
)
_UNWRITABLE = (
    "{group}.role may not write {url}: give it s3:PutObject there, as docs/sagemaker.md shows, and "
    "kms:GenerateDataKey where the bucket is encrypted with a key of its own"
)
_FORBIDDEN = r"(?:Access ?Denied|403|Forbidden|not authorized)"


def _failure(reason: str, sentence: str, group: str = "") -> AwsErrorCase:
    return AwsErrorCase("", reason, ResourceError, sentence, group)


FAILURES = (
    _failure(r"ping health check", "the container never answered its health check", "target"),
    _failure(r"(?i:download|read|access|find)\w* (?:the )?(?:model|archive|artifact)", _NO_ARCHIVE, "target"),
    _failure(r"(?i:alarm)", "an alarm of target.request.UpdateEndpoint.DeploymentConfig went off", "target"),
    _failure(
        r"CapacityError|Insufficient\w*Capacity",
        "AWS has no free machine of this type at the moment: run the same command again later, or set "
        "{group}.instance_type or {group}.region to another",
    ),
    _failure(_IMAGE, _NO_IMAGE),
    _failure(r"(?:assume (?:the )?role|AssumeRole on the role) ?'?(?P<role>arn:[^\s'\"]+?)?(?:['.,\s]|$)", _NO_ROLE),
    _failure(
        r"partial S3 prefix is not supported",
        "launcher.input_mode=FastFile reads whole folders only: end data.source with a slash, or use File",
    ),
    _failure(rf"[Dd]ownload.*{_FORBIDDEN}", _UNREADABLE),
    _failure(r"[Dd]ownload.*(?:No S3 objects|NoSuchKey|NoSuchBucket|404|does not exist)", _NO_OBJECTS),
    _failure(
        r"route table|VPC endpoint|Unable to execute request to S3",
        "the network of the instance does not reach S3: give the VPC of {vpc} an S3 gateway endpoint, or leave "
        "VpcConfig out",
    ),
    _failure(rf"(?:[Uu]pload|[Cc]heckpoint|[Oo]utput).*{_FORBIDDEN}", _UNWRITABLE),
    _failure(r"BucketRegionError|bucket.*region", _ELSEWHERE),
    _failure(
        r"instance type with more memory|(?i:out ?of ?memory)",
        "the container ran out of memory: set target.instance_type or target.memory_mb to more",
        "target",
    ),
    _failure(r"instance type with more memory|(?i:out ?of ?memory)", OUT_OF_MEMORY),
    _failure(
        r"No space left|[Dd]isk|storage volume",
        "the disk of the instance is full: set {group}.volume_size to more GB",
    ),
    _failure(
        r"Internal(?:Server|Service)?(?:Error|Failure)",
        "SageMaker had an internal error: run the same command again",
    ),
)
"""Failure reasons of a job or an endpoint whose cause is not our program."""
