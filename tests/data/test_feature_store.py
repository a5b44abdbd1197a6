import logging
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bincounter.data.feature_store import FeatureStore

ROWS, SIZE = 12, 5


def opened(cache: Path, *, dtype: torch.dtype = torch.float32, **identity: object) -> FeatureStore:
    return FeatureStore(cache, {"weights": "a", **identity}, rows=ROWS, size=SIZE, dtype=dtype)


def features(rows: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.from_numpy(rows)[:, None] * 10 + torch.arange(SIZE)).to(dtype)


class Computer:
    """Features in blocks of two; it remembers which rows it was asked for."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.asked: list[int] = []

    def __call__(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        self.asked += rows.tolist()
        for start in range(0, len(rows), 2):
            block = rows[start : start + 2]
            yield block, features(block, self.dtype)


def asked(store: FeatureStore, *rows: int) -> list[int]:
    """Fill rows and read them; returns those that had to be computed."""
    computer, wanted = Computer(), np.array(rows)
    assert store.fill(wanted, computer)
    assert torch.equal(store.batch(wanted), features(wanted))
    return computer.asked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_kept_bit_for_bit(tmp_path, dtype):
    rows = np.array([7, 0, 3])
    assert opened(tmp_path, dtype=dtype).fill(rows, Computer(dtype))
    again = opened(tmp_path, dtype=dtype)
    assert again.fill(rows, Computer(dtype))
    batch = again.batch(rows)
    assert batch.dtype == dtype
    assert torch.equal(batch, features(rows, dtype))
    batch.zero_()  # it belongs to the caller
    assert torch.equal(again.batch(rows), features(rows, dtype))


def test_only_rows_that_are_not_there_are_computed(tmp_path):
    assert asked(opened(tmp_path), 3, 4, 5) == [3, 4, 5]
    store = opened(tmp_path)
    assert not store.holds(np.array([3]))  # until it was looked at
    assert asked(store, 2, 3, 4) == [2]
    assert asked(store, 5, 6) == [6]
    assert store.holds(np.array([2, 3, 4, 5, 6]))
    assert not store.holds(np.array([2, 7]))
    with pytest.raises(ValueError, match="not been filled"):
        store.batch(np.array([7]))


@pytest.mark.parametrize("identity", [{"weights": "b"}, {"image_size": 32}])
def test_another_identity_is_another_store(tmp_path, identity):
    assert asked(opened(tmp_path), 1) == [1]
    assert asked(opened(tmp_path, **identity), 1) == [1]
    assert asked(opened(tmp_path), 1) == []


@pytest.mark.parametrize("file", ["features", "checks"])
def test_an_edited_row_is_computed_again_and_said(tmp_path, caplog, file):
    store = opened(tmp_path)
    asked(store, 0, 1, 2)
    with (store.folder / file).open("r+b") as edited:
        edited.seek((SIZE * 4 if file == "features" else 4) + 1)
        edited.write(b"\x55")
    assert asked(opened(tmp_path), 0, 1, 2) == [1]
    assert "1 of the features in" in caplog.text
    assert asked(opened(tmp_path), 0, 1, 2) == []


def test_a_row_does_not_count_in_another_place(tmp_path):
    store = opened(tmp_path)
    asked(store, 0, 1, 2)
    for file, width in (("features", SIZE * 4), ("checks", 4)):
        content = (store.folder / file).read_bytes()
        swapped = content[width : 2 * width] + content[:width] + content[2 * width :]
        (store.folder / file).write_bytes(swapped)
    assert asked(opened(tmp_path), 0, 1, 2) == [0, 1]


@pytest.mark.parametrize("damage", ["cut", "longer", "gone", "header", "no header", "foreign"])
def test_files_that_do_not_fit_are_made_anew(tmp_path, caplog, damage):
    store = opened(tmp_path / "a")
    asked(store, 0, 1, 2)
    file = store.folder / "features"
    if damage == "cut":
        os.truncate(file, SIZE * 4 * 2)
    elif damage == "longer":
        os.truncate(file, SIZE * 4 * ROWS + 1)
    elif damage == "gone":
        file.unlink()
    elif damage == "header":
        header = store.folder / "header.json"
        header.write_text(header.read_text().replace("12", "13"))
    elif damage == "no header":
        (store.folder / "header.json").unlink()
    else:
        other = opened(tmp_path / "b", weights="b")
        asked(other, 0, 1, 2)
        shutil.rmtree(store.folder)
        shutil.copytree(other.folder, store.folder)
    assert asked(opened(tmp_path / "a"), 0, 1, 2) == [0, 1, 2]
    # A store without a header was killed while it was created, which needs no warning.
    assert ("The features in" in caplog.text) == (damage != "no header")


def test_rows_brought_from_a_foreign_store_do_not_count(tmp_path):
    """Even under the right header."""
    ours, theirs = opened(tmp_path), opened(tmp_path, weights="b")
    asked(ours, 0, 1)
    asked(theirs, 0, 1, 2)
    for name in ("features", "checks"):
        shutil.copy(theirs.folder / name, ours.folder / name)
    assert asked(opened(tmp_path), 0, 1, 2) == [0, 1, 2]


def test_a_store_that_was_made_anew_elsewhere_is_noticed(tmp_path):
    store = opened(tmp_path)
    asked(store, 0, 1)
    opened(tmp_path).clear()
    assert asked(store, 2) == [0, 1, 2]
    assert asked(store, 0, 1) == []


def _killed_after_two_blocks(cache: Path) -> None:
    def compute(rows: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        for number, block in enumerate(Computer()(rows)):
            if number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield block

    opened(cache).fill(np.arange(ROWS), compute)


def test_a_killed_build_goes_on(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_killed_after_two_blocks, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert asked(opened(tmp_path), *range(ROWS)) == list(range(4, ROWS))


def _fill(cache: Path, log: Path) -> None:
    def compute(rows: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        for rows_, block in Computer()(rows):
            time.sleep(0.02)
            with log.open("a") as file:
                file.write("".join(f"{row}\n" for row in rows_))
            yield rows_, block

    store = opened(cache)
    assert store.fill(np.arange(ROWS), compute)
    assert torch.equal(store.batch(np.arange(ROWS)), features(np.arange(ROWS)))


def test_processes_that_build_at_once_share_the_work(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fill, args=(tmp_path, tmp_path / "log")) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(ROWS))


def test_a_disk_without_room_is_said_once(tmp_path, caplog, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with caplog.at_level(logging.WARNING):
        assert not opened(tmp_path).fill(np.arange(ROWS), Computer())
    assert "has no room for" in caplog.text
    assert len(caplog.records) == 1
