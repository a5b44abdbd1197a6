"""A server that refuses chosen requests as AWS does, and passes the others on to a server behind it."""

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

_NOT_PASSED_ON = ("content-length", "transfer-encoding", "connection", "date", "server")


Change = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass
class Refusal:
    """Answer in its place; ``left`` counts the times that are still to come, ``None`` for always."""

    operation: str
    code: str
    message: str
    status: int
    headers: Mapping[str, str]
    left: int | None


@dataclass
class Faults:
    """The server's address, what it was asked, and what it refuses."""

    upstream: str | None
    endpoint: str = ""
    operations: list[str] = field(default_factory=list)
    _refusals: list[Refusal] = field(default_factory=list)
    _changes: dict[str, Change] = field(default_factory=dict)
    closed: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def refuse(
        self,
        operation: str,
        code: str,
        message: str = "",
        *,
        status: int = 400,
        headers: Mapping[str, str] | None = None,
        times: int | None = None,
    ) -> None:
        """Answer an operation with an error from now on.

        ``operation`` is a regular expression for its whole name: ``CreateTrainingJob`` where AWS names the operation
        in the request, else method and path, such as ``HEAD /bucket``.
        """
        self._refusals.append(Refusal(operation, code, message, status, headers or {}, times))

    def lose(self, operation: str) -> None:
        """Carry an operation out, and break off instead of answering, once."""
        self._refusals.append(Refusal(operation, "", "", 0, {}, 1))

    def silence(self, operation: str) -> None:
        """Take an operation's request, and never answer it."""
        self._refusals.append(Refusal(operation, "", "", -1, {}, None))

    def disturb(self, operation: str, fault: str) -> None:
        """Have an operation ``denied``, ``throttled`` or ``silent``."""
        if fault == "silent":
            self.silence(operation)
        elif fault == "throttled":
            self.refuse(operation, "ThrottlingException", "Rate exceeded")
        else:
            denied = f"User: arn:aws:iam::123456789012:user/ada is not authorized to perform: x:{operation}"
            self.refuse(operation, "AccessDeniedException", denied)

    def heal(self) -> None:
        """Refuse and change nothing any more."""
        self._refusals.clear()
        self._changes.clear()

    def change(self, operation: str, change: Change) -> None:
        """Have what the server behind answers to an operation gone over."""
        self._changes[operation] = change

    def changed(self, operation: str, text: bytes) -> bytes:
        """An answer to an operation, gone over."""
        change = self._changes.get(operation)
        return text if change is None else json.dumps(change(json.loads(text))).encode()

    def refusal(self, operation: str) -> Refusal | None:
        with self._lock:
            self.operations.append(operation)
            for refusal in reversed(self._refusals):
                if re.fullmatch(refusal.operation, operation) and refusal.left != 0:
                    refusal.left = None if refusal.left is None else refusal.left - 1
                    return refusal
        return None

    def environment(self) -> dict[str, str]:
        """Variables by which AWS clients come here, without those of the person who runs the tests."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "no-secret-at-all",
            "AWS_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }


@contextmanager
def faults(upstream_url: str | None = None) -> Iterator[Faults]:
    """Serve on a free port of 127.0.0.1; without an upstream, whatever is not refused is answered with 501."""
    server = Faults(upstream_url)
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(server)) as listener:
        listener.daemon_threads = True
        server.endpoint = f"http://127.0.0.1:{listener.server_address[1]}"
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.closed.set()
            listener.shutdown()
            thread.join()


def _handler(server: Faults) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else the body waits 40 ms for the word that the headers arrived

        def answer(self) -> None:
            body = self.body()
            target = self.headers.get("X-Amz-Target", "")
            form = parse_qs(body.decode()) if "form-urlencoded" in self.headers.get("Content-Type", "") else {}
            action = target.rpartition(".")[2] or form.get("Action", [""])[0]
            refusal = server.refusal(action or f"{self.command} {urlsplit(self.path).path}")
            if refusal is None and server.upstream is None:
                refusal = Refusal("", "NotImplemented", "nothing is behind this server", 501, {}, None)
            if refusal is None:
                self.pass_on(body)
            elif refusal.status < 0:
                server.closed.wait()
                self.close_connection = True
            elif not refusal.status:
                self.pass_on(body, answered=False)
            elif target:
                text = json.dumps({"__type": refusal.code, "message": refusal.message})
                self.reply(refusal.status, {"Content-Type": "application/x-amz-json-1.1", **refusal.headers}, text)
            else:
                text = f"<Code>{refusal.code}</Code><Message>{escape(refusal.message)}</Message>"
                text = f"<Error>{text}</Error>"
                text = f"<ErrorResponse>{text}</ErrorResponse>" if action else text
                self.reply(refusal.status, {"Content-Type": "application/xml", **refusal.headers}, text)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass  # trailers
            return b"".join(parts)

        def pass_on(self, body: bytes, *, answered: bool = True) -> None:
            upstream = HTTPConnection(urlsplit(server.upstream or "").netloc, timeout=60)
            kept = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
            upstream.request(self.command, self.path, body, {**kept, "Content-Length": str(len(body))})
            response = upstream.getresponse()
            headers = {name: value for name, value in response.getheaders() if name.lower() not in _NOT_PASSED_ON}
            length = response.headers.get("Content-Length", "0")
            text = response.read()
            upstream.close()
            if not answered:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            operation = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
            self.reply(response.status, headers, server.changed(operation, text), length)

        def reply(self, status: int, headers: Mapping[str, str], text: str | bytes, length: str = "") -> None:
            content = text.encode() if isinstance(text, str) else text
            is_head = self.command == "HEAD"
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", (length or "0") if is_head else str(len(content)))
            self.end_headers()
            self.wfile.write(b"" if is_head else content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
