"""What AWS's refusals and failures mean where endpoints are concerned; the rest is told by bincounter.cloud."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bincounter.cloud.aws_answers import FAILURES, Case
from bincounter.cloud.aws_errors import explain, explain_failure
from bincounter.errors import BinCounterError, ConfigError, DataError, ResourceError

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

_MISSING = re.compile(r"could not find|cannot find|does not exist|not found|unknown endpoint", re.IGNORECASE)
_MISSING_CODES = ("ValidationException", "ValidationError", "ResourceNotFound", "ResourceNotFoundException")
_NO_ARCHIVE = (
    "{role} may not read the archive {url}: give it s3:GetObject there, as docs/sagemaker.md shows, and kms:Decrypt "
    "where the bucket is encrypted with a key of its own"
)
_CASES = (
    Case(
        "ResourceLimitExceeded",
        r"limit '(?P<quota>[^']+)' is (?P<limit>\d+).*?utilization of (?P<used>\d+).*?delta of (?P<more>\d+)",
        ResourceError,
        "the quota '{quota}' of this account is {limit}, {used} are in use and {more} more asked for: ask for a higher "
        "one of exactly that name (console: Service Quotas, Amazon SageMaker), or lower what target asks for "
        "(instance_type, instance_count, memory_mb, max_concurrency)",
    ),
    Case(
        "Throttling ThrottlingException ThrottledException TooManyRequestsException RequestLimitExceeded",
        "",
        ResourceError,
        "AWS is asked too often for {doing} ({code}): run the same command again in a minute",
    ),
    Case(
        "ValidationException ResourceInUse ConflictException",
        r"[Cc]annot create already existing|already exists",
        ConfigError,
        "the name is taken, so {doing} is refused: set name to another, or use action=update",
    ),
    Case(
        "ValidationException ResourceInUse ConflictException",
        r"in-progress|in progress|[Cc]annot (?:update|delete) endpoint.*(?:Creating|Updating|RollingBack|Deleting)",
        ConfigError,
        "the endpoint is busy, so {doing} is refused: wait until action=status shows it InService",
    ),
    Case(
        "ValidationException",
        r"model data at (?P<url>s3://[^\s,\"]+?)[.,]?(?:\s|$)",
        ConfigError,
        _NO_ARCHIVE.replace("{role}", "target.role"),
    ),
    Case(
        "ValidationException",
        r"Value '(?P<instance>ml\.[\w.-]+)' at '[\w.]*[iI]nstanceType' failed",
        ConfigError,
        "target.instance_type={instance} is no instance type that SageMaker serves on: correct it",
    ),
    Case(
        "ValidationError ValidationException",
        r"Endpoint (?P<name>\S+) of account(?: \d+)? not found",
        ConfigError,
        "there is no endpoint named {name} in this region: action=list shows those there are",
    ),
)
_FAILURES = (
    (r"ping health check", "the container never answered its health check"),
    (
        r"(?i:download|read|access|find)\w* (?:the )?(?:model|archive|artifact)",
        _NO_ARCHIVE.replace("{role}", "target.role"),
    ),
    (r"(?i:alarm)", "an alarm of target.request.UpdateEndpoint.DeploymentConfig went off"),
)


@contextmanager
def answered(doing: str) -> Iterator[None]:
    """Turn every error of boto3 in the block into its sentence.

    Args:
        doing: what the block is for, as in ``"creating the endpoint x"``.

    Raises:
        BinCounterError: in place of what boto3 raised.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise _explain_ours(error, doing) or _reworded(explain(error, doing)) from error
    except (BotoCoreError, Boto3Error) as error:
        raise _reworded(explain(error, doing)) from error


def _explain_ours(error: "ClientError", doing: str) -> BinCounterError | None:
    details = error.response.get("Error", {})
    code, message = str(details.get("Code", "")), str(details.get("Message") or "")
    for case in _CASES:
        match = case.match(code, message)
        if match:
            return case.kind(case.sentence.format(code=code, doing=doing, **match.groupdict()))
    return None


def is_missing(error: "ClientError") -> bool:
    """Whether AWS says that what was asked for is not there."""
    details = error.response.get("Error", {})
    return details.get("Code") in _MISSING_CODES and bool(_MISSING.search(details.get("Message") or ""))


def explain_endpoint_failure(reason: str, last_line: str | None) -> str:
    """Why an endpoint, or a transform job, failed.

    Args:
        reason: the ``FailureReason`` that AWS gives.
        last_line: of the container's log; ``None`` where there is none.
    """
    told = _told(reason)
    return f'{told}; its log ends with "{last_line}"' if last_line else told


def _told(reason: str) -> str:
    url = re.search(r"s3://[^\s\"')]+", reason)
    for pattern, sentence in _FAILURES:
        if re.search(pattern, reason):
            return sentence.format(url=url[0].rstrip(".,:;") if url else "in S3")
    if any(re.search(pattern, reason, re.DOTALL) for pattern, _ in FAILURES):
        return _in_words_of_target(explain_failure(reason))
    return " ".join(reason.split()).rstrip(".") or "SageMaker gives no reason"


@contextmanager
def in_words_of_target() -> Iterator[None]:
    """Name settings as deploy.py does: ``target`` has what train.py calls ``launcher``, under the same names.

    Raises:
        BinCounterError: of the block, reworded.
    """
    try:
        yield
    except (ConfigError, DataError, ResourceError) as error:
        raise _reworded(error) from error.__cause__


def _reworded(error: BinCounterError) -> BinCounterError:
    return type(error)(_in_words_of_target(str(error)))


def _in_words_of_target(sentence: str) -> str:
    return sentence.replace("launcher.", "target.").replace("data.source", "input")
