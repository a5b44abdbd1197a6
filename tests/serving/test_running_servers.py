"""List of running servers: one process for each name, and the program that answers at its port."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from bincounter.errors import BinCounterError, UserError
from bincounter.serving.local.running_servers import Server, claimed, find_server, running_servers, stop_server
from bincounter.serving.local.server import check_port


@contextmanager
def answering(body: bytes) -> Iterator[int]:
    """A program that answers every request with the same bytes; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def identity(name: str = "first", process: int | None = None, model: str = "bincounter-0") -> bytes:
    return json.dumps({"name": name, "process": process or os.getpid(), "model": model}).encode()


def test_a_name_is_claimed_once(tmp_path: Path) -> None:
    with claimed("first", tmp_path) as (place, enter):
        assert place == tmp_path / "first"
        assert running_servers(tmp_path) == []
        with pytest.raises(UserError, match=f"named first is being started .process {os.getpid()}.: stop it with"):
            claimed("first", tmp_path).__enter__()
        with answering(identity()) as port, claimed("second", tmp_path):
            server = Server("first", port, os.getpid(), "bincounter-0", "/a.tar.gz")
            enter(server)
            assert running_servers(tmp_path) == [server]
            assert find_server("first", tmp_path) == find_server("first", tmp_path, port) == server
            with pytest.raises(UserError, match=rf"named first runs at http://127\.0\.0\.1:{port}/"):
                claimed("first", tmp_path).__enter__()
            with pytest.raises(BinCounterError, match=r"No server named third runs.*what runs is first at http"):
                find_server("third", tmp_path)
    with claimed("first", tmp_path):
        assert running_servers(tmp_path) == []


@pytest.mark.parametrize("other", [identity("second"), identity(process=1)], ids=["name", "process"])
def test_a_server_that_does_not_answer_at_its_port_is_not_taken_for_it(tmp_path: Path, other: bytes) -> None:
    with claimed("first", tmp_path) as (_, enter), answering(other) as port:
        enter(Server("first", port, os.getpid(), "bincounter-0", "/a.tar.gz"))
        with pytest.raises(BinCounterError, match="look at both processes"):
            find_server("first", tmp_path)


def test_a_server_of_another_list_is_found_at_its_port_and_not_killed(tmp_path: Path) -> None:
    with answering(identity(process=1)) as port:
        server = find_server("first", tmp_path, port)
        assert server == Server("first", port, 1, "bincounter-0")
        with pytest.raises(UserError, match=r"another paths\.cache_dir.*or end process 1"):
            stop_server(server, tmp_path)
        with pytest.raises(BinCounterError, match="No server named second runs"):
            find_server("second", tmp_path, port)


_KILLED = """
import os, sys
from pathlib import Path
from bincounter.serving.local.running_servers import Server, claimed
with claimed("first", Path(sys.argv[1])) as (place, enter):
    place.mkdir()
    enter(Server("first", 1, os.getpid(), "bincounter-0", "/a.tar.gz"))
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("claims", [False, True], ids=["looks", "claims"])
def test_a_killed_server_leaves_its_name_and_nothing_else(tmp_path: Path, claims: bool) -> None:
    subprocess.run([sys.executable, "-c", _KILLED, tmp_path], check=False)
    assert (tmp_path / "first").is_dir()
    if claims:
        with claimed("first", tmp_path) as (place, _):
            assert not place.exists()
    assert running_servers(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            identity(process=4242),
            "is taken by bincounter's server first .process 4242, model bincounter-0.: use it with",
        ),
        (identity(name="\x1b[2J"), "is taken by another program"),
        (b"[]", "is taken by another program"),
        (b"{}", "is taken by another program"),
    ],
    ids=["bincounter", "control characters", "list", "object"],
)
def test_the_holder_of_a_taken_port_is_named(body: bytes, said: str) -> None:
    with answering(body) as port, pytest.raises(UserError, match=said):
        check_port(port)
