"""Local server over HTTP: answers, guards, metrics, and workers that die, hang or fail."""

import base64
import errno
import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil
import pytest
from archives import CARD, COUNTS, photo, unpacked_archive
from local_server import LocalServer, gone, local_server
from served_runs import checkpoint_alone

from bincounter.errors import BinCounterError, ResourceError, UserError
from bincounter.serving.local import client
from bincounter.serving.local.app import read_card
from bincounter.serving.local.running_servers import Server
from bincounter.serving.local.server import serve
from bincounter.serving.packing.archive import PackageSettings, package
from bincounter.serving.packing.archive_probe import refused_packages
from bincounter.serving.packing.parity import archive_answers
from bincounter.serving.packing.tarball import unpack


def head_of(server: LocalServer, request: bytes) -> bytes:
    """Send bytes, and read the answer up to the end of its sentence."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(request)
        received = b""
        while not received.endswith(b"}") and (chunk := connection.recv(1 << 16)):
            received += chunk
        return received


def test_a_photo_is_counted(served: LocalServer) -> None:
    assert served.ask("GET", "/ping").status == 200
    answered = served.count(photo(3))
    answer = answered.json()
    assert answered.status == 200
    assert answered.headers["content-type"] == "application/json"
    assert answer["model"] == served.ask("GET", "/ping").json()["model"]
    assert list(answer["probabilities"]) == [str(count) for count in COUNTS]
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    expected = sum(int(count) * share for count, share in answer["probabilities"].items())
    assert answer["expected_count"] == pytest.approx(expected, abs=1e-4)
    instances = {"instances": [{"image": base64.b64encode(photo(seed)).decode()} for seed in (3, 1)]}
    several = served.ask("POST", "/invocations", json.dumps(instances).encode(), {"Content-Type": "application/json"})
    assert [one["count"] for one in several.json()["predictions"]] == [
        answer["count"],
        served.count(photo(1)).json()["count"],
    ]
    table = served.count(photo(3), Accept="text/csv")
    assert table.headers["content-type"].startswith("text/csv")
    assert table.body.decode().split(",")[0] == str(answer["count"])


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/invocations", b"no photo", 422),
        ("POST", "/invocations", b"", 400),
        ("POST", "/explanation", b"no photo", 422),
        ("GET", "/invocations", None, 405),
        ("OPTIONS", "/invocations", None, 405),
        ("POST", "/ping", b"", 405),
        ("GET", "/nothing", None, 404),
        ("GET", "/page/../model.json", None, 404),
        ("POST", "/page/" + "a" * 4000, b"", 405),
        ("GET", "/page/%2e%2e%2fworker.py", None, 404),
    ],
)
def test_what_is_wrong_is_answered_with_a_sentence(
    served: LocalServer, method: str, path: str, body: bytes | None, status: int
) -> None:
    answered = served.ask(method, path, body)
    assert answered.status == status
    assert answered.headers["content-type"] == "application/json"
    assert len(answered.json()["error"].split()) > 4
    assert len(answered.body) < 300
    if status == 405:
        assert answered.headers["allow"]


def test_head_is_answered_without_a_body(served: LocalServer) -> None:
    assert served.ask("HEAD", "/ping")[::2] == (200, b"")
    assert served.ask("HEAD", "/nothing")[::2] == (404, b"")


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3000000\r\n\r\n" + bytes(3_000_000),
        b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        + (b"80000\r\n" + bytes(0x80000) + b"\r\n") * 5,
    ],
    ids=["announced", "sent", "chunked"],
)
def test_a_body_that_is_too_large_is_refused_at_once(served: LocalServer, request_: bytes) -> None:
    answer = head_of(served, request_)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"more than 2 MB" in answer


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01 not http\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost: localhost\r\nLong: " + b"a" * 400_000,
    ],
    ids=["no http", "length", "header"],
)
def test_garbage_instead_of_http_is_refused(served: LocalServer, request_: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        with suppress(ConnectionError):  # the server has closed it before all was sent
            connection.sendall(request_)
        with suppress(ConnectionError):
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 400 ")
    assert served.ask("GET", "/ping").status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "bins.example.org"},
        {"Host": "127.0.0.1.example.org:8080"},
        {"Origin": "https://example.org"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ],
    ids=["host", "longer host", "origin", "no origin", "other port", "embedded"],
)
def test_pages_of_other_sites_get_nothing(served: LocalServer, headers: dict[str, str]) -> None:
    answered = served.ask("POST", "/invocations", photo(), headers)
    assert answered.status == 403
    assert "count" not in answered.json()
    assert not [name for name in answered.headers if name.startswith("access-control")]


def test_metrics_are_what_prometheus_reads(served: LocalServer) -> None:
    before = served.metrics()
    for seed in range(3):
        served.count(photo(seed))
    served.count(b"no photo")
    after = served.metrics()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown("bincounter_requests_total[('status', '200')]") == 3
    assert grown("bincounter_requests_total[('status', '422')]") == 1
    assert grown("bincounter_request_seconds_count") == 4
    assert grown("bincounter_photos_total") == 3
    assert 1 <= grown("bincounter_batch_size_count") <= 3
    assert grown("bincounter_batch_size_sum") == 3
    assert grown("bincounter_decode_seconds_total") > 0
    assert grown("bincounter_forward_seconds_total") > 0
    assert after["bincounter_ready"] == 1
    assert after["bincounter_queue_length"] == after["bincounter_requests_in_flight"] == 0
    name = served.ask("GET", "/ping").json()["model"]
    assert after[f"bincounter_model_info[('name', '{name}'), ('precision', 'fp32')]"] == 1
    assert after["process_resident_memory_bytes"] > 1e6


def test_explanations_come_one_at_a_time(served: LocalServer) -> None:
    served.ask("POST", "/explanation", photo(3))  # copies the model
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: served.ask("POST", "/explanation", photo(3)), range(8)))
    assert {answer.status for answer in answers} <= {200, 503}
    explained = next(answer.json() for answer in answers if answer.status == 200)
    assert explained["count"] == served.count(photo(3)).json()["count"]
    heat = base64.b64decode(explained["heat"])
    assert len(heat) == explained["width"] * explained["height"]
    assert max(heat) > min(heat)


def test_requests_wait_while_a_killed_worker_is_replaced(served: LocalServer) -> None:
    restarts = served.metrics()["bincounter_worker_restarts_total"]
    dead = served.worker()
    dead.kill()
    dead.wait(10)
    assert served.count(photo()).status == 200
    assert served.worker().pid != dead.pid
    assert served.metrics()["bincounter_worker_restarts_total"] == restarts + 1


def test_a_photo_is_posted_again_when_the_worker_dies_during_the_upload(
    served: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, deaths = client.HTTPConnection.request, [BrokenPipeError(errno.EPIPE, "Broken pipe")]

    def dying(*arguments: Any) -> None:
        if deaths:
            raise deaths.pop()
        send(*arguments)

    server = Server("bincounter", served.port, served.process.pid, served.ask("GET", "/ping").json()["model"])
    monkeypatch.setattr(client.HTTPConnection, "request", dying)
    (tmp_path / "1.jpg").write_bytes(photo(1))
    [answer] = client.post_photos(server, [tmp_path / "1.jpg"], {})
    assert (answer.count is not None, deaths) == (True, [])


def test_scores_are_read_from_the_card_whatever_the_data_set_is_called(tmp_path: Path) -> None:
    dataset = "dataset:\n      split: test\n      type: image\n      name: squares---\n"
    card = CARD.replace("dataset: {name: squares, type: image, split: test}\n", dataset)
    (tmp_path / "README.md").write_text(card)
    (tmp_path / "model.json").write_text("{}")
    assert all(score.endswith(" on test photos of squares---") for score in read_card(tmp_path)["scores"].values())


def test_workers_are_forked_from_a_template_whose_end_they_survive(served: LocalServer) -> None:
    template, worker = served.template(), served.worker()
    assert template
    assert any("torch" in mapped.path for mapped in template.memory_maps())  # it need not be imported again
    for process in (template, worker):  # Ctrl-C in a terminal is for the supervisor
        blocked = re.search(r"^SigBlk:\s*(\w+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
        assert blocked
        assert int(blocked[1], 16) >> (signal.SIGINT - 1) & 1
    template.kill()
    template.wait(10)
    assert served.count(photo()).status == 200
    while not (after := served.template()):
        time.sleep(0.05)
    assert worker.is_running()
    worker.kill()
    worker.wait(10)
    served.wait_until_ready()
    assert served.worker().ppid() == after.pid


def test_slow_clients_hold_nobody_up(tmp_path: Path) -> None:
    with local_server(unpacked_archive(tmp_path / "archive", timeout_s=3.0, max_queue=1)) as server:
        heads = [
            b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx",
            b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
            b"POST /explanation HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx",
        ]
        with ThreadPoolExecutor(12) as clients:
            slow = [clients.submit(head_of, server, head) for head in 4 * heads]
            while server.metrics()["bincounter_requests_in_flight"] < 8:
                assert not slow[0].done()
            assert server.count(photo()).status == 200
            assert server.ask("POST", "/explanation", photo()).status == 200
            assert all(answer.result().startswith(b"HTTP/1.1 408 ") for answer in slow)


def test_upgrade_is_ignored_and_bad_requests_are_not_logged(served: LocalServer) -> None:
    before = served.log.read_text()
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    assert served.ask("GET", "/ping", headers=headers).status == 200
    assert served.ask("GET", "/socket", headers=headers).status == 404
    assert head_of(served, b"no http\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert served.log.read_text() == before


def test_a_compressed_body_is_counted_and_other_codings_are_refused(served: LocalServer) -> None:
    plain = served.count(photo(3))
    assert served.count(gzip.compress(photo(3)), **{"Content-Encoding": "gzip"}).body == plain.body
    explained = served.ask("POST", "/explanation", zlib.compress(photo(3)), {"Content-Encoding": "deflate"})
    assert explained.json()["count"] == plain.json()["count"]
    refused = served.count(photo(3), **{"Content-Encoding": "br"})
    assert refused.status == 415
    assert "gzip" in refused.json()["error"]


def test_dead_worker_is_replaced_until_the_third_death_in_a_minute(tmp_path: Path) -> None:
    with local_server(unpacked_archive(tmp_path / "archive"), health_check=10) as server:
        stopped = server.worker()
        stopped.suspend()
        with ThreadPoolExecutor(1) as clients:
            waiting = clients.submit(server.count, photo())
            dead = {stopped.pid}
            stopped.wait(30)
            while len(dead) < 3:
                if (worker := server.next_worker()) and worker.pid not in dead:
                    worker.kill()
                    dead.add(worker.pid)
                time.sleep(0.02)
            assert server.process.wait(30) == 1
            assert isinstance(waiting.exception(), OSError | HTTPException)
        assert server.log.read_text().splitlines()[-1] == (
            "Error: The server's worker died 3 times within 60 s; the last was ended by SIGKILL."
        )


@pytest.mark.parametrize(
    ("breaking", "status"), [("raise ValueError('broken')", 500), ("time.sleep(60)", 504)], ids=["broken", "stuck"]
)
def test_a_worker_whose_model_is_broken_or_stuck_is_replaced(tmp_path: Path, breaking: str, status: int) -> None:
    folder = unpacked_archive(tmp_path / "archive", timeout_s=2.0)
    flag = tmp_path / "broken"
    (folder / "code" / "breakable.py").write_text(
        f"""
import pathlib, time
from bincounter.model.backbones import cnn

def breakable(**options):
    model = cnn(**options)
    model.register_forward_pre_hook(check)
    return model

def check(*_):
    if pathlib.Path({str(flag)!r}).exists():
        {breaking}
"""
    )
    about = json.loads((folder / "model.json").read_text())
    about["description"]["model"]["backbone"]["_target_"] = "breakable.breakable"
    (folder / "model.json").write_text(json.dumps(about))
    with local_server(folder) as server:
        broken = server.worker()
        flag.touch()
        assert server.count(photo()).status == status
        flag.unlink()
        broken.wait(10)
        server.wait_until_ready()
        assert server.count(photo()).status == 200
        assert server.metrics()["bincounter_worker_restarts_total"] == 1
        assert "The model no longer answers" in server.log.read_text()


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_a_backbone_is_run_as_it_was_packed_and_by_the_installed_bincounter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    name = f"shelves_{engine}"  # imported once in this process
    module = tmp_path / f"{name}.py"
    backbone = {"_target_": f"{name}.backbone", "width": 8, "blocks": 3}
    module.write_text("from bincounter.model.backbones import cnn as backbone")
    with monkeypatch.context() as packing:
        packing.syspath_prepend(tmp_path)
        made = package(
            checkpoint_alone(tmp_path, backbone=backbone),
            PackageSettings(tmp_path / "model.tar.gz", engine=engine),
            trusted=[name],
        )
    module.write_text("raise ValueError('edited since')")
    folder = unpack(made.path, tmp_path / "archive")
    (folder / "code/bincounter/data/photo_decoder.py").write_text("raise ValueError('of an earlier version')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with local_server(folder) as server:
        large = photo(3, "PNG", side=2000)  # decoded in a process of its own
        assert server.count(large).status == server.ask("POST", "/explanation", large).status == 200


def test_on_sigterm_what_was_taken_is_answered(tmp_path: Path) -> None:
    body = photo()
    head = f"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with (
        local_server(unpacked_archive(tmp_path / "archive")) as server,
        ThreadPoolExecutor(1) as clients,
        socket.create_connection(("127.0.0.1", server.port)) as connection,
    ):
        connection.sendall(head + body[:100])
        while server.metrics()["bincounter_requests_in_flight"] < 1:
            pass
        ended = clients.submit(server.end)
        connection.sendall(body[100:])
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        assert ended.result() == 143


def test_nothing_is_left_over_when_the_server_is_killed(tmp_path: Path) -> None:
    with local_server(unpacked_archive(tmp_path / "archive")) as server:
        worker = server.worker()
        server.end(signal.SIGKILL)
        until = time.monotonic() + 10
        while not gone(worker.pid) and time.monotonic() < until:
            time.sleep(0.05)
        assert gone(worker.pid)


def test_a_server_that_cannot_be_listed_ends_with_its_worker(tmp_path: Path) -> None:
    workers: list[psutil.Process] = []

    def list_on_a_full_disk(_: int) -> None:
        [template] = (child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline()))
        workers.extend(template.children())
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ResourceError, match=r"be listed \(no space left on device\): free disk space"):
        serve(unpacked_archive(tmp_path / "archive"), port=0, started=list_on_a_full_disk)
    assert workers
    assert all(gone(worker.pid) for worker in workers)


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"Port {port} is taken.*target\.port"):
            serve(tmp_path, port=port)


def test_a_temporary_folder_with_too_long_a_path_is_named(tmp_path: Path) -> None:
    folder = tmp_path / ("temporary" * 12)
    folder.mkdir()
    code = "from bincounter.serving.local.server import start_template; start_template()"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
    )
    assert ended.stderr.splitlines()[-1].endswith(
        "UserError: workers cannot be started (AF_UNIX path too long): set TMPDIR to a folder with a shorter path"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 3}, "has format 3, and this bincounter reads formats up to 2"),
        ({"counts": [0, 1]}, "is damaged"),
        ({"description": {}}, "is damaged"),
    ],
    ids=["format", "weights", "description"],
)
def test_an_archive_that_cannot_be_loaded_is_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    path = unpacked_archive(tmp_path / "archive") / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=f"^The archive cannot be loaded: .*{reason}"):
        serve(path.parent, port=0)


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        ("import shelves", "ModuleNotFoundError: No module named 'shelves'; package the checkpoint again"),
        ("import hydra", "ModuleNotFoundError: No module named 'hydra'; package the checkpoint again"),
        ("import os; os.abort()", "SIGABRT"),
        (None, "ImportError: the archive lacks code/bincounter; package the checkpoint again"),
    ],
    ids=["missing", "guarded", "crash", "no code"],
)
def test_an_archive_whose_code_cannot_be_loaded_fails_the_comparison(
    tmp_path: Path, spoilt: str | None, reason: str
) -> None:
    code = unpacked_archive(tmp_path / "archive") / "code" / "bincounter"
    if spoilt is None:
        code.rename(code.with_name("elsewhere"))
    else:
        (code / "__init__.py").write_text(spoilt)
    with pytest.raises(BinCounterError, match=re.escape(reason)):
        archive_answers(tmp_path / "archive", {"a photo": photo()})


def test_the_guard_leaves_what_the_archive_requires(tmp_path: Path) -> None:
    folder = unpacked_archive(tmp_path / "archive")
    assert {"hydra", "lightning", "captum"} <= set(refused_packages(folder))
    assert not {"torch", "torchvision", "PIL", "numpy", "jinja2", "bincounter"} & set(refused_packages(folder))
    (folder / "code" / "requirements.txt").write_text("# of a backbone\nhydra_core==1.3.8\n")
    assert not {"hydra", "omegaconf"} & set(refused_packages(folder))
