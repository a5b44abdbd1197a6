"""AWS's JSON 1.1 protocol: answers, errors, and the pages of List operations."""

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


_PAGE = 10  # AWS's default of MaxResults


def is_wanted(summary: dict[str, Any], request: dict[str, Any], kind: str) -> bool:
    """Whether a request's filters let an entry through.

    Args:
        summary: the entry.
        request: the body of a List operation.
        kind: what the names of the entry's own members begin with, such as ``TrainingJob``.
    """
    if request.get("NameContains", "") not in summary[f"{kind}Name"]:
        return False
    status = summary.get(f"{kind}Status")  # what is but a description has none
    if request.get("StatusEquals", status) != status:
        return False
    return all(
        request.get(f"{moment}After", float("-inf")) <= summary[moment] <= request.get(f"{moment}Before", float("inf"))
        for moment in ("CreationTime", "LastModifiedTime")
        if moment in summary
    )


def page(
    member: str, found: list[dict[str, Any]], request: dict[str, Any], key: Callable[[dict[str, Any]], Any]
) -> dict[str, Any]:
    """One page of an answer.

    Args:
        member: the answer's member that holds the entries.
        found: all entries that are wanted.
        request: with ``SortOrder``, ``NextToken`` and ``MaxResults``, if any.
        key: what an entry is sorted by.
    """
    found = sorted(found, key=key, reverse=request.get("SortOrder") == "Descending")
    start = int(request.get("NextToken", "0"))
    end = start + request.get("MaxResults", _PAGE)
    answer: dict[str, Any] = {member: found[start:end]}
    return {**answer, "NextToken": str(end)} if end < len(found) else answer
