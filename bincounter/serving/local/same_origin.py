"""A server on 127.0.0.1 is reached by every web page its user has open: only its own page is answered."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bincounter.serving.application.problems import Problem
from bincounter.serving.local.refusal import Refusal

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


class SameOrigin:
    """Refuses what a page from elsewhere sends, and keeps answers from it.

    The name that the client believes to talk to must be this machine's: a foreign name that was made to resolve to
    127.0.0.1 (DNS rebinding) would make a foreign page one of ours.

    Args:
        app: what answers the others.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse one request."""
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
        app = Refusal(Problem(403, sentence)) if sentence else self._app
        await app(scope, receive, send_guarded)


def _objection(headers: Headers) -> str | None:
    host = headers.get("host", "")
    if host.rpartition(":")[0] not in _NAMES and host not in _NAMES:
        return "This server answers to the names 127.0.0.1 and localhost alone; use one of them in the URL."
    foreign = headers.get("origin", f"http://{host}") != f"http://{host}"
    embedded = headers.get("sec-fetch-mode", "navigate") != "navigate"
    if foreign or (embedded and headers.get("sec-fetch-site") in ("cross-site", "same-site")):  # ports share a site
        return "This server answers no other site's pages; open its own page."
    return None
