"""Fetching from ``s3://`` in processes that are killed, interrupted, two at a time, or without room."""

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import REPOSITORY, environment
from s3_bins import assert_nothing_half_done, bins, files, inodes, put
from s3_faults import meanwhile, stalled
from s3_proxy import FaultyProxy
from s3_server import S3Server
from warm_python import WarmPython

from bincounter.data.s3 import credentials
from bincounter.data.s3.sync import fetch
from bincounter.errors import ResourceError

FETCH = """
import logging, sys
from pathlib import Path
from bincounter.data.s3 import sync
sync._EVERY = 0.02  # seconds: a kill meets files being put into place, too
logging.basicConfig()
sync.fetch(sys.argv[1], Path(sys.argv[2]))
"""

IMPATIENT_TRAIN = """
import runpy, sys
from bincounter.data.s3 import credentials
credentials.READ_TIMEOUT = 1  # seconds of silence after which Ctrl-C ends
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(data_dir: Path, source: str = "s3://shop/bins", first: str = "") -> subprocess.Popen[str]:
    """Fetch in a process of its own, which runs some code first."""
    return subprocess.Popen(
        [sys.executable, "-c", f"{first}\n{FETCH}", source, str(data_dir)], stderr=subprocess.PIPE, text=True
    )


def noted(data_dir: Path) -> list[str]:
    """Names of objects that a later run need not fetch."""
    with sqlite3.connect(data_dir / "s3/.sync/shop.sqlite") as rows:
        return [key.removeprefix("bins/") for (key,) in rows.execute("SELECT key FROM objects WHERE size >= 0")]


@pytest.mark.long
def test_a_fetch_that_is_killed_at_any_point_goes_on_from_what_it_has(s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    objects = bins(200)
    put(s3_proxy.server, objects)
    kept: dict[str, int] = {}
    for after in random.Random(3).sample(range(200), 4):
        running: list[subprocess.Popen[str]] = []

        def kill(it: list[subprocess.Popen[str]] = running) -> None:
            it[0].kill()

        s3_proxy.spoil("GET", meanwhile(kill), times=1, after=after)
        running.append(start(tmp_path))
        running[0].communicate(timeout=300)
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
    put(s3_proxy.server, objects)
    running: list[subprocess.Popen[str]] = []

    def start_another() -> None:
        running.append(start(tmp_path))
        stderr = running[1].stderr
        assert stderr and "another process is fetching" in stderr.readline()
        if first_is_killed:
            running[0].kill()

    s3_proxy.spoil(r"GET .*\.jpg", meanwhile(start_another), times=1, after=100)
    running.append(start(tmp_path))
    output = "".join(running[each].communicate(timeout=300)[1] for each in range(2))  # the second starts meanwhile
    assert [process.returncode for process in running] == [-signal.SIGKILL if first_is_killed else 0, 0], output
    assert files(tmp_path) == objects
    assert first_is_killed or s3_proxy.objects_sent() == len(objects)
    assert_nothing_half_done(tmp_path)


def test_an_interrupted_train_ends_soon_and_keeps_what_has_arrived(
    python: WarmPython, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    objects = bins(300)
    put(s3_proxy.server, objects)
    s3_proxy.spoil(r"GET .*\.jpg", meanwhile(lambda: os.kill(train.pid, signal.SIGINT)), times=1, after=200)
    s3_proxy.spoil(r"GET .*\.jpg", stalled(600), after=200)
    paths = [f"paths.{name}_dir={tmp_path / name}" for name in ("data", "cache", "log")]
    command = [
        "-c",
        IMPATIENT_TRAIN,
        str(REPOSITORY / "train.py"),
        "data=s3",
        "data.source=s3://shop/bins",
        *paths,
    ]
    train = python.start(command, REPOSITORY, environment())
    output = train.communicate(timeout=300)[1]
    assert train.returncode == 1 and "Traceback" not in output
    assert output.strip().splitlines()[-1] == "Error: Interrupted."
    here = files(tmp_path / "data")
    assert here.items() <= objects.items() and len(here) >= 200 - 64
    assert_nothing_half_done(tmp_path / "data")


def test_a_notebook_has_a_loop_of_its_own(
    s3_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "READ_TIMEOUT", 1)
    put(s3_proxy.server, bins(100))

    async def cell() -> None:
        fetch("s3://shop/bins", tmp_path)

    asyncio.run(cell())
    assert files(tmp_path) == bins(100)
    put(s3_proxy.server, bins(100, size=1999))
    s3_proxy.spoil(r"GET .*\.jpg", meanwhile(lambda: os.kill(os.getpid(), signal.SIGINT)), times=1, after=50)
    s3_proxy.spoil(r"GET .*\.jpg", stalled(600), after=50)
    loop = asyncio.new_event_loop()  # as Jupyter's, it leaves Ctrl-C to Python
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(cell())
    loop.close()
    assert 0 < sum(len(body) == 1999 for body in files(tmp_path).values()) < 100
    assert_nothing_half_done(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False).returncode:
        pytest.skip("DISKS ARE NOT TESTED WHEN FULL OR READ-ONLY: mounting one takes root")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("full", ["of photos", "but for empty objects"])
def test_a_full_disk_is_one_sentence_and_keeps_what_is_whole(s3: S3Server, small_disk: Path, full: str) -> None:
    objects = bins(300)  # whose sizes, unlike their blocks, add up to less than there is
    if full == "but for empty objects":
        objects = bins(300, size=0)
        (small_disk / "others").write_bytes(bytes((1 << 20) - (28 << 10)))  # for the catalogue, which grows beyond that
    put(s3, objects)
    with pytest.raises(ResourceError, match=r"make room for it, or set paths\.data_dir") as caught:
        fetch("s3://shop/bins", small_disk)
    assert "No space left" in str(caught.value) or "disk is full" in str(caught.value)
    here = files(small_disk)
    assert here.items() <= objects.items()
    assert_nothing_half_done(small_disk)
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    fetch("s3://shop/bins", small_disk)
    assert files(small_disk) == objects


def test_a_file_may_be_too_large_for_its_file_system(s3: S3Server, tmp_path: Path) -> None:
    put(s3, {"a.jpg": b"small", "zz.jpg": bytes(3_000_000)})
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))"
    output = start(tmp_path, first=limit).communicate(timeout=300)[1]
    assert "ResourceError" in output and "set paths.data_dir" in output
    assert files(tmp_path).keys() <= {"a.jpg"}
    fetch("s3://shop/bins", tmp_path)
    assert files(tmp_path)["zz.jpg"] == bytes(3_000_000)


def test_a_folder_that_cannot_be_written_is_one_sentence(s3: S3Server, small_disk: Path) -> None:
    put(s3, bins(3))
    fetch("s3://shop/bins", small_disk)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for data_dir in (small_disk, small_disk / "new"):
        with pytest.raises(ResourceError, match=r"cannot be written .Read-only file system.: .* set paths\.data_dir"):
            fetch("s3://shop/bins", data_dir)


def test_a_catalogue_that_proves_damaged_is_made_anew(s3: S3Server, tmp_path: Path) -> None:
    objects = bins(500, size=1)
    put(s3, objects)
    fetch("s3://shop/bins", tmp_path)
    catalogue = tmp_path / "s3/.sync/shop.sqlite"
    catalogue.write_bytes(catalogue.read_bytes()[:-4096] + b"\xff" * 4096)  # the last page of several
    with pytest.raises(ResourceError, match="is damaged and was deleted: run the same command again"):
        fetch("s3://shop/bins", tmp_path)
    fetch("s3://shop/bins", tmp_path)
    assert files(tmp_path) == objects
