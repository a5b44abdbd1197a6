"""Bounds of the local server on slow clients: heads, bodies, answers that nobody reads, and idle connections."""

import asyncio
import gzip
import socket
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest
import uvicorn
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from bincounter.serving.application.answers import Limits, Problem
from bincounter.serving.application.photo_requests import decompress
from bincounter.serving.application.service import Reply
from bincounter.serving.local import app, connections, guards
from bincounter.serving.local.guards import RequestLimiter

pytestmark = pytest.mark.anyio
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]
LIMITS = Limits(max_body_bytes=1000, timeout_s=5)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def request(receive: Receive, **headers: str) -> Request:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": named}, receive)


def sent(*chunks: bytes) -> Receive:
    """Deliver a body in chunks."""
    left = list(chunks)

    async def receive() -> Message:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    return receive


def dripping(seconds: float) -> Receive:
    """Deliver a byte now and then, for ever."""

    async def receive() -> Message:
        await asyncio.sleep(seconds)
        return {"type": "http.request", "body": b"x", "more_body": True}

    return receive


async def whole(limiter: RequestLimiter, asked: Request) -> bytes:
    async with limiter.body(asked) as body:
        assert limiter.in_flight == 1
        return body


def refusal(answered: bytes | BaseException) -> tuple[int, str]:
    assert isinstance(answered, Problem)
    return answered.status, answered.sentence


async def test_a_body_counts_as_a_request_once_it_is_there() -> None:
    limiter = RequestLimiter(LIMITS, 1)
    slow = [asyncio.create_task(whole(limiter, request(dripping(0.01)))) for _ in range(20)]
    await asyncio.sleep(0.05)
    assert await whole(limiter, request(sent(b"a", b"b"))) == b"ab"
    async with limiter.body(request(sent(b"a"))):
        with pytest.raises(Problem, match="retry") as second:
            await whole(limiter, request(sent(b"a")))
        assert second.value.status == 503
    assert not any(one.done() for one in slow)
    for one in slow:
        one.cancel()


async def test_a_body_below_the_slowest_pace_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "_PERIOD", 0.1)
    limiter = RequestLimiter(LIMITS, 1)
    answered = await asyncio.gather(
        *(whole(limiter, request(dripping(seconds))) for seconds in (0.02, 60)), return_exceptions=True
    )
    for one in answered:
        status, sentence = refusal(one)
        assert status == 408
        assert "bytes of the body arrived in 0.1 s" in sentence
    assert await whole(limiter, request(sent(b"after"))) == b"after"


async def test_a_lack_of_memory_for_a_body_is_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise MemoryError

    async def handle(*_: object) -> Reply:
        raise AssertionError

    monkeypatch.setattr(guards, "decompress", fail)
    limiter = RequestLimiter(LIMITS, 1)
    response = await app._answer(request(sent(b"x"), content_encoding="gzip"), limiter, handle)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


async def test_memory_is_given_back_once_after_large_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed = list[int]()
    monkeypatch.setattr(guards, "_LARGE", 100)
    monkeypatch.setattr(guards, "_TRIM_AFTER", 0.05)
    monkeypatch.setattr(guards, "_malloc_trim", trimmed.append)
    limiter = RequestLimiter(LIMITS, 1)
    await whole(limiter, request(sent(bytes(100))))
    await asyncio.sleep(0.1)
    assert not trimmed
    for _ in range(3):
        await whole(limiter, request(sent(bytes(101))))
    while not trimmed:
        await asyncio.sleep(0.01)
    assert trimmed == [0]


async def test_the_oldest_body_gives_way_where_bodies_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "_OLDER", 0.0)
    limiter = RequestLimiter(LIMITS, 1)

    def stalled() -> Receive:
        first = iter([{"type": "http.request", "body": bytes(1000), "more_body": True}])

        async def receive() -> Message:
            message = next(first, None)
            return message or await asyncio.Future[Message]()

        return receive

    slow = []
    for _ in range(8):
        slow.append(asyncio.create_task(whole(limiter, request(stalled()))))
        await asyncio.sleep(0.01)
    assert await whole(limiter, request(sent(bytes(900)))) == bytes(900)
    status, sentence = refusal((await asyncio.gather(slow[0], return_exceptions=True))[0])
    assert status == 503
    assert "gave way" in sentence
    assert not any(one.done() for one in slow[1:])
    for one in slow:
        one.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    assert await whole(limiter, request(sent(*[bytes(100)] * 10))) == bytes(1000)


@asynccontextmanager
async def served(
    app: Callable[[Scope, Receive, Send], Awaitable[None]],
) -> AsyncIterator[Callable[[], Awaitable[Client]]]:
    """A server in this event loop; yields the function that connects to it."""
    config = uvicorn.Config(app, http=connections.Connection, ws="none", lifespan="off", log_config=None, port=0)
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        running = asyncio.create_task(server._serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        opened: list[asyncio.StreamWriter] = []

        async def connect() -> Client:
            client = await asyncio.open_connection(*listener.getsockname())
            opened.append(client[1])
            return client

        yield connect
        for writer in opened:
            writer.close()
        server.should_exit = True
        await running


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with so many bytes as the path says."""
    while (await receive()).get("more_body"):
        pass
    body = bytes(int(scope["path"].strip("/") or 2))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def end_of(client: Client) -> bytes:
    """Bytes that a connection receives until the server closes it, on which a client may still be writing."""
    received = b""
    async with asyncio.timeout(30):
        with suppress(ConnectionError):
            while part := await client[0].read(65536):
                received += part
    return received


async def test_a_head_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_HEAD_SECONDS", 0.3)
    async with served(hello) as connect:
        silent, slow, kept = await connect(), await connect(), await connect()
        slow[1].write(b"GET /")
        await slow[1].drain()
        kept[1].write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await kept[0].readuntil(b"\0\0")).startswith(b"HTTP/1.1 200 ")

        cast(asyncio.ReadTransport, slow[1].transport).pause_reading()  # it reads when it has written
        for letter in b" HTTP/1.1\r\nLong: " + b"a" * 40:
            slow[1].write(bytes([letter]))
            await asyncio.sleep(0.02)
        cast(asyncio.ReadTransport, slow[1].transport).resume_reading()
        assert (await end_of(slow)).startswith(b"HTTP/1.1 408 ")
        assert await end_of(silent) == b""
        kept[1].write(b"GET / HTTP/1.1\r\nHost: localhost\r\n")  # idle so long is no offence, half a head is
        assert (await end_of(kept)).startswith(b"HTTP/1.1 408 ")


async def test_an_answer_that_nobody_reads_ends_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_STALL_SECONDS", 0.3)
    done = []

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        await hello(scope, receive, send)
        done.append((await receive())["type"])

    async with served(watched) as connect:
        client = await connect()
        client[1].write(b"GET /50000000 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        while not done:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        assert len(await end_of(client)) < 50_000_000


async def test_the_connection_that_waits_the_longest_gives_way_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 3)
    async with served(hello) as connect:
        body, idle, late = await connect(), await connect(), await connect()
        body[1].write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n")
        for client in (idle, late):
            client[1].write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await client[0].readuntil(b"\0\0")
        another = await connect()
        assert await end_of(body) == b""
        for client in (another, late, idle):
            client[1].write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await client[0].readuntil(b"\0\0")).startswith(b"HTTP/1.1 200 ")


async def test_a_body_waits_for_100_continue_and_is_refused_without_it() -> None:
    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with RequestLimiter(LIMITS, 1).body(Request(scope, receive)):
                scope = {**scope, "path": "/"}
        except Problem as problem:
            await guards.ProblemResponse(problem)(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async with served(limited) as connect:
        for length, answer in {10: b"HTTP/1.1 100 ", 2000: b"HTTP/1.1 413 "}.items():
            client = await connect()
            head = f"POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
            client[1].write(head.encode())
            assert (await client[0].readuntil(b"\r\n\r\n")).startswith(answer)
            if length == 10:
                client[1].write(bytes(10))
                assert (await client[0].readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")


RAW = zlib.compressobj(wbits=-zlib.MAX_WBITS)
DEFLATED = RAW.compress(b"photo" * 100) + RAW.flush()


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(b"photo" * 100)),
        ("GZIP ", gzip.compress(b"photo" * 100)),
        ("x-gzip", gzip.compress(b"photo" * 60) + gzip.compress(b"photo" * 40)),
        ("deflate", zlib.compress(b"photo" * 100)),
        ("deflate", DEFLATED),
        ("identity", b"photo" * 100),
        ("", b"photo" * 100),
    ],
    ids=["gzip", "upper case", "two members", "deflate", "bare deflate", "identity", "none"],
)
async def test_compressed_bodies_are_taken(coding: str, body: bytes) -> None:
    headers = {"content_encoding": coding} if coding else {}
    assert await whole(RequestLimiter(LIMITS, 1), request(sent(body), **headers)) == b"photo" * 100


@pytest.mark.parametrize(
    ("coding", "body", "status", "words"),
    [
        ("br", b"x", 415, "'br' is not supported; send gzip, deflate or none"),
        ("zstd", b"x", 415, "'zstd' is not supported"),
        ("gzip, gzip", b"x", 415, "'gzip, gzip' is not supported"),
        ("a" * 4000, b"x", 415, "..."),
        ("gzip", b"photo", 400, "not gzip"),
        ("gzip", gzip.compress(bytes(900))[:-4], 400, "not one whole gzip stream"),
        ("gzip", gzip.compress(b"x") + b"rest", 400, "not gzip"),
        ("gzip", gzip.compress(b"") * 40, 200, ""),
        ("gzip", b"", 400, "not one whole gzip stream"),
        ("deflate", zlib.compress(b"x") + b"rest", 400, "not deflate"),
        ("gzip", gzip.compress(bytes(1001)), 413, "more than 0.001 MB"),
    ],
    ids=["br", "zstd", "two", "long", "plain", "cut", "rest", "many", "empty", "deflate rest", "large"],
)
async def test_other_codings_and_damaged_streams_are_refused(coding: str, body: bytes, status: int, words: str) -> None:
    limiter = RequestLimiter(LIMITS, 1)
    if status == 200:
        assert await whole(limiter, request(sent(body), content_encoding=coding)) == b""
        return
    with pytest.raises(Problem) as refused:
        await whole(limiter, request(sent(body), content_encoding=coding))
    assert refused.value.status == status
    assert words in refused.value.sentence
    assert len(refused.value.sentence) < 200


async def test_a_bomb_takes_no_more_memory_than_a_body_may_have() -> None:
    bomb = zlib.compress(bytes(200_000_000), 9)
    tracemalloc.start()
    with pytest.raises(Problem, match="more than 1 MB"):
        decompress(bomb, "deflate", Limits(max_body_bytes=1_000_000))
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
