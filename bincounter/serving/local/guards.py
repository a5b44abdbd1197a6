"""Guards of local servers: same-origin and token checks, bounds on size and time, error responses, a page's files."""

import asyncio
import ctypes
import hmac
import sys
from collections.abc import AsyncIterator, Callable, Set
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bincounter.serving.application.answers import Limits, Problem
from bincounter.serving.application.photo_requests import decompress, too_large
from bincounter.serving.local.access import Access

_LARGEST_BODIES = 8  # bodies of the largest size that are kept in memory at a time
# glibc keeps memory that threads have freed; Windows knows no CDLL(None).
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
_LARGE, _TRIM_AFTER = 4_000_000, 1.0  # bytes of a body, and seconds after it, when memory is given back
_OLDER = 1.0  # seconds by which a body must be older than one that it gives way to
_PERIOD, _PERIOD_BYTES = 5.0, 5000  # seconds, and bytes of a body that must arrive in each of them
_DISCARD_SECONDS, _DISCARD_BYTES = 2.0, 200_000_000  # of a refused request
_NAMES = ("127.0.0.1", "localhost")
_STYLE = files("bincounter.report") / "templates" / "style.css"  # the reports' own
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
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


class _Body:
    """Body that is being read.

    Attributes:
        content: bytes that have arrived.
        size: bytes that count towards the bound on all bodies.
        since: time of the event loop at which reading began.
        wait: bound on the current wait for bytes.
        gives_way: it was dropped for the memory of others.
    """

    def __init__(self, since: float) -> None:
        self.content, self.size, self.since = bytearray(), 0, since
        self.wait = asyncio.timeout(None)
        self.gives_way = False


class RequestLimiter:
    """Reader of request bodies within bounds of time and memory, with a limit of concurrently processed requests.

    Bodies being read do not count towards this limit, so that slow clients delay nobody. All bodies share a bound on
    bytes; when it is reached, the oldest body is dropped.

    Args:
        limits: of the archive.
        requests: most requests processed at a time.
    """

    def __init__(self, limits: Limits, requests: int) -> None:
        self._limits, self._requests = limits, requests
        self._bytes = 0
        self._reading: list[_Body] = []  # the oldest first
        self._decompressing = asyncio.Lock()  # one at a time: its result counts only when it is there
        self._trim: asyncio.TimerHandle | None = None
        self.in_flight = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Read the body of a request, and count the request as in flight while the block runs.

        Raises:
            Problem: 503 too many requests, or too many bytes; 413 too large, by Content-Length alone if that is sent;
                408 the body is too slow; 400 or 415 it cannot be decompressed.
            ClientDisconnect: the client went away.
        """
        self._check_place()
        announced = request.headers.get("content-length", "")
        if announced.isdecimal():
            self._check_length(int(announced))
        body = _Body(asyncio.get_running_loop().time())
        self._reading.append(body)
        try:
            try:
                await self._read(request, body)
            finally:
                self._reading.remove(body)
            await self._decompress(", ".join(request.headers.getlist("content-encoding")), body)
            self._check_place()
            content = bytes(body.content)
            body.content.clear()
            self.in_flight += 1
            try:
                yield content
            finally:
                self.in_flight -= 1
        finally:
            self._bytes -= body.size
            if body.size > _LARGE and _malloc_trim and self._trim is None:
                self._trim = asyncio.get_running_loop().call_later(_TRIM_AFTER, self._return_memory)

    def _return_memory(self) -> None:
        self._trim = None
        if _malloc_trim:
            asyncio.get_running_loop().run_in_executor(None, _malloc_trim, 0)

    async def _read(self, request: Request, body: _Body) -> None:
        clock = asyncio.get_running_loop().time
        end = body.since + self._limits.timeout_s
        until, arrived = body.since + _PERIOD, 0
        more = True
        while more:
            try:
                async with asyncio.timeout_at(min(until, end)) as body.wait:
                    message = await request.receive()
            except TimeoutError:
                self._check_pace(body, late=clock() >= end, arrived=arrived)
                until, arrived = clock() + _PERIOD, 0
                continue
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk = message.get("body", b"")
            self._check_length(len(body.content) + len(chunk))
            self._take(body, len(chunk))
            body.content += chunk
            arrived += len(chunk)
            more = message.get("more_body", False)

    def _check_place(self) -> None:
        if self.in_flight >= self._requests:
            raise Problem(503, f"{self._requests} requests are being answered; retry in a second.")

    def _check_length(self, length: int) -> None:
        if length > self._limits.max_body_bytes:
            raise too_large(self._limits)

    def _check_pace(self, body: _Body, *, late: bool, arrived: int) -> None:
        if body.gives_way:
            raise Problem(503, "The body gave way to those of faster requests; retry in a second.")
        if late:
            raise Problem(408, f"The body did not arrive within {self._limits.timeout_s:g} s; send it at once.")
        if arrived < _PERIOD_BYTES:
            raise Problem(408, f"Only {arrived} bytes of the body arrived in {_PERIOD:g} s; send it at once.")

    def _take(self, body: _Body, more: int) -> None:
        """Count further bytes of a body, and drop older bodies if the bound is exceeded."""
        most = _LARGEST_BODIES * self._limits.max_body_bytes - more
        for other in list(self._reading):
            if self._bytes > most and body.since - other.since > _OLDER:
                self._bytes -= other.size
                other.content.clear()
                other.size, other.gives_way = 0, True
                with suppress(RuntimeError):  # its wait has just ended
                    other.wait.reschedule(0)
        if body.gives_way or self._bytes > most:
            raise Problem(503, "Too many large requests are being read or answered; retry in a second.")
        body.size += more
        self._bytes += more

    async def _decompress(self, coding: str, body: _Body) -> None:
        if coding.strip().lower() in ("", "identity"):
            return
        async with self._decompressing:
            content = await asyncio.to_thread(decompress, bytes(body.content), coding, self._limits)
        self._take(body, len(content) - len(body.content))
        body.content[:] = content


class ProblemResponse(Response):
    """Error response that is sent at once and closes the connection.

    Further bytes of the client are read and discarded for up to 2 s: a connection that is closed with unread bytes is
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


async def unforeseen(_: Request, error: Exception) -> Response:
    """Response to an unexpected error, which uvicorn logs with its traceback."""
    return ProblemResponse(Problem(500, f"The server failed ({type(error).__name__}); see its log."))


class PageFiles(dict[str, bytes]):
    """Files of a server's page by name, and the reports' style.

    Args:
        folder: of the page.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__((path.name, path.read_bytes()) for path in (*folder.iterdir(), _STYLE))

    async def page(self, request: Request) -> Response:
        """Return a file of the page."""
        name = request.path_params.get("name", "index.html")
        if name not in self:
            raise HTTPException(404)
        return Response(self[name], media_type=_TYPES[Path(name).suffix])


class SameOrigin:
    """Middleware that refuses requests of other sites' pages, and sets headers that keep answers from them.

    The Host header must name this machine: under DNS rebinding, a foreign name resolves to 127.0.0.1, and the browser
    takes a foreign page for one of ours.

    Args:
        app: that answers all other requests.
        access: to the server; one with a token may have names of its own, as behind a proxy, and foreign pages do not
            know the token.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._token = app, access.token
        self._names = {*_NAMES, access.host} if access.is_local and access.token is None else set()

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

        headers = Headers(scope=scope)
        trusted = self._token is not None and _holds(headers, self._token)
        sentence = None if trusted else _objection(headers, self._names)
        app = ProblemResponse(Problem(403, sentence)) if sentence else self._app
        await app(scope, receive, send_guarded)


class BearerToken:
    """Middleware that returns 401 to requests without the token, except on open paths (RFC 6750).

    Args:
        app: that answers all other requests.
        token: of the server.
        is_open: path -> True if it takes no token.
    """

    def __init__(self, app: ASGIApp, token: str, is_open: Callable[[str], bool]) -> None:
        self._app, self._token, self._is_open = app, token, is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        app = self._app
        closed = scope["type"] == "http" and not self._is_open(scope["path"])
        if closed and not _holds(Headers(scope=scope), self._token):
            problem = Problem(401, "This server takes a token; send it in the header Authorization: Bearer TOKEN.")
            app = ProblemResponse(problem, {"WWW-Authenticate": 'Bearer realm="bincounter"'})
        await app(scope, receive, send)


def _holds(headers: Headers, token: str) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    known = hmac.compare_digest(given.strip().encode("latin-1", "replace"), token.encode())  # in constant time
    return known and scheme.lower() == "bearer"


def _objection(headers: Headers, names: Set[str]) -> str | None:
    """Return what speaks against a request to a server of these names, if it has no others."""
    host = headers.get("host", "")
    if names and host.rpartition(":")[0] not in names and host not in names:
        return "This server is reached only as 127.0.0.1 or localhost; use one of them in the URL."
    own = {f"http://{host}", *([] if names else [f"https://{host}"])}  # https: behind a proxy
    foreign = headers.get("origin", f"http://{host}") not in own
    embedded = headers.get("sec-fetch-mode", "navigate") != "navigate"
    if foreign or (embedded and headers.get("sec-fetch-site") in ("cross-site", "same-site")):  # ports share a site
        return "This server refuses requests of other sites' pages; open its own page."
    return None
