"""AWS's JSON 1.1 protocol: responses, errors, request shapes, and the pages of List operations."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from io import BytesIO
from typing import Any

from botocore.validate import ParamValidator

Operation = Callable[[dict[str, Any]], dict[str, Any]]
"""One operation of an API: body of the request -> body of the response; times are seconds since 1970."""

_PAGE = 10  # AWS's default of MaxResults


class Refused(Exception):
    """Rejection of a request with one of AWS's errors.

    Args:
        code: AWS's name of the error, ``ClientError.response["Error"]["Code"]`` of the client.
        message: the reason.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class HandledByMoto(Exception):
    """A request about an object of moto, to be passed to moto."""


def answer(operation: Operation, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Respond to one WSGI request by an operation.

    Raises:
        HandledByMoto: the request is for moto; ``wsgi.input`` holds its body again.
    """
    length = int(environ.get("CONTENT_LENGTH") or 0)
    request = environ["wsgi.input"].read(length)
    try:
        status, body = HTTPStatus.OK, operation(json.loads(request or b"{}"))
    except HandledByMoto:
        environ["wsgi.input"] = BytesIO(request)
        raise
    except Refused as refusal:
        status, body = HTTPStatus.BAD_REQUEST, {"__type": refusal.code, "message": str(refusal)}
    payload = json.dumps(body).encode()
    headers = [("Content-Type", "application/x-amz-json-1.1"), ("Content-Length", str(len(payload)))]
    start_response(f"{status.value} {status.phrase}", headers)
    return [payload]


def check_shape(model: Any, operation: str, request: dict[str, Any]) -> None:
    """Check a request against botocore's service model.

    Args:
        model: the service model.
        operation: AWS's name of the operation, such as ``CreateModel``.
        request: the decoded body.

    Raises:
        Refused: a member breaks a type, a length, a range, an enumeration or a pattern.
    """
    shape = model.operation_model(operation).input_shape
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        raise Refused("ValidationException", report.generate_report())
    broken = list(_violations(shape, request, ()))
    if broken:
        count = f"{len(broken)} validation error{'s' * (len(broken) > 1)} detected"
        raise Refused("ValidationException", f"{count}: {'; '.join(broken)}")


def _violations(shape: Any, value: Any, path: tuple[str, ...]) -> Iterator[str]:
    """Yield AWS's sentence for each value outside limits that botocore's ``ParamValidator`` does not check."""
    for constraint in _broken_constraints(shape, value):
        place = ".".join(path)
        yield f"Value '{value}' at '{place}' failed to satisfy constraint: Member must {constraint}"
    if shape.type_name == "structure":
        for name, member in value.items():
            yield from _violations(shape.members[name], member, (*path, _lower(name)))
    elif shape.type_name == "list":
        for number, member in enumerate(value, 1):
            yield from _violations(shape.member, member, (*path, f"{number}.member"))
    elif shape.type_name == "map":
        for key, member in value.items():
            yield from _violations(shape.key, key, (*path, "key"))
            yield from _violations(shape.value, member, (*path, _lower(key)))


def _lower(name: str) -> str:
    return name[:1].lower() + name[1:]


def _broken_constraints(shape: Any, value: Any) -> Iterator[str]:
    limits = shape.metadata
    is_sized = shape.type_name in ("string", "list", "map", "blob")
    measure, size = ("length", len(value)) if is_sized else ("value", value)
    if "max" in limits and size > limits["max"]:
        yield f"have {measure} less than or equal to {limits['max']}"
    if "min" in limits and size < limits["min"]:
        yield f"have {measure} greater than or equal to {limits['min']}"
    if shape.type_name == "string":
        if limits.get("enum") and value not in limits["enum"]:
            yield f"satisfy enum value set: {limits['enum']}"
        if "pattern" in limits and not _matches(limits["pattern"], value):
            yield f"satisfy regular expression pattern: {limits['pattern']}"


def _matches(pattern: str, value: str) -> bool:
    try:
        return re.fullmatch(pattern, value) is not None
    except re.error:  # patterns are Java's; Python lacks some of their elements, such as \p{L}
        return True


def is_wanted(summary: dict[str, Any], request: dict[str, Any], kind: str) -> bool:
    """Return True if an entry passes the filters of a List request.

    Args:
        summary: the entry.
        request: body of the request.
        kind: prefix of the entry's members, such as ``TrainingJob``.
    """
    if request.get("NameContains", "") not in summary[f"{kind}Name"]:
        return False
    status = summary.get(f"{kind}Status")  # models and endpoint configurations have none
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
    """Return one page of a List operation's response.

    Args:
        member: member of the response for the entries.
        found: all entries that pass the filters.
        request: body of the request, for ``SortOrder``, ``NextToken`` and ``MaxResults``.
        key: sort key of an entry.
    """
    found = sorted(found, key=key, reverse=request.get("SortOrder") == "Descending")
    start = int(request.get("NextToken", "0"))
    end = start + request.get("MaxResults", _PAGE)
    answer: dict[str, Any] = {member: found[start:end]}
    return {**answer, "NextToken": str(end)} if end < len(found) else answer
