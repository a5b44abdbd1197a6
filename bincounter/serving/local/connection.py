"""One client's connection, as far as the server below :mod:`bincounter.serving.local.front` sees it."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bincounter.serving.application.problems import Problem

_HEAD_SECONDS, _HEAD_BYTES = 20.0, 1 << 16


class Connection(HttpToolsProtocol):
    """uvicorn's, with bounds on what comes before a body, and sentences where that is wrong.

    A browser opens connections for later: one on which nothing comes is closed without a word.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head: int | None = 0  # bytes so far; None while a body is read
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(_HEAD_SECONDS, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._in_time()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A request line begins."""
        super().on_message_begin()
        self._head = 0
        self._in_time()
        self._deadline = self.loop.call_later(_HEAD_SECONDS, self._late)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._head is not None:
            self._head += len(data)  # the parser tells of a header only once it is whole
        super().data_received(data)
        if self._head is not None and self._head > _HEAD_BYTES and not self.transport.is_closing():
            self._refuse(Problem(431, f"The headers have more than {_HEAD_BYTES >> 10} KiB; send shorter ones."))

    def on_headers_complete(self) -> None:
        """What is above the body has come."""
        self._in_time()
        self._head = None
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(Problem(400, "This is no HTTP that can be read; send a request as HTTP/1.1 has it."))

    def _in_time(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        if self.scope is None:
            self.transport.close()
        else:
            self._refuse(Problem(408, f"The headers did not come within {_HEAD_SECONDS:g} s; send them at once."))

    def _refuse(self, problem: Problem) -> None:
        reasons = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}
        body = problem.body()
        head = (
            f"HTTP/1.1 {problem.status} {reasons[problem.status]}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()
