"""Servers of the comparison: each starts an archive in processes of its own and ends with its block."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
TORCHSERVE = REPOSITORY / ".venv-torchserve" / "bin" / "python"
START = 180.0  # seconds a server may take to come up

# The toolkit writes its settings to /etc; here they go beside the model.
_TORCHSERVE_ENTRY = """
import sys
from sagemaker_pytorch_serving_container import serving, torchserve
torchserve.TS_CONFIG_FILE = sys.argv[1]
serving.main()
"""


class Server:
    """A running server.

    Args:
        command: that starts it; it may start further processes.
        port: it answers on.
        path: photos are posted to.
        ready: path that answers 200 once it can answer.
        environment: beside this process's.
        folder: it runs in.
    """

    def __init__(
        self, command: Sequence[str], port: int, path: str, ready: str, environment: dict[str, str], folder: Path
    ) -> None:
        self.url = f"http://127.0.0.1:{port}{path}"
        self._ready = f"http://127.0.0.1:{port}{ready}"
        self._log = folder / "server.log"
        with self._log.open("wb") as log:
            self._process = psutil.Popen(
                list(command),
                env=os.environ | environment,
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        try:
            self.wait_until_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def wait_until_ready(self) -> None:
        """Wait until it answers its ping.

        Raises:
            RuntimeError: it ended, or took too long.
        """
        until = time.monotonic() + START
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(self._ready, timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"no answer from {self._ready}: {self._log.read_text(errors='replace')[-2000:]}")

    def resident_mb(self) -> float:
        """Resident memory of all its processes, in units of 1e6 bytes."""
        return sum(process.memory_info().rss for process in self._processes()) / 1e6

    def kill_worker(self) -> None:
        """SIGKILL the process that holds the model: the child with the most memory."""
        max(self._process.children(recursive=True), key=lambda child: child.memory_info().rss).kill()

    def _processes(self) -> list[psutil.Process]:
        """Its own and those of its session: TorchServe's Java process is not a child."""
        found = {self._process, *(self._process.children(recursive=True) if self._process.is_running() else ())}
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(process.pid) == self._process.pid:
                    found.add(process)
        return list(found)

    def _end(self) -> None:
        processes = self._processes()
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.send_signal(signal.SIGINT)
        with contextlib.suppress(psutil.TimeoutExpired):
            self._process.wait(10)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)


def local_server(archive: Path) -> Server:
    """deploy.py's own server."""
    port = _free_port()
    command = [
        sys.executable,
        str(REPOSITORY / "deploy.py"),
        f"archive={archive}",
        "parity.photos=0",
        "trust=true",
        "target=local",
        f"target.port={port}",
    ]
    return Server(command, port, "/invocations", "/ping", {}, Path(tempfile.mkdtemp(dir=archive.parent)))


def ray_server(archive: Path) -> Server:
    """Ray Serve, started as AWS's image starts it, without the image's adapter in front of it."""
    folder = _unpacked(archive)
    port = _free_port()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {"PYTHONPATH": f"{folder}:{folder / 'code'}", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [str(Path(sys.executable).with_name("serve")), "run", str(folder / "config.yaml")]
    return Server(command, port, "/", "/-/healthz", environment, folder.parent)


def torchserve(archive: Path) -> Server | None:
    """TorchServe with AWS's toolkit, which calls the archive's four functions; ``None`` where it is not installed."""
    if not TORCHSERVE.exists():
        print("TorchServe is left out: make .venv-torchserve/.installed", file=sys.stderr)
        return None
    folder = _unpacked(archive, name="model")
    environment = {
        "SAGEMAKER_BASE_DIR": str(folder.parent),
        "SAGEMAKER_BIND_TO_PORT": str(port := _free_port()),
        "SAGEMAKER_MODEL_SERVER_WORKERS": "1",  # more of them share these cores and are slower
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": str(folder / "code"),
        "TMPDIR": str(folder.parent),  # it keeps its process id there
        "TS_METRICS_ADDRESS": f"http://127.0.0.1:{_free_port()}",
        "PATH": f"{TORCHSERVE.parent}:{os.environ['PATH']}",
    }
    command = [str(TORCHSERVE), "-c", _TORCHSERVE_ENTRY, str(folder.parent / "ts.properties")]
    return Server(command, port, "/invocations", "/ping", environment, folder.parent)


def _unpacked(archive: Path, name: str = "m") -> Path:
    from bincounter.serving.packing.tarball import unpack

    # Short names: Ray's sockets lie beside it and may have 107 characters.
    return unpack(archive, Path(tempfile.mkdtemp(dir=archive.parent)) / name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
