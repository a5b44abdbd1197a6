"""A proxy before an S3 server, which keeps the requests and spoils answers."""

import asyncio
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from s3_server import S3Server


@dataclass(frozen=True)
class Answer:
    """Answer of the server, and the way it is passed on.

    Attributes:
        request: method and path that it answers.
        asked: the headers of the request, names in lower case.
        status: of HTTP.
        headers: names in lower case.
        body: none in answers to HEAD.
        cut: bytes of the body after which the connection breaks; ``-1`` for not even headers.
        reset: whether it breaks by a reset, not by an end.
        stalled: seconds of silence before it breaks.
    """

    request: str
    asked: dict[str, str]
    status: int
    headers: dict[str, str]
    body: bytes
    cut: int | None = None
    reset: bool = False
    stalled: float = 0


Fault = Callable[[Answer], Answer]


@dataclass
class FaultyProxy:
    """Passes requests on to ``server`` and keeps them, as ``GET /bucket/key?query``."""

    server: "S3Server"
    endpoint: str = ""
    requests: list[str] = field(default_factory=list)
    _faults: list[tuple[re.Pattern[str], Fault, list[int]]] = field(default_factory=list)

    def spoil(self, pattern: str, fault: Fault, times: int = 1_000_000, *, after: int = 0) -> None:
        """Apply ``fault`` to so many answers to requests that ``pattern`` (a regular expression) finds.

        ``after`` so many that stay as they are.
        """
        self._faults.append((re.compile(pattern), fault, [after, times]))

    def mend(self) -> None:
        """Pass on everything as it is from now on."""
        self._faults.clear()

    def objects_sent(self) -> int:
        """GET requests for objects, not for listings."""
        return sum(request.startswith("GET") and "list-type" not in request for request in self.requests)

    def handle(self, answer: Answer) -> Answer:
        self.requests.append(answer.request)
        for pattern, fault, left in self._faults:
            if pattern.search(answer.request):
                if left[0] > 0:
                    left[0] -= 1
                elif left[1] > 0:
                    left[1] -= 1
                    answer = fault(answer)
        return answer


@contextmanager
def faulty_proxy(server: "S3Server") -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(server)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> None:
        listener = await asyncio.start_server(lambda *streams: _serve(proxy, *streams), "127.0.0.1", 0)
        proxy.endpoint = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"

    async def stop() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    try:
        asyncio.run_coroutine_threadsafe(start(), loop).result()
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _serve(proxy: FaultyProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection by one of its own to the server."""
    place = urlsplit(proxy.server.endpoint)
    server, to_server = await asyncio.open_connection(place.hostname, place.port)
    try:
        while True:
            request, asked = await _head(reader)
            if asked.pop("expect", ""):
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            _write(to_server, request, asked, await _body(reader, asked))
            first, headers = await _head(server)
            method, path, _ = request.split(" ")
            status = int(first.split(" ")[1])
            bodiless = method == "HEAD" or status in (204, 304)
            body = b"" if bodiless else await _body(server, headers)
            answer = proxy.handle(Answer(f"{method} {path}", asked, status, headers, body))
            if not await _pass_on(answer, writer, bodiless=bodiless):
                return
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        pass  # someone has hung up, or the test has ended
    finally:
        writer.transport.abort()
        to_server.transport.abort()


async def _head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    pairs = (line.partition(":") for line in lines)
    return first, {name.lower(): value.strip() for name, _, value in pairs}


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.pop("transfer-encoding", "") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
    return body


def _write(
    writer: asyncio.StreamWriter, first: str, headers: dict[str, str], body: bytes, cut: int | None = None
) -> None:
    if body:
        headers = headers | {"content-length": str(len(body))}
    lines = [first, *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    writer.write("\r\n".join(lines).encode("latin-1") + body[:cut])


async def _pass_on(answer: Answer, writer: asyncio.StreamWriter, *, bodiless: bool) -> bool:
    """Send an answer; whether the connection stays."""
    if answer.cut != -1:
        headers = answer.headers if bodiless else answer.headers | {"content-length": str(len(answer.body))}
        _write(writer, f"HTTP/1.1 {answer.status} -", headers, answer.body, answer.cut)
        await writer.drain()
    if answer.cut is None:
        return True
    await asyncio.sleep(answer.stalled)
    if answer.reset:
        linger = struct.pack("ii", 1, 0)  # what is still to be sent is thrown away
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    return False
