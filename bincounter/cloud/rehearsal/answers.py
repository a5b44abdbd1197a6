"""Answers in the form of AWS's JSON 1.1 protocol, which SageMaker speaks."""

import json
from collections.abc import Callable, Iterable
from http import HTTPStatus
from io import BytesIO
from typing import Any

Operation = Callable[[dict[str, Any]], dict[str, Any]]
"""One operation of an API: the request's body to the answer's body; times are seconds since 1970."""


class Refused(Exception):
    """A request that is answered with one of AWS's errors.

    Args:
        code: AWS's name of the error, as ``ClientError.response["Error"]["Code"]`` gives it to the client.
        message: what is wrong with the request.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class NotHere(Exception):
    """A request about something that moto keeps, and answers for."""


def answer(operation: Operation, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer one WSGI request with what ``operation`` makes of its body.

    Raises:
        NotHere: moto is to answer it; ``wsgi.input`` has its body again.
    """
    length = int(environ.get("CONTENT_LENGTH") or 0)
    asked = environ["wsgi.input"].read(length)
    try:
        status, body = HTTPStatus.OK, operation(json.loads(asked or b"{}"))
    except NotHere:
        environ["wsgi.input"] = BytesIO(asked)
        raise
    except Refused as refusal:
        status, body = HTTPStatus.BAD_REQUEST, {"__type": refusal.code, "message": str(refusal)}
    payload = json.dumps(body).encode()
    headers = [("Content-Type", "application/x-amz-json-1.1"), ("Content-Length", str(len(payload)))]
    start_response(f"{status.value} {status.phrase}", headers)
    return [payload]
