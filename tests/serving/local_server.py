"""The local server as a process of its own, and requests to it."""

import http.client
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil
import pytest
from commands import REPOSITORY, environment, warm
from prometheus_client.parser import text_string_to_metric_families
from warm_python import Started

from bincounter.serving.local.access import TOKEN_VARIABLE

_SERVE = """
import logging, sys
from pathlib import Path
from bincounter.errors import BinCounterError
from bincounter.serving.local import server
from bincounter.serving.local.access import read_access
logging.basicConfig(level=logging.INFO)
server.HEALTH_CHECK = int(sys.argv[2])
try:
    sys.exit(server.serve(Path(sys.argv[1]), port=0, access=read_access(sys.argv[3], None)))
except BinCounterError as error:
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


class Answer(NamedTuple):
    """A response, read."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


def send(url: str, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
    """Send one request to a server."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return Answer(response.status, {key.lower(): value for key, value in response.getheaders()}, response.read())
    finally:
        connection.close()


@dataclass
class LocalServer:
    """A server that was started.

    Attributes:
        process: the server's.
        url: ``http://127.0.0.1:PORT``.
        log: what it writes to stderr.
    """

    process: Started
    url: str
    log: Path

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        """Send one request."""
        return send(self.url, method, path, body, headers or {})

    def count(self, photo: bytes, **headers: str) -> Answer:
        """Post a photo."""
        return self.ask("POST", "/invocations", photo, {"Content-Type": "application/octet-stream", **headers})

    def metrics(self) -> dict[str, float]:
        """Values of ``/metrics`` by name, labels in brackets behind it."""
        text = self.ask("GET", "/metrics").body.decode()
        samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
        return {f"{one.name}{sorted(one.labels.items()) or ''}": one.value for one in samples}

    @property
    def port(self) -> int:
        """On 127.0.0.1."""
        port = urlsplit(self.url).port
        assert port
        return port

    def worker(self) -> psutil.Process:
        """The process that answers."""
        worker = self.next_worker()
        assert worker
        return worker

    def next_worker(self) -> psutil.Process | None:
        """The process that answers or is to answer; ``None`` while there is none."""
        template = self.template()
        with suppress(psutil.NoSuchProcess):
            return next(iter(template.children()), None) if template else None
        return None

    def template(self) -> psutil.Process | None:
        """The process that workers are forked from."""
        with suppress(psutil.NoSuchProcess):
            return next(
                (
                    child
                    for child in psutil.Process(self.process.pid).children()
                    if "forkserver" in " ".join(child.cmdline())
                ),
                None,
            )
        return None

    def wait_until_ready(self) -> None:
        """Wait until the worker answers; one that dies meanwhile resets the connection."""
        status = 0
        while status != 200:
            assert self.process.poll() is None, self.log.read_text()
            with suppress(OSError, http.client.HTTPException):
                status = self.ask("GET", "/ping").status

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def local_server(
    folder: Path, *, health_check: int = 30, host: str = "127.0.0.1", token: str = ""
) -> Iterator[LocalServer]:
    """Serve an unpacked archive until the block ends; its worker answers health checks within so many seconds."""
    log = folder.with_name(f"{folder.name}.log")
    arguments = ["-c", _SERVE, str(folder), str(health_check), host]
    with log.open("w+") as stderr:
        process = warm().start(arguments, REPOSITORY, {**environment(), TOKEN_VARIABLE: token}, stderr)
        children = []
        try:
            url = process.told(r"(http:\S+)/\n.*\n.*\n")[1]
            yield LocalServer(process, url, log)
        finally:
            if process.poll() is None:
                children = psutil.Process(process.pid).children(recursive=True)
                process.send_signal(signal.SIGTERM)
            process.wait(30)
            assert not psutil.wait_procs(children, timeout=10)[1]


def gone(pid: int) -> bool:
    """True if a process has ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A running server of a small model, for all tests that leave it running."""
    from archives import unpacked_archive  # torch, which most tests do without

    with local_server(unpacked_archive(tmp_path_factory.mktemp("served") / "archive")) as server:
        yield server
