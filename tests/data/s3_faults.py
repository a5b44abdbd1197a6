"""Faults between an S3 server and its clients, for :meth:`s3_proxy.FaultyProxy.spoil`."""

import re
from collections.abc import Callable
from dataclasses import replace

from s3_proxy import Answer, Fault


def error(status: int, code: str, **headers: str) -> Fault:
    """Answer by an error as S3 does."""
    body = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
    named = {"content-type": "application/xml"} | {name.replace("_", "-"): value for name, value in headers.items()}

    def fault(answer: Answer) -> Answer:
        silent = answer.request.startswith("HEAD")
        return replace(answer, status=status, headers=named, body=b"" if silent else body)

    return fault


unavailable = error(503, "SlowDown")
failing = error(500, "InternalError")
expired = error(400, "ExpiredToken")
denied = error(403, "AccessDenied")


def elsewhere(answered: Fault) -> Fault:
    """Answer so what is not signed for eu-west-1; the rest tells that region, as S3 does."""

    def fault(answer: Answer) -> Answer:
        if "/eu-west-1/s3/" in answer.asked.get("authorization", ""):
            return replace(answer, headers=answer.headers | {"x-amz-bucket-region": "eu-west-1"})
        return answered(answer)

    return fault


def broken_off(answer: Answer) -> Answer:
    return replace(answer, cut=len(answer.body) // 2)


def reset_midway(answer: Answer) -> Answer:
    return replace(answer, cut=len(answer.body) // 2, reset=True)


def reset_at_once(answer: Answer) -> Answer:
    return replace(answer, cut=-1, reset=True)


def stalled(seconds: float) -> Fault:
    return lambda answer: replace(answer, cut=len(answer.body) // 2, stalled=seconds)


def garbled(answer: Answer) -> Answer:
    return replace(answer, body=answer.body[::-1])


def meanwhile(action: Callable[[], object]) -> Fault:
    """Do something after the server has answered and before that arrives."""

    def fault(answer: Answer) -> Answer:
        action()
        return answer

    return fault


def renamed(name: Callable[[str], str], **headers: str) -> Fault:
    """Give objects other etags, in listings and elsewhere, and headers that go with them."""
    named = {header.replace("_", "-"): value for header, value in headers.items()}

    def fault(answer: Answer) -> Answer:
        if "partNumber" in answer.request:  # the client hands these back
            return answer
        etag = answer.headers.get("etag", "").strip('"')
        if etag:
            if answer.asked.get("if-none-match") == f'"{name(etag)}"':
                return replace(answer, status=304, body=b"")
            return replace(answer, headers=answer.headers | {"etag": f'"{name(etag)}"'} | named)
        body = re.sub(
            rb'(<ETag>(?:&[#\w]+;|")?)(\w+)', lambda match: match[1] + name(match[2].decode()).encode(), answer.body
        )
        return replace(answer, body=body)

    return fault


def listing(*objects: tuple[str, int]) -> Fault:
    """Add objects (key and size) to a listing that the server itself could not hold."""
    rest = "<LastModified>2026-01-01T00:00:00Z</LastModified><ETag>&#34;x&#34;</ETag>"
    extra = "".join(f"<Contents><Key>{key}</Key>{rest}<Size>{size}</Size></Contents>" for key, size in objects).encode()
    return lambda answer: replace(
        answer, body=answer.body.replace(b"</ListBucketResult>", extra + b"</ListBucketResult>")
    )
