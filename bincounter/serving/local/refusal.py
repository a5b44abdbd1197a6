"""Answers that come before the request is read to its end."""

import asyncio
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bincounter.serving.application.problems import Problem

_SECONDS, _BYTES = 2.0, 200_000_000


class Refusal(Response):
    """A problem as an answer, sent at once; the connection ends with it.

    What the client still sends is thrown away for a while: a connection that is closed on unread bytes is reset, and
    most clients then never see the answer.

    Args:
        problem: what is wrong.
        headers: beside the content type.
    """

    def __init__(self, problem: Problem, headers: dict[str, str] | None = None) -> None:
        joined = {**problem.headers, **(headers or {}), "Connection": "close"}
        super().__init__(problem.body(), problem.status, joined, "application/json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, and see the client off."""
        body = b"" if scope["method"] == "HEAD" else self.body
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(_SECONDS):
                left = _BYTES
                while left > 0 and (message := await receive()).get("more_body"):
                    left -= len(message["body"])
        await send({"type": "http.response.body"})
