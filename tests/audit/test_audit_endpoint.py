"""``bincounter audit --endpoint``: photos counted by a server of this machine."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from commands import Run, Start
from served_runs import checkpoint_alone

from bincounter.errors import ResourceError
from bincounter.serving.local import client
from bincounter.serving.local.running_servers import Server


def test_a_server_of_this_machine_counts_as_its_checkpoint(
    run: Run, start: Start, served_run: Path, tmp_path: Path
) -> None:
    photos = served_run.parents[1] / "bins" / "2"
    rows = [f"A-{n},{photo.name},{n % 4}" for n, photo in enumerate(sorted(photos.iterdir()))][:12]
    stock, data = tmp_path / "stock.csv", tmp_path / "data"
    stock.write_text("\n".join(["bin,photo,expected", *rows, "B,nowhere.png,1"]))
    audit = ["-m", "bincounter", "audit", str(photos), f"--record={stock}", f"--data-dir={data}"]
    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    run(*audit, f"--ckpt-path={served_run}", f"--output={here}")
    given = (f"ckpt_path={served_run}", "parity.photos=1", "target.port=0", "name=shelf", f"paths.data_dir={data}")
    process = start("deploy.py", *given)
    try:
        process.told(r"http://127\.0\.0\.1:(\d+)/invocations")
        run(*audit, f"--ckpt-path={served_run}", "--endpoint=shelf", f"--output={there}")
        other = checkpoint_alone(tmp_path)  # which answers the same counts
        refused = run(*audit, f"--ckpt-path={other}", "--endpoint=shelf", f"--output={tmp_path / 'a.csv'}", code=2)
        assert f"which is another model than {other}: name the checkpoint that it serves" in refused.stderr
    finally:
        process.kill()
        process.wait()
    tables = []
    for path in (here, there):
        with path.open(newline="") as file:
            tables.append(list(csv.DictReader(file)))
    by_bin = {row["bin"]: row for row in tables[1]}
    assert len(by_bin) >= 13
    for row in tables[0]:
        if row["record_wrong"]:
            assert float(by_bin[row["bin"]]["record_wrong"]) == pytest.approx(float(row["record_wrong"]), rel=0.01)
    assert "<dt>endpoint</dt><dd>shelf</dd>" in there.with_suffix(".html").read_text()


@contextmanager
def answering(statuses: list[int]) -> Iterator[Server]:
    """A server that answers with these statuses."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status = statuses.pop(0)
            counted = {"model": "m", "count": 1, "probabilities": {"0": 0.2, "1": 0.8}}
            answer = counted if status == 200 else {"error": str(status)}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield Server("shelf", http.server_port, 1, "m")
        http.shutdown()


def test_trouble_of_the_moment_is_tried_again_and_is_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
    photos = [tmp_path / "1.jpg", tmp_path / "2.jpg", tmp_path / "3.jpg", tmp_path / "gone.jpg"]
    for photo in photos[:3]:
        photo.write_bytes(b"photo")
    statuses = [500, 504, 503, 200, *[504] * 5, 422]
    with answering(statuses) as server:
        answers = list(client.post_photos(server, photos, {}))
        assert [(answer.count, answer.error, answer.passing) for answer in answers] == [
            (1, "", False),
            (None, "504", True),
            (None, "422", False),
            (None, "cannot be read (no such file or directory)", True),
        ]
        statuses += [503] * 5
        with pytest.raises(ResourceError, match="is busy: retry later"):
            list(client.post_photos(server, photos[:1], {}))
