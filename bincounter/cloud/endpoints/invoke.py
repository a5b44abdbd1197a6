"""Photos to an endpoint, and its answers on screen as ``python -m bincounter predict`` prints them."""

import json
import secrets
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bincounter.cloud.aws_errors import answered
from bincounter.cloud.endpoints.api_objects import Call, called
from bincounter.cloud.endpoints.deployment_plan import bucket_uri, show_calls
from bincounter.cloud.endpoints.endpoint_requests import Wanted
from bincounter.cloud.endpoints.endpoint_state import describe_config, existing
from bincounter.errors import BinCounterError, ConfigError, Interrupted, ResourceError
from bincounter.training.predictor import Answer, show_answers

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

    from bincounter.cloud.account import Account

_AT_ONCE = 8  # requests; more queue at the endpoint
_TRIES = 6  # of a request that an endpoint with enough to do sends away
_PATIENCE_S = 1800.0  # for an asynchronous answer: instances may have to be started for it
_POLL_S = 1.0
_LARGEST_MB = {"realtime": 25, "serverless": 4, "async": 1000}  # AWS's bounds of one request
_CONTENT_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}


class _Refused(Exception):
    """A photo that the endpoint does not answer; the sentence says why."""


class _Asked(NamedTuple):
    """An asynchronous request: the photo's copy in S3, and where its answer, or its failure, will be."""

    source: str
    output: str
    failure: str


def invoke(account: "Account", wanted: Wanted, photos: list[Path], *, dry: bool) -> int:
    """Send photos to an endpoint and print its answers.

    Args:
        account: that it is in.
        wanted: its name.
        photos: to be counted.
        dry: print the requests instead.

    Returns:
        the exit code: 0, or 2 where not one photo was counted.

    Raises:
        BinCounterError: there is no such endpoint, or it cannot be asked.
    """
    if dry:
        show_calls([_shown(account, wanted, photo) for photo in photos])
        return 0
    there = existing(account, wanted.name)
    if there["EndpointStatus"] in ("Creating", "Failed", "Deleting"):
        raise ConfigError(
            f"the endpoint name={wanted.name} is {there['EndpointStatus']}, and answers nothing: see action=status"
        )
    config = describe_config(account, there["EndpointConfigName"]) or {}
    kind = _kind(config)
    if kind == "async" and not wanted.target["wait"]:
        return _leave(account, wanted, photos)
    ask, leave = _ask_later if kind == "async" else _ask, threading.Event()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        futures = [pool.submit(ask, account, wanted, photo, _LARGEST_MB[kind], leave) for photo in photos]
        try:
            counted = show_answers(_answer(*pair) for pair in zip(photos, futures, strict=True))
        except (BinCounterError, KeyboardInterrupt) as error:
            leave.set()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted("Interrupted: the same command asks again") from None
            raise
    return 0 if counted else 2


def _answer(photo: Path, future: "Future[str]") -> tuple[Answer, list[int]]:
    """What was answered for a photo, and the counts that its probabilities are of."""
    try:
        probabilities = json.loads(future.result())["probabilities"]
        return Answer(photo, tuple(probabilities.values())), [int(count) for count in probabilities]
    except _Refused as refusal:
        return Answer(photo, reason=str(refusal)), []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            "the endpoint answers otherwise than bincounter's do: correct name, action=list shows those there are"
        ) from error


def _kind(config: dict[str, Any]) -> str:
    if "AsyncInferenceConfig" in config:
        return "async"
    variants = config.get("ProductionVariants", [])
    return "serverless" if any("ServerlessConfig" in variant for variant in variants) else "realtime"


def _call(wanted: Wanted, photo: Path, body: Any) -> Call:
    request = {"EndpointName": wanted.name, "ContentType": _content_type(photo), "Accept": "application/json"}
    return called("InvokeEndpoint", {**request, "Body": body}, wanted.extra)


def _later_call(wanted: Wanted, photo: Path, source: str) -> Call:
    request = {"EndpointName": wanted.name, "ContentType": _content_type(photo), "Accept": "application/json"}
    return called("InvokeEndpointAsync", {**request, "InputLocation": source}, wanted.extra)


def _shown(account: "Account", wanted: Wanted, photo: Path) -> Call:
    """What is sent for a photo, to be looked at."""
    if wanted.kind == "async":
        return _later_call(wanted, photo, _input_uri(account, wanted, photo))
    return _call(wanted, photo, f"<{photo.stat().st_size} bytes of {photo}>")


def _content_type(photo: Path) -> str:
    return _CONTENT_TYPES.get(photo.suffix.lower(), "application/octet-stream")


def _read(photo: Path, largest_mb: int) -> bytes:
    try:
        body = photo.read_bytes()
    except OSError as error:
        raise _Refused((error.strerror or "unreadable").lower()) from error
    if len(body) > largest_mb * 1e6:
        raise _Refused(f"{len(body) / 1e6:.1f} MB are above the {largest_mb} MB that SageMaker passes on")
    return body


def _ask(account: "Account", wanted: Wanted, photo: Path, largest_mb: int, leave: threading.Event) -> str:
    from botocore.exceptions import ClientError

    call = _call(wanted, photo, _read(photo, largest_mb))
    for attempt in range(_TRIES):
        with answered(f"asking the endpoint {wanted.name}"):
            try:
                return call.send(account)["Body"].read().decode("utf-8", "replace")
            except ClientError as error:
                if error.response["Error"]["Code"] != "ModelError":
                    raise
                _refuse(error)
        if leave.wait(0.5 * 2**attempt):
            break
    raise ResourceError(f"the endpoint {wanted.name} has more to do than it can: ask again later, or give it more")


def _refuse(error: "ClientError") -> None:
    """Tell the container's own sentence; returns where the same request may well be answered later."""
    response: dict[str, Any] = error.response
    status = response.get("OriginalStatusCode")
    if status in (429, 503):
        return
    raise _Refused(_sentence(response.get("OriginalMessage") or "") or f"the container answered {status}") from error


def _sentence(body: str) -> str:
    """The sentence in the body of an answer."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return " ".join(body.split())


def _input_uri(account: "Account", wanted: Wanted, photo: Path) -> str:
    """Where an asynchronous endpoint reads a photo, apart from all others: it is deleted once it is counted."""
    return f"{bucket_uri(account, wanted)}/{wanted.name}/input/{secrets.token_hex(8)}{photo.suffix.lower()}"


def _submit(account: "Account", wanted: Wanted, photo: Path, largest_mb: int) -> _Asked:
    """Put a photo into S3 and ask for its count."""
    body = _read(photo, largest_mb)
    source = _input_uri(account, wanted, photo)
    bucket, _, key = source.removeprefix("s3://").partition("/")
    with answered(f"uploading {photo} for the endpoint {wanted.name}"):
        account.s3.put_object(Bucket=bucket, Key=key, Body=body)
    call = _later_call(wanted, photo, source)
    with answered(f"asking the endpoint {wanted.name}"):
        told = call.send(account)
    return _Asked(source, told["OutputLocation"], told.get("FailureLocation", ""))


def _leave(account: "Account", wanted: Wanted, photos: list[Path]) -> int:
    account.bucket(wanted.target["bucket"])
    for photo in photos:
        asked = _submit(account, wanted, photo, _LARGEST_MB["async"])
        print(f"{photo}\t{asked.output}", flush=True)
    return 0


def _ask_later(account: "Account", wanted: Wanted, photo: Path, largest_mb: int, leave: threading.Event) -> str:
    asked = _submit(account, wanted, photo, largest_mb)
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        body = _object(account, asked.output)
        failure = _object(account, asked.failure) if body is None and asked.failure else None
        if body is not None or failure is not None:
            _forget(account, asked.source)
        if body is not None:
            return body
        if failure is not None:
            raise _Refused(_sentence(failure))
        if leave.wait(_POLL_S):
            break
    raise ResourceError(
        f"the endpoint {wanted.name} has not answered for {_PATIENCE_S / 60:.0f} minutes: its answer will be in "
        f"{asked.output}, and action=status shows whether it is well"
    )


def _object(account: "Account", uri: str) -> str | None:
    """What lies in S3; ``None`` while nothing does."""
    from botocore.exceptions import ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    with answered(f"reading {uri}"):
        try:
            return account.s3.get_object(Bucket=bucket, Key=key)["Body"].read().decode("utf-8", "replace")
        except ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
                return None
            raise


def _forget(account: "Account", uri: str) -> None:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    with answered(f"deleting {uri}"):
        account.s3.delete_object(Bucket=bucket, Key=key)
