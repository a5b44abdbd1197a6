"""``bincounter audit --endpoint``: photos counted by a server of this machine."""

import csv
from pathlib import Path

import pytest
from commands import Run, Start


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
