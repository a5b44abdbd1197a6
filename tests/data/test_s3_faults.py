"""Fetching from ``s3://`` while the server, the network, the disk or the process itself gives out."""

import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from s3_faults import meanwhile
from s3_proxy import FaultyProxy

from bincounter.data.s3.download import fetch

FETCH = """
import logging, sys
from pathlib import Path
from bincounter.data.s3 import download, transfer
transfer._EVERY = 0.02  # seconds: a kill meets files being put into place, too
logging.basicConfig()
download.fetch(sys.argv[1], Path(sys.argv[2]))
"""


def start(data_dir: Path, source: str = "s3://shop/bins", first: str = "") -> subprocess.Popen[str]:
    """Fetch in a process of its own, which runs some code first."""
    return subprocess.Popen(
        [sys.executable, "-c", first + FETCH, source, str(data_dir)], stderr=subprocess.PIPE, text=True
    )


def bins(number: int, size: int = 2000) -> dict[str, bytes]:
    """Objects below ``bins/``, in several folders."""
    return {f"{each % 7}/{each}.jpg": random.Random(each).randbytes(size) for each in range(number)}


def put(proxy: FaultyProxy, objects: dict[str, bytes]) -> None:
    proxy.server.put("shop", {f"bins/{name}": body for name, body in objects.items()})


def files(data_dir: Path) -> dict[str, bytes]:
    folder = data_dir / "s3" / "shop" / "bins"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def inodes(data_dir: Path) -> dict[str, int]:
    return {name: (data_dir / "s3/shop/bins" / name).stat().st_ino for name in files(data_dir)}


def noted(data_dir: Path) -> list[str]:
    """What a later run need not fetch."""
    with sqlite3.connect(data_dir / "s3/.sync/shop.sqlite") as rows:
        return [key.removeprefix("bins/") for (key,) in rows.execute("SELECT key FROM objects WHERE size >= 0")]


def assert_nothing_half_done(data_dir: Path) -> None:
    assert not (data_dir / "s3/.sync/shop.parts").exists()


def test_a_fetch_that_is_killed_at_any_point_goes_on_from_what_it_has(s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    objects = bins(300)
    put(s3_proxy, objects)
    kept: dict[str, int] = {}
    for after in random.Random(3).sample(range(300), 5):
        running: list[subprocess.Popen[str]] = []

        def kill(it: list[subprocess.Popen[str]] = running) -> None:
            it[0].kill()

        s3_proxy.spoil("GET", meanwhile(kill), times=1, after=after)
        running.append(start(tmp_path))
        running[0].communicate(timeout=60)
        here = files(tmp_path)
        assert here.items() <= objects.items()  # whole, all of them
        known = inodes(tmp_path)
        assert {name: known[name] for name in kept}.items() == kept.items()  # and none of it once more
        if (tmp_path / "s3/.sync/shop.sqlite").exists():
            kept = {name: known[name] for name in noted(tmp_path)}
        s3_proxy.mend()
    gone = sorted(objects)[:5]  # deleted while we were dead: must not stay behind, noted as arrived or not
    for name in gone:
        (s3_proxy.server.root / "shop/bins" / name).unlink()
        del objects[name]
    fetch("s3://shop/bins", tmp_path)
    assert files(tmp_path) == objects
    assert kept.keys() - gone and {name: inodes(tmp_path)[name] for name in kept.keys() - gone}.items() <= kept.items()
    assert_nothing_half_done(tmp_path)


@pytest.mark.parametrize("first_is_killed", [False, True])
def test_two_processes_do_the_work_once(s3_proxy: FaultyProxy, tmp_path: Path, first_is_killed: bool) -> None:
    objects = bins(200)
    put(s3_proxy, objects)
    running: list[subprocess.Popen[str]] = []

    def start_another() -> None:
        running.append(start(tmp_path))
        stderr = running[1].stderr
        assert stderr and "another process is fetching" in stderr.readline()
        if first_is_killed:
            running[0].kill()

    s3_proxy.spoil(r"GET .*\.jpg", meanwhile(start_another), times=1, after=100)
    running.append(start(tmp_path))
    output = "".join(running[each].communicate(timeout=60)[1] for each in range(2))  # the second starts meanwhile
    assert [process.returncode for process in running] == [-signal.SIGKILL if first_is_killed else 0, 0], output
    assert files(tmp_path) == objects
    assert first_is_killed or s3_proxy.objects_sent() == len(objects)
    assert_nothing_half_done(tmp_path)
