"""Many items in threads: each once, in no more threads than asked for, and an end when one fails."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_bins import bins, files, put
from s3_faults import error, meanwhile, stalled
from s3_proxy import FaultyProxy

from bincounter.data.s3 import credentials
from bincounter.data.s3.sync import fetch
from bincounter.errors import DataError
from bincounter.parallel import for_each


@given(st.lists(st.integers()), st.integers(0, 8))
@settings(deadline=None)
def test_each_item_is_worked_on_once(items: list[int], threads: int) -> None:
    done, taken = list[int](), list[int]()

    def lazily() -> Iterator[int]:
        for item in items:
            assert len(taken) - len(done) <= max(threads, 1)  # taken as they are needed
            taken.append(item)
            yield item

    for_each(lazily(), done.append, threads=threads)
    assert sorted(done) == sorted(items)


def test_those_under_way_end_before_an_error_is_raised() -> None:
    begun, ended, failing = threading.Barrier(4), list[int](), threading.Event()

    def work(item: int) -> None:
        begun.wait(10)
        if item == 0:
            failing.set()
            raise ValueError("broken")
        failing.wait(10)
        ended.append(item)

    with pytest.raises(ValueError, match="broken"):
        for_each(range(1000), work, threads=4)
    assert sorted(ended) == [1, 2, 3]


def test_ctrl_c_while_threads_are_started_ends_those_that_are() -> None:
    done = list[int]()

    def work(item: int) -> None:
        done.append(item)
        if item == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        for_each(itertools.count(), work, threads=64)
    reached = len(done)
    time.sleep(0.2)
    assert len(done) == reached


def test_an_error_of_the_items_is_raised() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        for_each(items(), lambda _: None, threads=3)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a second of silence for a lost connection."""
    monkeypatch.setattr(credentials, "READ_TIMEOUT", 1)


@pytest.mark.usefixtures("impatient")
def test_after_an_error_objects_that_hang_are_not_asked_for_again(s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    put(s3_proxy.server, bins(100))
    s3_proxy.spoil(r"GET .*\.jpg", stalled(600), times=20, after=30)
    s3_proxy.spoil(r"GET .*\.jpg", error(403, "AccessDenied"), after=50)
    with pytest.raises(DataError, match="is denied"):
        fetch("s3://shop/bins", tmp_path)
    kept = files(tmp_path)
    assert len(kept) >= 30 and kept.items() <= bins(100).items()
    s3_proxy.mend()
    fetch("s3://shop/bins", tmp_path)
    assert files(tmp_path) == bins(100)


@pytest.mark.usefixtures("impatient")
def test_ctrl_c_ends_a_listing_in_parts(s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    objects = bins(2000, size=1)
    put(s3_proxy.server, objects)
    fetch("s3://shop/bins", tmp_path)
    s3_proxy.spoil("list-type", meanwhile(lambda: os.kill(os.getpid(), signal.SIGINT)), times=1, after=1)
    s3_proxy.spoil("list-type", stalled(600), after=2)
    with pytest.raises(KeyboardInterrupt):
        fetch("s3://shop/bins", tmp_path)
    s3_proxy.mend()
    fetch("s3://shop/bins", tmp_path)
    assert files(tmp_path) == objects
