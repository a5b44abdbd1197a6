"""Guards of the local server: same-origin check, bounds on size, concurrency and time, and error responses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bincounter.serving.application.answers import Limits, Problem
from bincounter.serving.application.photo_requests import too_large

_LARGEST_BODIES = 8  # bodies of the largest size that are kept in memory at a time
_DISCARD_SECONDS, _DISCARD_BYTES = 2.0, 200_000_000  # of a refused request
_NAMES = ("127.0.0.1", "localhost")
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class RequestLimiter:
    """Limits concurrent requests, and reads their bodies.

    Args:
        limits: of the archive.
        requests: largest number at a time.
    """

    def __init__(self, limits: Limits, requests: int) -> None:
        self._limits, self._requests = limits, requests
        self._bytes = 0
        self.in_flight = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Accept a request while the block runs, and read its body.

        Raises:
            Problem: 503 too many requests, before the body is read; 413 too large, by Content-Length alone if that is
                sent; 408 the body is too slow.
            ClientDisconnect: the client went away.
        """
        if self.in_flight >= self._requests:
            raise Problem(503, f"{self._requests} requests are being answered; retry in a second.")
        announced = request.headers.get("content-length", "")
        if announced.isdecimal():
            self._check(int(announced))
        self.in_flight += 1
        taken = bytearray()
        try:
            await self._read(request, taken)
            yield bytes(taken)
        finally:
            self._bytes -= len(taken)
            self.in_flight -= 1

    async def _read(self, request: Request, taken: bytearray) -> None:
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                async for chunk in request.stream():
                    self._check(len(taken) + len(chunk), new=len(chunk))
                    taken += chunk
                    self._bytes += len(chunk)
        except TimeoutError as error:
            sentence = f"The body did not arrive within {self._limits.timeout_s:g} s; send it at once."
            raise Problem(408, sentence) from error

    def _check(self, length: int, new: int | None = None) -> None:
        if length > self._limits.max_body_bytes:
            raise too_large(self._limits)
        if self._bytes + (length if new is None else new) > _LARGEST_BODIES * self._limits.max_body_bytes:
            raise Problem(503, "Too many large requests are being answered; retry in a second.")


class ProblemResponse(Response):
    """Error response that is sent at once and closes the connection.

    What the client still sends is read and discarded for up to 2 s: a connection that is closed with unread bytes is
    reset, and most clients then never see the response.

    Args:
        problem: status and message.
        headers: beside the content type.
    """

    def __init__(self, problem: Problem, headers: dict[str, str] | None = None) -> None:
        joined = {**problem.headers, **(headers or {}), "Connection": "close"}
        super().__init__(problem.body(), problem.status, joined, "application/json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, and discard the rest of the request."""
        body = b"" if scope["method"] == "HEAD" else self.body
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_SECONDS):
                left = _DISCARD_BYTES
                while left > 0 and (message := await receive()).get("more_body"):
                    left -= len(message["body"])
        await send({"type": "http.response.body"})


class SameOrigin:
    """Middleware that refuses requests of other sites' pages, and sets headers that keep answers from them.

    The Host header must name this machine: under DNS rebinding, a foreign name resolves to 127.0.0.1, and the browser
    takes a foreign page for one of ours.

    Args:
        app: that answers all other requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        sentence = _objection(Headers(scope=scope))
        app = ProblemResponse(Problem(403, sentence)) if sentence else self._app
        await app(scope, receive, send_guarded)


def _objection(headers: Headers) -> str | None:
    host = headers.get("host", "")
    if host.rpartition(":")[0] not in _NAMES and host not in _NAMES:
        return "This server is reached only as 127.0.0.1 or localhost; use one of them in the URL."
    foreign = headers.get("origin", f"http://{host}") != f"http://{host}"
    embedded = headers.get("sec-fetch-mode", "navigate") != "navigate"
    if foreign or (embedded and headers.get("sec-fetch-site") in ("cross-site", "same-site")):  # ports share a site
        return "This server refuses requests of other sites' pages; open its own page."
    return None
