"""Connections of the local server: uvicorn's HTTP protocol with bounds on their number and on slow clients."""

import asyncio
import logging
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from bincounter.serving.application.answers import Problem

MOST_CONNECTIONS = 1000
"""Open connections; above it, the connection that has been idle the longest is closed."""

_HEAD_SECONDS = 10.0  # until the head of a request has arrived
_STALL_SECONDS = 10.0  # in which a client has to empty full buffers
_LINGER_SECONDS = 2.0  # in which bytes of a refused head are discarded
_FILES = 4096  # open ones; more than MOST_CONNECTIONS needs


class Connection(H11Protocol):
    """Connection that is closed if its client sends or reads too slowly.

    uvicorn bounds idle connections only, not the wait for the first request, slow request heads, or responses that
    nobody reads. Bodies are bounded by :class:`bincounter.serving.local.guards.RequestLimiter`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._since = self.loop.time()  # of the wait for a request
        self._head: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, and close another if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            waiting = (other for other in self.connections if isinstance(other, Connection) and other._is_waited_for())
            min(waiting, key=lambda other: other._since).transport.abort()
        self._head = self.loop.call_later(_HEAD_SECONDS, self._close_slow)

    def data_received(self, data: bytes) -> None:
        """Receive bytes of a request; the time limit for its head starts at the first byte."""
        if self._refused:
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._head = _cancelled(self._head)
        elif self._head is None:
            self._head = self.loop.call_later(_HEAD_SECONDS, self._close_slow)

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the client to read the last answer."""
        self._since = self.loop.time()
        super().on_response_complete()
        if self.transport.is_closing():
            self.loop.call_later(_STALL_SECONDS, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, even if the client has not read its response."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(_STALL_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._stall = self.loop.call_later(_STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Resume after the client has read."""
        self._stall = _cancelled(self._stall)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._head, self._stall = _cancelled(self._head), _cancelled(self._stall)
        super().connection_lost(exc)

    def _is_waited_for(self) -> bool:
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def _close_slow(self) -> None:
        if self.transport.is_closing():
            return
        if not self.conn.trailing_data[0]:
            self.transport.close()
        else:
            body = Problem(408, f"No whole head within {_HEAD_SECONDS:g} s; send the request at once.").body()
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            events = (h11.Response(status_code=408, headers=headers), h11.Data(data=body), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
            # A connection that is closed with unread bytes is reset, and its client may never see the answer.
            self._refused = True
            self.transport.write_eof()
            self.loop.call_later(_LINGER_SECONDS, self.transport.close)


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None


UVICORN: dict[str, Any] = {
    "loop": "asyncio",
    "http": Connection,
    "ws": "none",
    "log_config": None,
    "log_level": logging.ERROR,  # warnings are of requests that are refused, a line or two for each
    "access_log": False,
    "proxy_headers": False,
    "server_header": False,
}
"""Options of ``uvicorn.Config`` for every local server."""


def raise_file_limit() -> None:
    """Let this process open as many files as its connections need, within the limit of the system."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
