"""Runtime API: InvokeEndpoint and InvokeEndpointAsync, and data capture of both sides."""

import base64
import json
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

from botocore.exceptions import ClientError

from sagemaker_rehearsal.endpoints import Endpoint
from sagemaker_rehearsal.models import Registry
from sagemaker_rehearsal.protocol import Refused
from sagemaker_rehearsal.site import Site
from sagemaker_rehearsal.storage import join_uri, split_uri

_PATH = re.compile(r"/endpoints/([^/]+)/(async-)?invocations")
_LARGEST = {"realtime": 25_000_000, "serverless": 4_000_000}  # bytes of a body
_TIMEOUT = 60.0  # seconds to wait for a container, as on AWS
_ASYNC_TIMEOUT = 900.0
_SAGEMAKER = "X-Amzn-SageMaker-"
_SIDES = {"Input": "endpointInput", "Output": "endpointOutput"}

Answer = tuple[HTTPStatus, dict[str, str], bytes]
"""Status, headers and body."""


def capture(site: Site, endpoint: Endpoint, request: tuple[str, bytes], answer: tuple[str, bytes]) -> None:
    """Write a request and its response to S3 as JSON lines, if the endpoint's configuration includes data capture.

    Args:
        site: shared state, for the S3 client.
        endpoint: the invoked endpoint.
        request: content type and body.
        answer: content type and body of the response.
    """
    config = endpoint.config.get("DataCaptureConfig", {})
    if not config.get("EnableCapture") or random.random() * 100 >= config["InitialSamplingPercentage"]:
        return
    modes = [option["CaptureMode"] for option in config["CaptureOptions"]]
    wanted = {"Input", "Output"} if "InputAndOutput" in modes else set(modes)
    sides = {"Input": request, "Output": answer}
    number, moment = str(uuid.uuid4()), time.gmtime()
    line = {
        "captureData": {_SIDES[side]: _side(side, *sides[side]) for side in sorted(wanted)},
        "eventMetadata": {"eventId": number, "inferenceTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", moment)},
        "eventVersion": "0",
    }
    folder = time.strftime("%Y/%m/%d/%H", moment)
    name = f"{time.strftime('%M-%S', moment)}-{number}.jsonl"
    uri = join_uri(config["DestinationS3Uri"], endpoint.name, endpoint.variant["VariantName"], folder, name)
    bucket, key = split_uri(uri)
    site.s3.put_object(Bucket=bucket, Key=key, Body=json.dumps(line).encode() + b"\n")


def _side(side: str, content_type: str, body: bytes) -> dict[str, Any]:
    kind = content_type.partition(";")[0]
    plain = {"application/json": "JSON", "text/csv": "CSV"}.get(kind)
    data = body.decode("utf-8", "replace") if plain else base64.b64encode(body).decode()
    return {
        "observedContentType": content_type,
        "mode": side.upper(),
        "data": data,
        "encoding": plain or "BASE64",
    }


class Runtime:
    """Runtime API of all endpoints.

    Args:
        site: shared state, for the S3 client of asynchronous invocations.
        endpoints: all endpoints.
    """

    def __init__(self, site: Site, endpoints: Registry[Endpoint]) -> None:
        self._site, self._endpoints = site, endpoints
        self._executor = ThreadPoolExecutor(4, "async-invocation")

    def matches(self, environ: Mapping[str, Any]) -> bool:
        """Return True for an invocation of an endpoint."""
        return environ["REQUEST_METHOD"] == "POST" and _PATH.fullmatch(environ["PATH_INFO"]) is not None

    def answer(self, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Respond to one WSGI request."""
        found = _PATH.fullmatch(environ["PATH_INFO"])
        assert found is not None
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        try:
            endpoint = self._endpoint(found[1])
            invoke = self._invoke_async if found[2] else self._invoke
            status, headers, payload = invoke(endpoint, body, _headers(environ))
        except Refused as refusal:
            status, headers, payload = _error(HTTPStatus.BAD_REQUEST, refusal.code, {"Message": str(refusal)})
        start_response(f"{status.value} {status.phrase}", [*headers.items(), ("Content-Length", str(len(payload)))])
        return [payload]

    def close(self) -> None:
        """Accept no more asynchronous requests."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _endpoint(self, name: str) -> Endpoint:
        try:
            return self._endpoints.get(name)
        except Refused as error:
            raise Refused("ValidationError", f"Endpoint {name} not found.") from error

    def _invoke(self, endpoint: Endpoint, body: bytes, headers: dict[str, str]) -> Answer:
        if "AsyncInferenceConfig" in endpoint.config:
            raise Refused("ValidationError", f"Endpoint {endpoint.name} is asynchronous; use InvokeEndpointAsync.")
        kind = "serverless" if "ServerlessConfig" in endpoint.variant else "realtime"
        if len(body) > _LARGEST[kind]:
            raise Refused("ValidationError", f"The body has more than {_LARGEST[kind]} bytes.")
        container = endpoint.serving()
        try:
            code, content_type, answer = container.answer(body, headers, _TIMEOUT)
        except OSError as error:
            code, content_type, answer = 0, "", f"Your invocation timed out or was cut off: {error}".encode()
        capture(self._site, endpoint, (headers.get("Content-Type", ""), body), (content_type, answer))
        if not 200 <= code < 300:
            return _model_error(code, answer)
        variant = {"x-Amzn-Invoked-Production-Variant": endpoint.variant["VariantName"]}
        return HTTPStatus.OK, {"Content-Type": content_type, **variant}, answer

    def _invoke_async(self, endpoint: Endpoint, body: bytes, headers: dict[str, str]) -> Answer:
        config = endpoint.config.get("AsyncInferenceConfig")
        if config is None:
            raise Refused("ValidationError", f"Endpoint {endpoint.name} is not asynchronous; use InvokeEndpoint.")
        source = headers.get(f"{_SAGEMAKER}Inputlocation")
        if source is None:
            raise Refused("ValidationError", "InputLocation is missing.")
        endpoint.serving()
        number = headers.get(f"{_SAGEMAKER}Inference-Id") or str(uuid.uuid4())
        name, output = uuid.uuid4(), config["OutputConfig"]
        places = {"OutputLocation": join_uri(output["S3OutputPath"], f"{name}.out")}
        if "S3FailurePath" in output:
            places["FailureLocation"] = join_uri(output["S3FailurePath"], f"{name}-error.out")
        forwarded = {
            kind: headers[f"{_SAGEMAKER}{kind}"]
            for kind in ("Content-Type", "Accept")
            if f"{_SAGEMAKER}{kind}" in headers
        }
        self._executor.submit(self._answer_later, endpoint, source, forwarded, places)
        locations = {f"{_SAGEMAKER}{place}": uri for place, uri in places.items()}
        return (
            HTTPStatus.ACCEPTED,
            {"Content-Type": "application/json", **locations},
            json.dumps({"InferenceId": number}).encode(),
        )

    def _answer_later(
        self, endpoint: Endpoint, source: str, headers: dict[str, str], places: Mapping[str, str]
    ) -> None:
        """Read the request from S3, and write its response or failure there."""
        try:
            bucket, key = split_uri(source)
            body = self._site.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
            code, _, answer = endpoint.serving().answer(body, headers, _ASYNC_TIMEOUT)
        except (ClientError, OSError, Refused) as error:
            code, answer = 0, str(error).encode()
        place = places["OutputLocation"] if 200 <= code < 300 else places.get("FailureLocation")
        if place is not None:
            bucket, key = split_uri(place)
            self._site.s3.put_object(Bucket=bucket, Key=key, Body=answer)


def _headers(environ: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers of a WSGI request, in title case except ``X-Amzn-SageMaker-``."""
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").title(): value
        for name, value in environ.items()
        if name.startswith("HTTP_") or name == "CONTENT_TYPE"
    }
    return {name.replace("X-Amzn-Sagemaker-", _SAGEMAKER): value for name, value in headers.items()}


def _model_error(code: int, answer: bytes) -> Answer:
    original = answer.decode("utf-8", "replace")
    side = "client" if 400 <= code < 500 else "server"
    message = f'Received {side} error ({code}) from primary with message "{original}".'
    return _error(
        HTTPStatus.FAILED_DEPENDENCY,
        "ModelError",
        {"Message": message, "OriginalStatusCode": code, "OriginalMessage": original},
    )


def _error(status: HTTPStatus, code: str, body: dict[str, Any]) -> Answer:
    return status, {"Content-Type": "application/json", "x-amzn-ErrorType": code}, json.dumps(body).encode()
