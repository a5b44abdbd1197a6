"""Send photos to an endpoint, and print its answers as ``bincounter predict`` does."""

import json
import secrets
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bincounter.cloud.aws_error_table import THROTTLED
from bincounter.cloud.aws_errors import translate_endpoint_errors
from bincounter.cloud.endpoints.api_objects import Call, build_call
from bincounter.cloud.endpoints.deployment_plan import bucket_uri, print_calls
from bincounter.cloud.endpoints.endpoint_requests import EndpointSpec
from bincounter.cloud.endpoints.endpoint_state import describe_config, require_endpoint
from bincounter.data.photos import failure_clause, retry
from bincounter.errors import ConfigError, Interrupted, ResourceError
from bincounter.names import escape_name
from bincounter.training.predictor import Prediction, print_predictions

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

    from bincounter.cloud.account import Account

_AT_ONCE = 8  # requests at a time, at most; more would queue at the endpoint
_AHEAD = 512  # photos whose requests are prepared at a time
_TRIES = 6  # attempts per request while the endpoint is overloaded or fails
_TIMEOUT_S = 1800.0  # seconds until an asynchronous answer: an instance may have to start first
_POLL_S = 1.0
_LARGEST_MB = {"realtime": 25, "serverless": 4, "async": 1000}  # AWS's limits of one request
_CONTENT_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}


class _RejectedPhoto(Exception):
    """The endpoint rejected a photo; the message is the reason.

    Args:
        reason: the message.
        passing: another try may succeed.
    """

    def __init__(self, reason: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


class _AsyncRequest(NamedTuple):
    """Asynchronous request: S3 addresses of the photo, of its answer and of its failure."""

    source: str
    output: str
    failure: str


def invoke(account: "Account", spec: EndpointSpec, photos: list[Path], *, dry: bool) -> int:
    """Send photos to an endpoint and print its answers.

    Args:
        account: account of the endpoint.
        spec: settings of the endpoint.
        photos: paths of the photos to count.
        dry: print the requests instead.

    Returns:
        the exit code of :func:`bincounter.training.predictor.print_predictions`.

    Raises:
        BinCounterError: the endpoint does not exist, or cannot be reached.
    """
    if dry:
        print_calls(account, [_shown(account, spec, photo) for photo in photos])
        return 0
    config = _answering(account, spec)
    if _kind(config) == "async" and not spec.target["wait"]:
        return _submit_all(account, spec, photos)
    try:
        with closing(_answers(account, spec, photos, config)) as answers:
            return print_predictions(answers)
    except KeyboardInterrupt:
        raise Interrupted("Interrupted: run the same command again") from None


def count_photos(
    account: "Account", spec: EndpointSpec, photos: Iterable[Path], check_model: Callable[[str], object]
) -> Iterator[Prediction]:
    """Send photos to an endpoint; yields a prediction for each, in their order.

    Args:
        account: account of the endpoint.
        spec: settings of the endpoint.
        photos: paths; may be lazy and of any number.
        check_model: is called with the id of the model in each answer, and raises an error on another one.

    Raises:
        BinCounterError: as :func:`invoke`.
    """
    yield from _answers(account, spec, photos, _answering(account, spec), check_model)


def _answering(account: "Account", spec: EndpointSpec) -> dict[str, Any]:
    """Return the configuration of an endpoint.

    Raises:
        BinCounterError: it does not exist, or answers no requests.
    """
    there = require_endpoint(account, spec.name)
    if there["EndpointStatus"] in ("Creating", "Failed", "Deleting"):
        raise ConfigError(
            f"the endpoint name={spec.name} is {there['EndpointStatus']}, and answers no requests: see action=status"
        )
    return describe_config(account, there["EndpointConfigName"]) or {}


def _answers(
    account: "Account",
    spec: EndpointSpec,
    photos: Iterable[Path],
    config: dict[str, Any],
    check_model: Callable[[str], object] = lambda model: None,
) -> Generator[Prediction]:
    kind, left, leave = _kind(config), iter(photos), threading.Event()
    send = _invoke_async if kind == "async" else _invoke
    with ThreadPoolExecutor(_at_once(config)) as pool:
        try:
            while batch := list(islice(left, _AHEAD)):
                futures = [pool.submit(send, account, spec, photo, _LARGEST_MB[kind], leave) for photo in batch]
                yield from (_answer(*pair, check_model) for pair in zip(batch, futures, strict=True))
        except BaseException:  # GeneratorExit is one
            leave.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _answer(photo: Path, future: "Future[str]", check_model: Callable[[str], object]) -> Prediction:
    """Return the answer for a photo."""
    try:
        answer = json.loads(future.result())
        check_model(answer["model"])
        return Prediction.of_answer(str(photo), answer)
    except _RejectedPhoto as error:
        return Prediction(str(photo), error=str(error), passing=error.passing)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            "the endpoint does not answer as those of bincounter do: correct name, action=list shows them"
        ) from error


def _kind(config: dict[str, Any]) -> str:
    if "AsyncInferenceConfig" in config:
        return "async"
    variants = config.get("ProductionVariants", [])
    return "serverless" if any("ServerlessConfig" in variant for variant in variants) else "realtime"


def _at_once(config: dict[str, Any]) -> int:
    """Return the number of requests to send at a time; AWS rejects more than a serverless endpoint takes."""
    variants = config.get("ProductionVariants", [])
    taken = [each["ServerlessConfig"]["MaxConcurrency"] for each in variants if "ServerlessConfig" in each]
    return min([_AT_ONCE, *taken])


def _call(spec: EndpointSpec, photo: Path, body: Any) -> Call:
    request = {"EndpointName": spec.name, "ContentType": _content_type(photo), "Accept": "application/json"}
    return build_call("InvokeEndpoint", {**request, "Body": body}, spec.extra)


def _later_call(spec: EndpointSpec, photo: Path, source: str) -> Call:
    request = {"EndpointName": spec.name, "ContentType": _content_type(photo), "Accept": "application/json"}
    return build_call("InvokeEndpointAsync", {**request, "InputLocation": source}, spec.extra)


def _shown(account: "Account", spec: EndpointSpec, photo: Path) -> Call:
    """Return the request for a photo as ``dry_run=true`` prints it."""
    if spec.kind == "async":
        return _later_call(spec, photo, _input_uri(account, spec, photo))
    return _call(spec, photo, f"<{photo.stat().st_size} bytes of {escape_name(photo)}>")


def _content_type(photo: Path) -> str:
    return _CONTENT_TYPES.get(photo.suffix.lower(), "application/octet-stream")


def _read(photo: Path, largest_mb: int) -> bytes:
    try:
        body = retry(photo.read_bytes)
    except (MemoryError, OSError) as error:
        raise _RejectedPhoto(failure_clause(error), passing=True) from error
    if len(body) > largest_mb * 1e6:
        raise _RejectedPhoto(f"{len(body) / 1e6:.1f} MB are above the limit of SageMaker, {largest_mb} MB")
    return body


def _invoke(account: "Account", spec: EndpointSpec, photo: Path, largest_mb: int, leave: threading.Event) -> str:
    from botocore.exceptions import ClientError

    call, failed = _call(spec, photo, _read(photo, largest_mb)), None
    for attempt in range(_TRIES):
        with translate_endpoint_errors(f"invoking the endpoint {spec.name}"):
            try:
                return call.send(account)["Body"].read().decode("utf-8", "replace")
            except ClientError as error:
                code = error.response["Error"]["Code"]
                if code not in ("ModelError", *THROTTLED.split()):
                    raise
                failed = _check_retryable(error) if code == "ModelError" else None
        if leave.wait(0.5 * 2**attempt):
            break
    if failed:
        raise failed
    raise ResourceError(f"the endpoint {spec.name} is overloaded: try again later, or give it more instances")


def _check_retryable(error: "ClientError") -> _RejectedPhoto | None:
    """Check that the same request may succeed later.

    Returns:
        The failure to raise if it never does; ``None`` if the endpoint is overloaded.

    Raises:
        _RejectedPhoto: it will not succeed.
    """
    response: dict[str, Any] = error.response
    status = response.get("OriginalStatusCode")
    if status in (429, 503):
        return None
    message = _message(response.get("OriginalMessage") or "") or f"the container answered {status}"
    if status not in (500, 504):
        raise _RejectedPhoto(message) from error
    return _RejectedPhoto(message, passing=True)


def _message(body: str) -> str:
    """Extract the error message from the body of a response."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return " ".join(body.split())


def _input_uri(account: "Account", spec: EndpointSpec, photo: Path) -> str:
    """Return a new S3 address for a photo, which is deleted once it is counted."""
    return f"{bucket_uri(account, spec)}/{spec.name}/input/{secrets.token_hex(8)}{photo.suffix.lower()}"


def _submit(account: "Account", spec: EndpointSpec, photo: Path, largest_mb: int) -> _AsyncRequest:
    """Upload a photo to S3 and send the asynchronous request."""
    body = _read(photo, largest_mb)
    source = _input_uri(account, spec, photo)
    bucket, _, key = source.removeprefix("s3://").partition("/")
    with translate_endpoint_errors(f"uploading {photo} for the endpoint {spec.name}"):
        account.s3.put_object(Bucket=bucket, Key=key, Body=body)
    call = _later_call(spec, photo, source)
    with translate_endpoint_errors(f"invoking the endpoint {spec.name}"):
        response = call.send(account)
    return _AsyncRequest(source, response["OutputLocation"], response.get("FailureLocation", ""))


def _submit_all(account: "Account", spec: EndpointSpec, photos: list[Path]) -> int:
    """Send asynchronous requests and print where their answers will be; returns the exit code as :func:`invoke`."""
    account.bucket(spec.target["bucket"])
    sent, passing = 0, False
    for photo in photos:
        try:
            request = _submit(account, spec, photo, _LARGEST_MB["async"])
        except _RejectedPhoto as error:
            print(f"{escape_name(photo)}: {error}", file=sys.stderr)
            passing |= error.passing
            continue
        sent += 1
        print(f"{escape_name(photo)}\t{request.output}", flush=True)
    return 1 if passing else 0 if sent else 2


def _invoke_async(account: "Account", spec: EndpointSpec, photo: Path, largest_mb: int, leave: threading.Event) -> str:
    request = _submit(account, spec, photo, largest_mb)
    until = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < until:
        body = _object(account, request.output)
        failure = _object(account, request.failure) if body is None and request.failure else None
        if body is not None or failure is not None:
            bucket, _, key = request.source.removeprefix("s3://").partition("/")
            with translate_endpoint_errors(f"deleting {request.source}"):
                account.s3.delete_object(Bucket=bucket, Key=key)
        if body is not None:
            return body
        if failure is not None:
            raise _RejectedPhoto(_message(failure))
        if leave.wait(_POLL_S):
            break
    raise ResourceError(
        f"the endpoint {spec.name} has not responded for {_TIMEOUT_S / 60:.0f} minutes: its answer will be in "
        f"{request.output}; check the endpoint with action=status"
    )


def _object(account: "Account", uri: str) -> str | None:
    """Read an S3 object as text; ``None`` while it does not exist."""
    from botocore.exceptions import ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    with translate_endpoint_errors(f"reading {uri}"):
        try:
            return account.s3.get_object(Bucket=bucket, Key=key)["Body"].read().decode("utf-8", "replace")
        except ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
                return None
            raise
