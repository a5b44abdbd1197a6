"""Translation of botocore errors and failure reasons into one sentence each.

Values of a request are not repeated: an environment variable or a hyperparameter may be a secret.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bincounter.cloud.aws_error_table import CASES, FAILURES, OUT_OF_MEMORY, SETTINGS
from bincounter.errors import BinCounterError, ConfigError, ResourceError

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

_LONGEST = 240  # characters of an AWS message to repeat
_MISSING = re.compile(
    r"no scalable target found|could not find|cannot find|does not exist|not found|unknown endpoint", re.IGNORECASE
)
_MISSING_CODES = ("ValidationException", "ValidationError")


@contextmanager
def translate_errors(doing: str, group: str = "launcher") -> Iterator[None]:
    """Translate every error of boto3 in the block into one sentence.

    Args:
        doing: purpose of the block, as in ``"creating the training job x"``.
        group: settings that the requests are made from, ``launcher`` or ``target``.

    Raises:
        BinCounterError: in place of boto3's error.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error) as error:
        raise describe_error(error, doing, group) from error


translate_endpoint_errors = partial(translate_errors, group="target")
"""Like :func:`translate_errors`, for requests of endpoints."""


def describe_error(error: Exception, doing: str, group: str = "launcher") -> BinCounterError:
    """Describe a request that failed permanently, in one sentence.

    Args:
        error: error that boto3 raised.
        doing: purpose of the request, as in ``"creating the training job x"``.
        group: settings that the request is made from, ``launcher`` or ``target``.

    Returns:
        the error to raise: a :class:`UserError` where the user has to change something, a :class:`ResourceError`
        for quotas, the network and AWS's own failures.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import ClientError

    if isinstance(error, Boto3Error) and isinstance(error.__context__, Exception):
        error = error.__context__  # transfers wrap the error of the request
    if isinstance(error, ClientError):
        return _explain_answer(error, doing, group)
    return _explain_own(error, doing, group)


def create_once(
    create: Callable[[], Any],
    describe: Callable[[], Any],
    doing: str,
    *,
    later: str,
    undo: Callable[[], None] = lambda: None,
    group: str = "launcher",
) -> None:
    """Create a resource with a unique name once, even if the response to the request is lost.

    Args:
        create: sends the request.
        describe: describes the resource.
        doing: purpose of the request, as in ``"creating the training job x"``.
        later: next step if neither request gets a response.
        undo: called if nothing was created, such as to delete the record that was written first.
        group: settings that the request is made from, ``launcher`` or ``target``.

    Raises:
        NotAnswered: it may have been created.
        BinCounterError: it was not.
    """
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    failed: Exception
    try:
        create()
        return
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") == "ResourceInUse":
            return  # our own first try: names are unique
        details = error.response.get("ResponseMetadata", {})
        failed, unanswered = error, details.get("HTTPStatusCode", 0) >= 500 or bool(details.get("RetryAttempts"))
    except BotoCoreError as error:
        failed, unanswered = error, isinstance(error, HTTPClientError)  # without a connection nothing was sent
    try:
        if unanswered:
            describe()
            return
    except (BotoCoreError, ClientError) as error:
        if not isinstance(error, ClientError) or not is_missing(error):
            raise NotAnswered(f"AWS did not answer {doing}, and it may have been done: {later}") from failed
    undo()
    raise describe_error(failed, doing, group) from failed


class NotAnswered(ResourceError):
    """Request without a response, which AWS may have carried out."""


def is_missing(error: "ClientError") -> bool:
    """Return True if an error means that the requested object does not exist."""
    details = error.response.get("Error", {})
    if details.get("Code") in ("ObjectNotFoundException", "ResourceNotFound", "ResourceNotFoundException"):
        return True
    return details.get("Code") in _MISSING_CODES and bool(_MISSING.search(details.get("Message") or ""))


def describe_if_exists(ask: Callable[[], dict[str, Any]], doing: str, group: str = "launcher") -> dict[str, Any] | None:
    """Send a request; return its response, or ``None`` if the resource does not exist.

    Args:
        ask: sends the request.
        doing: purpose of the request, as in ``"describing x"``.
        group: settings that the request is made from, ``launcher`` or ``target``.

    Raises:
        BinCounterError: AWS gave no description.
    """
    from botocore.exceptions import ClientError

    with translate_errors(doing, group):
        try:
            return ask()
        except ClientError as error:
            if is_missing(error):
                return None
            raise


def stop_unless_ended(stop: Callable[[], Any], name: str) -> None:
    """Send a request that stops a job; one that has ended is left alone.

    Args:
        stop: sends the request.
        name: of the job.
    """
    from botocore.exceptions import ClientError

    with translate_errors(f"stopping {name}"):
        try:
            stop()
        except ClientError as error:
            if error.response["Error"]["Code"] != "ValidationException":  # it is stopping already, or has ended
                raise


def describe_failure(reason: str) -> str:
    """Describe the failure of a training job in one sentence.

    Args:
        reason: the ``FailureReason`` of DescribeTrainingJob.

    Returns:
        the message of our program in the container, without the text of the toolkit and SageMaker around it; or else
        the cause outside of the program, and the next step.
    """
    if reason.startswith("AlgorithmError"):
        return _explain_program(reason)
    known = _known_failure(reason, "launcher", url="the job's data")
    return known or f"{_shortened(reason) or 'SageMaker gives no reason'}: see the log of the job for what came before"


def describe_endpoint_failure(reason: str, last_line: str | None) -> str:
    """Describe the failure of an endpoint or a transform job in one sentence.

    Args:
        reason: the ``FailureReason`` that AWS gives.
        last_line: of the container's log; ``None`` where there is none.
    """
    known = _known_failure(reason, "target", url="in S3")
    sentence = known or " ".join(reason.split()).rstrip(".") or "SageMaker gives no reason"
    return f'{sentence}; its log ends with "{last_line}"' if last_line else sentence


def _known_failure(reason: str, group: str, url: str) -> str | None:
    """Return the message of the first case in the table that a reason matches."""
    named = re.search(r"s3://[^\s\"')]+", reason)
    values = {"role": f"{group}.role", "url": named[0].rstrip(".,:;") if named else url}
    for case in FAILURES:
        if match := case.match("", reason, group):
            found = {name: text for name, text in match.groupdict().items() if text}
            return case.sentence.format(group=group, **SETTINGS[group] | values | found)
    return None


def _explain_program(reason: str) -> str:
    """Return the message of the program in the container, or a description of its failure."""
    text = reason.removeprefix("AlgorithmError").lstrip(": ")
    ending = re.search(r"(?:^|,)\s*exit code:?\s*(\d+)\s*$", text, re.IGNORECASE)
    text, code = (text[: ending.start()].strip(), ending[1]) if ending else (text.strip(), "")
    wrapped = re.match(r"(\w+Error):\s*ExitCode (\d+)\s+ErrorMessage \"(.*)", text, re.DOTALL)
    if wrapped:
        code, text = wrapped[2], re.split(r"\"\s+(?:ExtraInfo|Command) \"", wrapped[3])[0].strip(' \n"')
    if code == "137" and (wrapped or not text):
        return OUT_OF_MEMORY
    lines = [line.strip(" :") for line in text.splitlines() if line.strip(" :")]
    if not lines:
        return f"the program ended with exit code {code or 'unknown'} and no message: see the log of the job"
    if wrapped and wrapped[1] == "InstallRequirementsError":
        return (
            f"the container could not install its requirements ({_shortened(lines[-1])}): see that the job reaches a "
            "package index, which a VPC without NAT and network isolation prevent, or use an image that has them"
        )
    if "Traceback (most recent call last)" in text:
        return f"{_shortened(lines[-1])}: see the log of the job for what came before"
    return lines[-1] if wrapped else text  # wrapped: the end of stderr, whose last line is our message


def _explain_answer(error: "ClientError", doing: str, group: str) -> BinCounterError:
    from bincounter.data.s3.error_messages import WRONG_CLOCK, is_clock_wrong

    details = error.response.get("Error", {})
    code, message = str(details.get("Code", "")), str(details.get("Message") or "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if is_clock_wrong(error):
        return ConfigError(WRONG_CLOCK.format(host="AWS"))
    for case in CASES:
        match = case.match(code, message, group)
        if match is None:
            continue
        values = {
            **SETTINGS[group],
            "group": group,
            "action": _action(error.operation_name),
            "bucket": f" {details['BucketName']}" if "BucketName" in details else "",
            **{name: text for name, text in match.groupdict().items() if text is not None},
        }
        return case.error(
            case.sentence.format(code=code, doing=doing, message=_shortened(message), login=_login(), **values)
        )
    if status >= 500:
        return ResourceError(
            f"AWS had an internal error while {doing} ({code or status}): run the same command again later"
        )
    return ConfigError(
        f"AWS refuses {doing} ({code or status}: {_shortened(message)}): correct what it names, or set AWS_PROFILE or "
        f"{group}.region to another"
    )


def _explain_own(error: Exception, doing: str, group: str) -> BinCounterError:
    """Describe an error of botocore itself, without a response."""
    from botocore import exceptions as boto

    from bincounter.data.s3.error_messages import explain_request, explain_settings

    if isinstance(error, boto.SSOError | boto.TokenRetrievalError | boto.LoginError):
        return ConfigError(f"the AWS login is missing or has expired: log in{_login()}, then run this again")
    if isinstance(error, boto.ParamValidationError):
        return ConfigError(
            f"The request for {doing} is not valid ({_wrong_parameter(str(error))}): correct {group}.request, or "
            "the setting it names"
        )
    if isinstance(error, boto.ProxyConnectionError):  # its text holds the proxy's password
        return ResourceError(f"the proxy cannot be reached for {doing}: correct HTTPS_PROXY, or unset it")
    host = urlsplit(str(getattr(error, "kwargs", {}).get("endpoint_url", ""))).netloc.rpartition("@")[2] or "AWS"
    if isinstance(error, boto.SSLError):
        return explain_request(error, doing, host=host, signed=True, reached=False)
    if isinstance(error, boto.ConnectionError | boto.HTTPClientError):
        fails = (
            f"does not answer {doing}" if isinstance(error, boto.ReadTimeoutError) else f"cannot be reached for {doing}"
        )
        own = any(name.startswith("AWS_ENDPOINT_URL") for name in os.environ)
        check = "that the server of AWS_ENDPOINT_URL is running" if own else f"the network and {group}.region"
        return ResourceError(f"{host} {fails}: check {check}, then run the same command again")
    return explain_settings(error)


def _login() -> str:
    """Command to log in, in brackets."""
    profile = os.environ.get("AWS_PROFILE")
    return (
        f" (`aws sso login --profile {profile}`)" if profile else " (`aws sso login`, `aws login` or `aws configure`)"
    )


def _action(operation: str) -> str:
    """Name of an operation in policies; those of S3 differ, and its HEAD responses have no message."""
    listing = ("HeadBucket", "ListObjects", "ListObjectsV2")
    known = {**dict.fromkeys(listing, "s3:ListBucket"), "HeadObject": "s3:GetObject", "UploadPart": "s3:PutObject"}
    return known.get(operation, f"the action {operation}")


def _wrong_parameter(report: str) -> str:
    """First line of a report of botocore's validation, without the value."""
    errors = re.split(r"\n(?=Missing|Unknown|Invalid)", report)[1:]
    if not errors:
        return "a parameter is invalid"
    first = re.sub(r", value: .*(?=, (?:type: <|valid ))", "", errors[0], flags=re.DOTALL)
    first = re.sub(r", value: .*", "", first, flags=re.DOTALL)
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    return _shortened(first) + more


def _shortened(message: str) -> str:
    """Shorten a message of AWS to one line, without the values that it quotes from the request."""
    wrong = re.findall(r"at '([^']+)' failed to satisfy constraint: (.+?)(?=; Value |; \w+ '|$)", message, re.DOTALL)
    text = "; ".join(f"{path}: {rule}" for path, rule in wrong) if wrong else message
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= _LONGEST else text[:_LONGEST].rsplit(" ", 1)[0] + " ..."
