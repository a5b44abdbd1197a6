"""Servers with AWS's API, and an archive to deploy to them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sagemaker_rehearsal import client_environment

if TYPE_CHECKING:
    from scripted_endpoints import ScriptedEndpoints


@contextmanager
def moto_server() -> Iterator[str]:
    """Serve moto on a free port of 127.0.0.1; yields the address."""
    from moto.server import ThreadedMotoServer  # slow to import, and most tests do without

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The address of moto's server, which the tests of a module share."""
    with moto_server() as address:
        yield address


@pytest.fixture(scope="module")
def scripted() -> Iterator[tuple["ScriptedEndpoints", str]]:
    """Scripted endpoints and their address, which the tests of a module share."""
    from scripted_endpoints import scripted_endpoints

    with scripted_endpoints() as served:
        yield served


@pytest.fixture
def script(scripted: tuple["ScriptedEndpoints", str], monkeypatch: pytest.MonkeyPatch) -> "ScriptedEndpoints":
    """Scripted endpoints without a script, which the environment leads to."""
    for name, value in client_environment(scripted[1]).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    scripted[0].course, scripted[0].asked, scripted[0].rolls_back = [], [], False
    return scripted[0]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A file to deploy where nothing unpacks it."""
    path = tmp_path / "model.tar.gz"
    path.write_bytes(b"an archive")
    return path
