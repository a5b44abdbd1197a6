"""An archive behind Ray Serve, started as the entry point of AWS's serving image starts it."""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from archives import photo, unpacked_archive
from commands import REPOSITORY

_CONFIG = """
http_options: {{host: 127.0.0.1, port: {port}}}
applications:
  - {{name: bincounter, import_path: "deployment:app", route_prefix: /}}
"""


@dataclass(frozen=True)
class Answer:
    """Answer of Ray Serve."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class RayServed:
    """A running application.

    Attributes:
        port: on 127.0.0.1.
        folder: of the archive.
    """

    port: int
    folder: Path

    def post(self, body: bytes, **headers: str) -> Answer:
        return self._ask("POST", "/", body, {name.replace("_", "-"): value for name, value in headers.items()})

    def healthy(self) -> bool:
        """Answer of the image's adapter to ``/ping``."""
        return self._ask("GET", "/-/healthz", b"", {}).status == 200

    def answers(self) -> bool:
        try:
            return self.post(photo()).status == 200
        except OSError:
            return False

    def replicas(self) -> list[int]:
        """Process ids of the replica, which Ray names after its class."""
        title = b"ray::ServeReplica:bincounter"
        return [process for process in _processes_with(str(self.folder)) if _read(process, "cmdline").startswith(title)]

    def _ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()


def ray_archive(folder: Path, port: int, **limits: object) -> Path:
    """An unpacked archive with what Ray Serve starts from."""
    unpacked_archive(folder, **limits)
    entrypoints = REPOSITORY / "bincounter/serving/entrypoints"
    shutil.copy(entrypoints / "ray_serve.py", folder / "deployment.py")
    (folder / "config.yaml").write_text(_CONFIG.format(port=port), encoding="utf-8")
    return folder


@contextmanager
def ray_served(folder: Path, port: int, *, python: Path = Path(sys.executable)) -> Iterator[RayServed]:
    """Run ``serve run config.yaml`` in the environment of ``python``, and end all that it started."""
    # Ray's sockets lie in there, and their paths may have no more than 107 characters.
    temporary = tempfile.mkdtemp(prefix="bincounter-ray-", dir="/tmp")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}:{folder / 'code'}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": temporary,
        "RAY_ADDRESS": "local",
        "OMP_NUM_THREADS": "1",
    }
    log = Path(temporary) / "serve.log"
    with log.open("wb") as output:
        command = [str(python.with_name("serve")), "run", str(folder / "config.yaml")]
        process = subprocess.Popen(
            command, cwd=temporary, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    served = RayServed(port, folder)
    try:
        until = time.monotonic() + 90
        while not served.answers():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield served
    finally:
        _kill_all(temporary)
        process.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def _kill_all(temporary: str) -> None:
    """End every process that was started with this temporary folder: Ray's own begin process groups of their own."""
    while processes := _processes_with(temporary):
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)


def _processes_with(value: str) -> list[int]:
    """Processes that have a text in their environment; those that have ended have none."""
    processes = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [process for process in processes if value.encode() in _read(process, "environ")]


def _read(process: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{process}/{name}").read_bytes()
    except OSError:
        return b""


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
