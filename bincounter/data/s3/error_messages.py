"""Sentences for the errors of S3 and botocore, and the exceptions that carry them.

No sentence repeats an address or a setting that may hold a secret.
"""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from bincounter.errors import BinCounterError, DataError, ResourceError


class MissingError(DataError):
    """No object has this name."""


class DeniedError(DataError):
    """Reading or writing the object is not permitted."""


class DamagedError(Exception):
    """A body that does not match its headers."""


class LostError(Exception):
    """A redirect without a region."""


TRANSIENT_ERRORS = (
    BotoConnectionError,
    HTTPClientError,
    IncompleteReadError,
    FlexibleChecksumError,
    ResponseParserError,
    DamagedError,
)
"""Errors of the connection, after which the same request may succeed."""

REPEAT_TRANSFER = "run the same command again, it resumes from what has arrived"
"""Advice after a failed connection."""

_REFUSED = "{host} refuses the credentials ({code}): "
_ELSEWHERE = "{address} is in another region: set AWS_REGION to that of its bucket"
_SENTENCES = {
    "NoSuchBucket": "{host} has no bucket for {address}: correct data.source, or AWS_ENDPOINT_URL for another service",
    "ExpiredToken": _REFUSED + "log in again, they have expired",
    "ExpiredTokenException": _REFUSED + "log in again, they have expired",
    "TokenRefreshRequired": _REFUSED + "log in again, they have expired",
    "InvalidToken": _REFUSED + "log in again, or unset AWS_SESSION_TOKEN if they are lasting ones",
    "InvalidAccessKeyId": _REFUSED + "correct AWS_ACCESS_KEY_ID, or AWS_PROFILE",
    "SignatureDoesNotMatch": _REFUSED + "correct AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "PermanentRedirect": _ELSEWHERE,
    "AuthorizationHeaderMalformed": _ELSEWHERE,
    "IllegalLocationConstraintException": _ELSEWHERE,
    "InvalidObjectState": "{address} is archived in Glacier: restore it, or move it out of the source",
}
_ANONYMOUS = (
    "{address} is not readable without credentials and none were found: run `aws configure`, or set AWS_PROFILE"
)
_DENIED = "access to {address} is denied: have s3:ListBucket and s3:GetObject allowed, or set AWS_PROFILE to another"


_SKEWED = re.compile(r"signature expired|not yet current|request.?time.* too (?:large|skewed)", re.IGNORECASE)
_MOST_SKEW_S = 300.0  # AWS refuses signatures that are older


def is_clock_wrong(error: ClientError) -> bool:
    """Return True if a request was refused because the clocks of this machine and of the server differ."""
    details = error.response.get("Error", {})
    code = str(details.get("Code", ""))
    if code in ("RequestTimeTooSkewed", "RequestInTheFuture") or _SKEWED.search(details.get("Message") or ""):
        return True
    if code not in ("403", "Forbidden", "SignatureDoesNotMatch", "InvalidSignatureException"):
        return False
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})  # responses to HEAD have no message
    try:
        there = parsedate_to_datetime(headers["date"])
        return abs((there - datetime.now(UTC)).total_seconds()) > _MOST_SKEW_S
    except (KeyError, TypeError, ValueError):
        return False


WRONG_CLOCK = (
    "{host} refuses signatures of another time, and the clock of this machine is wrong: set it (`timedatectl set-ntp "
    "true`, or the date settings), then run the same command again"
)


def http_status(error: ClientError) -> int:
    """HTTP status of an error response, 0 without one."""
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def explain_request(error: Exception, address: str, *, host: str, signed: bool, reached: bool) -> BinCounterError:
    """Describe a request that failed for good.

    Args:
        error: raised by boto.
        address: of the object or folder that was requested.
        host: of the server.
        signed: the request carried credentials.
        reached: this server has responded before.
    """
    if isinstance(error, ClientError):
        return _explain_response(error, address, host, signed)
    if isinstance(error, LostError):
        return DataError(
            f"{host} redirects requests for {address} without naming a region: correct AWS_ENDPOINT_URL (such as https "
            "instead of http), or AWS_REGION"
        )
    if isinstance(error, SSLError):
        return ResourceError(
            f"the certificate of {host} is not trusted: set AWS_CA_BUNDLE to its authority's, or correct "
            "AWS_ENDPOINT_URL"
        )
    if isinstance(error, BotoConnectionError | HTTPClientError) and not reached:
        return ResourceError(
            f"{host} cannot be reached for {address}: check the network and AWS_ENDPOINT_URL, or use a local folder"
        )
    if isinstance(error, TRANSIENT_ERRORS):
        what = str(error) if isinstance(error, DamagedError) else type(error).__name__  # others repeat the endpoint
        return ResourceError(f"the connection to {host} failed repeatedly for {address} ({what}): {REPEAT_TRANSFER}")
    return explain_settings(error)


def explain_upload(error: Exception, address: str, *, host: str, signed: bool, reached: bool) -> BinCounterError:
    """Describe a failed request to send ``address``; see :func:`explain_request`."""
    code = error.response.get("Error", {}).get("Code", "") if isinstance(error, ClientError) else ""
    bucket = address.removeprefix("s3://").partition("/")[0]
    if code == "NoSuchBucket":
        return DataError(f"bucket {bucket} does not exist: create it (aws s3 mb s3://{bucket}), or name another")
    if code == "AccessDenied":
        return DeniedError(f"writing {address} is denied: have s3:PutObject allowed, or set AWS_PROFILE to another")
    if code in ("BadDigest", "InvalidDigest"):
        return DataError(
            f"{address} arrived with another MD5, its file was changed meanwhile: run the same command again"
        )
    return explain_request(error, address, host=host, signed=signed, reached=reached)


def explain_settings(error: Exception) -> DataError:
    """Describe wrong local settings: profiles, sources of credentials, the endpoint."""
    if isinstance(error, SSOError | TokenRetrievalError | CredentialRetrievalError):
        return DataError(
            f"the AWS credentials are not available ({_in_a_line(error)}): log in again, or set AWS_PROFILE"
        )
    if isinstance(error, ProfileNotFound | PartialCredentialsError | NoCredentialsError):
        return DataError(f"{_in_a_line(error)}: run `aws configure`, or set AWS_PROFILE to a profile that is complete")
    if not isinstance(error, BotoCoreError):  # botocore's ValueError repeats the endpoint, user name and all
        return DataError("AWS_ENDPOINT_URL is not an address: write it as http://host:port, or unset it")
    return DataError(f"the AWS settings cannot be used ({_in_a_line(error)}): correct them, or set AWS_PROFILE")


def _explain_response(error: ClientError, address: str, host: str, signed: bool) -> BinCounterError:
    code, number = error.response.get("Error", {}).get("Code", ""), http_status(error)
    if is_clock_wrong(error):
        return DataError(WRONG_CLOCK.format(host=host))
    if code in _SENTENCES:
        return DataError(_SENTENCES[code].format(address=address, host=host, code=code))
    if number == 404:
        return MissingError(f"{address} does not exist: correct the address")
    if number in (401, 403) or (number == 400 and not signed):
        return DeniedError((_DENIED if signed else _ANONYMOUS).format(address=address))
    return ResourceError(f"{host} returned {code or number} for {address}: run the same command again later")


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
