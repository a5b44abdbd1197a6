"""The answers by which AWS refuses a request or fails a job, and the sentence for each.

The patterns are the wording of the services in 2026, as users report it; where one no longer fits, a more general one
further down does. The first that fits is taken.
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
    "the training image does not exist in this region, or launcher.role may not pull it: correct "
    "launcher.framework_version or launcher.image, or give the role the ECR actions of docs/sagemaker.md"
)
_NO_ROLE = (
    "SageMaker cannot act as {role}: make sure that the role exists and that its trust policy names "
    "sagemaker.amazonaws.com, as docs/sagemaker.md shows (a new role takes some seconds to be known)"
)
_NO_OBJECTS = (
    "SageMaker finds no object under {url}: correct data.source, its letters' case included, or give launcher.role "
    "s3:ListBucket and s3:GetObject on it (docs/sagemaker.md)"
)
_ELSEWHERE = (
    "a bucket of this job is in another region than the job: set launcher.region to the bucket's, or use a bucket of "
    "launcher.region"
)


@dataclass(frozen=True)
class Case:
    """One refusal: the error codes it comes under (none: any), what its message looks like, and the sentence."""

    codes: str
    message: str
    kind: type[BinCounterError]
    sentence: str

    def match(self, code: str, message: str) -> re.Match[str] | None:
        """What the message's pattern found, if this is the case."""
        if self.codes and code not in self.codes.split():
            return None
        return re.search(self.message, message, re.DOTALL)


_DENIED = "AccessDenied AccessDeniedException UnauthorizedOperation AuthorizationError Forbidden 403"
_THROTTLED = "Throttling ThrottlingException ThrottledException TooManyRequestsException RequestLimitExceeded SlowDown"
CASES = (
    Case(
        "ExpiredToken ExpiredTokenException RequestExpired TokenRefreshRequired",
        "",
        ConfigError,
        "the AWS credentials have expired: log in again{login}",
    ),
    Case(
        "InvalidSignatureException SignatureDoesNotMatch RequestTimeTooSkewed",
        r"(?:Signature expired|not yet current|RequestTime|too large)",
        ConfigError,
        "AWS takes no signature of another time: set the clock of this machine",
    ),
    Case(
        "InvalidSignatureException SignatureDoesNotMatch IncompleteSignature",
        "",
        ConfigError,
        "the secret key does not belong to the access key ({code}): correct AWS_SECRET_ACCESS_KEY, or set AWS_PROFILE",
    ),
    Case(
        "UnrecognizedClientException InvalidClientTokenId InvalidAccessKeyId InvalidToken AuthFailure "
        "MissingAuthenticationToken MissingAuthenticationTokenException",
        "",
        ConfigError,
        "AWS does not know these credentials, or not in this region ({code}): log in again{login}, correct "
        "AWS_ACCESS_KEY_ID, or set AWS_PROFILE to another profile",
    ),
    Case(
        "OptInRequired SubscriptionRequiredException",
        "",
        ConfigError,
        "this AWS account is not yet active for what was asked ({code}): finish its sign-up in the console, or set "
        "launcher.region to a region it has enabled",
    ),
    Case("", _IMAGE, ConfigError, _NO_IMAGE),
    Case(
        _DENIED,
        r"perform: iam:PassRole on resource: (?P<role>[^\s\"]+)",
        ConfigError,
        "your AWS user may not hand {role} to SageMaker: have iam:PassRole allowed on that role, as the policy of the "
        "submitting user in docs/sagemaker.md does",
    ),
    Case(
        _DENIED,
        r"perform: (?P<action>[\w-]+:\w+).*(?:explicit deny|service control policy|permissions boundary)",
        ConfigError,
        "a policy of this account forbids {action}: ask whoever administers this AWS account, or set AWS_PROFILE "
        "to one of another account",
    ),
    Case(
        _DENIED,
        r"perform: (?P<action>[\w-]+:\w+) on resource: \"?(?P<resource>[^\s\"]+)",
        ConfigError,
        "{doing} is not allowed: have {action} on {resource} added to the policies of your AWS user (docs/sagemaker.md "
        "has all that is needed), or set AWS_PROFILE to another",
    ),
    Case(
        _DENIED,
        r"(?:.*perform: (?P<action>[\w-]+:\w+))?",
        ConfigError,
        "{doing} is not allowed: have {action} added to the policies of your AWS user (docs/sagemaker.md has all that "
        "is needed), or set AWS_PROFILE to another",
    ),
    Case(
        "ResourceLimitExceeded",
        r"(?P<instance>ml\.[\w.-]+) is not available in this region",
        ConfigError,
        "SageMaker has no {instance} in this region: set launcher.instance_type or launcher.region to another",
    ),
    Case(
        "ResourceLimitExceeded",
        r"limit '(?P<quota>[^']+)' is (?P<limit>\d+).*?utilization of (?P<used>\d+).*?delta of (?P<more>\d+)",
        ResourceError,
        "the quota '{quota}' of this account is {limit}, {used} are in use and {more} more asked for: "
        "ask for a higher one of exactly that name (console: Service Quotas, Amazon SageMaker; spot and on-demand "
        "have quotas of their own), set launcher.instance_type to another, or lower launcher.max_parallel_jobs",
    ),
    Case(
        "ResourceLimitExceeded ServiceQuotaExceededException LimitExceededException",
        "",
        ResourceError,
        "a quota of this account stands against {doing} ({message}): ask for more under Service Quotas, Amazon "
        "SageMaker, or wait until other jobs have ended",
    ),
    Case(
        _THROTTLED,
        "",
        ResourceError,
        "AWS is asked too often for {doing} ({code}): run the same command again in a minute, or lower "
        "launcher.max_parallel_jobs",
    ),
    Case(
        "ResourceInUse ResourceInUseException ConflictException",
        "",
        ConfigError,
        "the name is taken, or what has it is still busy, so {doing} is refused: set task_name to another, or wait "
        "until it has ended",
    ),
    Case("", r"[Cc]ould not assume role (?P<role>\S+?)[.,]?(?:\s|$)", ConfigError, _NO_ROLE),
    Case("ValidationException", r"No S3 objects found under S3 URL \"(?P<url>[^\"]+)", DataError, _NO_OBJECTS),
    Case(
        "ValidationException",
        r"bucket.*(?:same|different|another|wrong) .*region",
        ConfigError,
        _ELSEWHERE,
    ),
    Case(
        "PermanentRedirect AuthorizationHeaderMalformed IllegalLocationConstraintException BucketRegionError 301",
        "",
        ConfigError,
        _ELSEWHERE,
    ),
    Case(
        "ValidationException",
        r"Value '(?P<instance>ml\.[\w.-]+)' at '[\w.]*[iI]nstanceType' failed",
        ConfigError,
        "launcher.instance_type={instance} is no instance type that SageMaker trains on: correct it",
    ),
    Case(
        "ValidationException ValidationError InvalidParameterException",
        "",
        ConfigError,
        "AWS refuses {doing} ({message}): correct the setting it names, or what launcher.request adds to it",
    ),
    Case(
        "NoSuchBucket",
        "",
        ConfigError,
        "the bucket{bucket} does not exist: correct launcher.bucket or data.source, or make it with `aws s3 mb`",
    ),
    Case(
        "NoSuchEntity",
        "",
        ConfigError,
        "{doing} finds nothing of that name: correct it, or make the role as docs/sagemaker.md shows",
    ),
    Case(
        "ResourceNotFound ResourceNotFoundException 404 NoSuchKey",
        "",
        ConfigError,
        "what {doing} needs does not exist ({message}): correct its name, and launcher.region",
    ),
)

OUT_OF_MEMORY = (
    "the instance ran out of memory: set data.batch_size or data.image_size lower, or launcher.instance_type to one "
    "with more"
)
_UNREADABLE = (
    "launcher.role may not read {url}: give it s3:ListBucket and s3:GetObject there, as docs/sagemaker.md shows, and "
    "kms:Decrypt where the bucket is encrypted with a key of its own"
)
_UNWRITABLE = (
    "launcher.role may not write {url}: give it s3:PutObject there, as docs/sagemaker.md shows, and "
    "kms:GenerateDataKey where the bucket is encrypted with a key of its own"
)
_FORBIDDEN = r"(?:Access ?Denied|403|Forbidden|not authorized)"
FAILURES = (
    (
        r"CapacityError|Insufficient\w*Capacity",
        "AWS has no free machine of this type at the moment: run the same command again later, or set "
        "launcher.instance_type or launcher.region to another",
    ),
    (_IMAGE, _NO_IMAGE),
    (r"(?:assume (?:the )?role|AssumeRole on the role) ?'?(?P<role>arn:[^\s'\"]+?)?(?:['.,\s]|$)", _NO_ROLE),
    (
        r"partial S3 prefix is not supported",
        "launcher.input_mode=FastFile reads whole folders only: end data.source with a slash, or use File",
    ),
    (rf"[Dd]ownload.*{_FORBIDDEN}", _UNREADABLE),
    (r"[Dd]ownload.*(?:No S3 objects|NoSuchKey|NoSuchBucket|404|does not exist)", _NO_OBJECTS),
    (
        r"route table|VPC endpoint|Unable to execute request to S3",
        "the job's network does not reach S3: give the VPC of launcher.request.VpcConfig an S3 gateway endpoint, or "
        "leave VpcConfig out",
    ),
    (rf"(?:[Uu]pload|[Cc]heckpoint|[Oo]utput).*{_FORBIDDEN}", _UNWRITABLE),
    (r"BucketRegionError|bucket.*region", _ELSEWHERE),
    (r"instance type with more memory|(?i:out ?of ?memory)", OUT_OF_MEMORY),
    (
        r"No space left|[Dd]isk|storage volume",
        "the disk of the instance is full: set launcher.volume_size to more GB",
    ),
    (
        r"Internal(?:Server|Service)?(?:Error|Failure)",
        "SageMaker failed on its own side: run the same command again",
    ),
)
"""What the reason of a failed job looks like where our program is not the cause, and the sentence for it."""
