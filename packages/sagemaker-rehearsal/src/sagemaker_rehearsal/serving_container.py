"""Serving container: an archive unpacked as /opt/ml/model, served by Ray Serve as in the image."""

import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from botocore.exceptions import BotoCoreError, ClientError

from sagemaker_rehearsal import client_environment
from sagemaker_rehearsal.container_logs import LogStream, Metrics
from sagemaker_rehearsal.site import Site
from sagemaker_rehearsal.storage import split_uri

_HEALTH, _INVOCATIONS = "/-/healthz", "/"
_NOT_BUILT = re.compile(r"Deploying app '.*' failed with exception")
_LOG_PERIOD = 1.0  # seconds
_FORWARDED = ("content-type", "accept")  # and all X-Amzn-SageMaker-* headers


class NotServable(Exception):
    """The model cannot be served; the message becomes the FailureReason."""


class _Output(Metrics):
    """Search of the server's output for a failed deployment, which Ray does not retry."""

    def __init__(self) -> None:
        super().__init__([])
        self.has_failed = threading.Event()

    def read(self, line: str, moment: float) -> None:
        """Search one line."""
        if _NOT_BUILT.search(line):
            self.has_failed.set()


class Container:
    """One container.

    Args:
        site: state shared by all jobs.
        model: body of CreateModel.
        group: log group, such as ``/aws/sagemaker/Endpoints/name``.
        stream: log stream, such as ``AllTraffic/i-0123``.
    """

    def __init__(self, site: Site, model: Mapping[str, Any], group: str, stream: str) -> None:
        self._site, self._model = site, model["PrimaryContainer"]
        self._group, self._stream = group, stream
        # A short name: paths of Ray's sockets in it may have at most 107 characters.
        self._base = Path(tempfile.mkdtemp(prefix="rh-"))
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: LogStream | None = None
        self._output = _Output()
        self._ending = threading.Event()
        self._idle = threading.Condition()
        self._requests = 0

    def start(self) -> None:
        """Download the archive, install its requirements, and start the server.

        Raises:
            NotServable: one of these fails.
        """
        folder = self._unpack()
        environment = self._environment(folder)
        self._install(folder, environment)
        config = self._configuration(folder)
        keeper = [sys.executable, "-I", str(Path(__file__).with_name("keeper.py"))]
        serve = Path(sys.executable).with_name("serve")
        if not serve.is_file():
            raise NotServable("The rehearsal needs Ray Serve: pip install 'sagemaker-rehearsal[endpoints]'")
        # Not in the site's groups: closing the keeper's stdin ends Ray's processes, killing it does not.
        self._process = subprocess.Popen(
            [*keeper, str(serve), "run", str(config)],
            cwd=self._base,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with suppress(ClientError):  # it exists
            self._site.logs.create_log_group(logGroupName=self._group)
        assert self._process.stdout is not None
        self._log = LogStream(self._site.logs, self._stream, self._process.stdout, self._output, group=self._group)
        threading.Thread(target=self._send_log, daemon=True).start()

    def healthy(self) -> bool:
        """Return True if the server passes the health check, as ``/ping`` of the image's adapter."""
        with suppress(OSError, http.client.HTTPException):
            return self._request("GET", _HEALTH, b"", {}, timeout=2)[0] == 200
        return False

    def ended(self) -> bool:
        """Return True if the server has ended or failed; AWS repeats the health check for minutes."""
        return self._output.has_failed.is_set() or (self._process is not None and self._process.poll() is not None)

    def answer(self, body: bytes, headers: Mapping[str, str], timeout: float) -> tuple[int, str, bytes]:
        """Forward a request, like ``/invocations`` of the image's adapter.

        Args:
            body: body of the request.
            headers: headers of the request; only those forwarded by the adapter are sent.
            timeout: seconds.

        Returns:
            Status, content type and body of the response.

        Raises:
            OSError: no response arrived in time.
        """
        forwarded = {
            name: value
            for name, value in headers.items()
            if name.lower() in _FORWARDED or name.lower().startswith("x-amzn-sagemaker-")
        }
        try:
            with self._count_request():
                return self._request("POST", _INVOCATIONS, body, forwarded, timeout)
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error

    def wait_until_idle(self, timeout: float) -> None:
        """Wait until no request is in progress, at most ``timeout`` seconds."""
        with self._idle:
            self._idle.wait_for(lambda: not self._requests, timeout)

    def end(self) -> None:
        """End the container's processes, and send the rest of its log."""
        self._ending.set()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()
        if self._log is not None:
            with suppress(BotoCoreError, ClientError):  # the control plane may be ending, too
                self._log.close()
        shutil.rmtree(self._base, ignore_errors=True)

    def _unpack(self) -> Path:
        uri = self._model["ModelDataUrl"]
        bucket, key = split_uri(uri)
        archive, folder = self._base / "model.tar.gz", self._base / "model"
        try:
            self._site.s3.download_file(bucket, key, str(archive))
        except ClientError as error:
            raise NotServable(f"Could not find model data at {uri}.") from error
        try:
            with tarfile.open(archive) as packed:
                packed.extractall(folder, filter="data")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise NotServable(f"Failed to extract model data archive from URL {uri}.") from error
        archive.unlink()
        return folder

    def _install(self, folder: Path, environment: Mapping[str, str]) -> None:
        requirements = folder / "code/requirements.txt"
        if not requirements.is_file():
            return
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "-r", str(requirements)]
        done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or "pip printed nothing").splitlines()[-1]
            raise NotServable(f"The container could not install code/requirements.txt: {last[:500]}")

    def _configuration(self, folder: Path) -> Path:
        """Write the archive's config.yaml with a free port: all containers share this machine's network."""
        try:
            config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
            config["http_options"] = {**config.get("http_options", {}), "host": "127.0.0.1", "port": self._port}
        except (OSError, yaml.YAMLError, TypeError, AttributeError) as error:
            raise NotServable("The container found no config.yaml for `serve run` in the model archive.") from error
        path = self._base / "config.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    def _environment(self, folder: Path) -> dict[str, str]:
        kept = ("HOME", "OMP_NUM_THREADS")
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            **self._model.get("Environment", {}),
            **client_environment(self._site.endpoint),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath]),
            "LANG": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join([str(folder), str(folder / "code")]),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "TMPDIR": str(self._base),
            "RAY_TMPDIR": str(self._base),
            "RAY_ADDRESS": "local",  # not the cluster of another container
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    @contextmanager
    def _count_request(self) -> Iterator[None]:
        """Count a request as in progress."""
        with self._idle:
            self._requests += 1
        try:
            yield
        finally:
            with self._idle:
                self._requests -= 1
                self._idle.notify_all()

    def _send_log(self) -> None:
        """Send the log as long as the container runs."""
        assert self._log is not None
        while not self._ending.wait(_LOG_PERIOD):
            with suppress(BotoCoreError, ClientError):
                self._log.send()

    def _request(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], timeout: float
    ) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout)
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            return response.status, response.headers.get("Content-Type", ""), response.read()
        finally:
            connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
