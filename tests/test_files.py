"""Atomic writes, links, and file locks between processes."""

import errno
import os
import signal
import stat
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import portalocker
import pytest

from bincounter.errors import ResourceError
from bincounter.files import atomic_write, link, lock

_FORKED = """
import os, sys, time
from bincounter.files import lock

file = open(sys.argv[1], "w")
assert lock(file, inherited=sys.argv[2] == "True")
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("inherited", [True, False])
def test_a_lock_of_another_process_is_seen_and_kept_by_its_forks_if_they_inherit_it(
    tmp_path: Path, inherited: bool
) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", _FORKED, str(path), str(inherited)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder, path.open("a") as file:
        assert holder.stdout
        child = int(holder.stdout.readline())
        try:
            assert not lock(file, wait=0, inherited=inherited)
            holder.kill()
            holder.wait()
            assert lock(file, wait=0, inherited=inherited) != inherited
        finally:
            holder.kill()
            os.kill(child, signal.SIGKILL)
        assert lock(file, wait=30.0, inherited=inherited)


def test_a_shared_lock_admits_shared_ones(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    with path.open() as one, path.open() as two, path.open("r+") as three:
        assert lock(one, wait=0, shared=True)
        assert lock(two, wait=0, shared=True)
        assert not lock(three, wait=0)


@pytest.mark.parametrize("wait", [0, 60.0, float("inf")])
def test_a_file_system_without_locks_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: float
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(portalocker.portalocker, "LOCKER", refuse)
    sentence = r"/lock cannot be locked \(No locks available\): name a folder on a file system that has locks"
    with (tmp_path / "lock").open("w") as file, pytest.raises(ResourceError, match=sentence):
        lock(file, wait=wait)


@pytest.mark.parametrize(("answer", "ends"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_file_system_that_flushes_no_folders_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int, ends: bool
) -> None:
    flush = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(answer, os.strerror(answer))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    with nullcontext() if ends else pytest.raises(OSError), atomic_write(tmp_path / "file", "w") as file:
        file.write("whole")
    assert (tmp_path / "file").read_text() == "whole"


def test_a_second_link_to_the_same_file_leaves_nothing_behind(tmp_path: Path) -> None:
    best, last = tmp_path / "best.ckpt", tmp_path / f"{'x' * 250}.ckpt"
    best.write_text("weights")
    link(best, last)
    link(best, last)
    assert last.samefile(best)
    assert set(tmp_path.iterdir()) == {best, last}


def test_a_file_is_copied_where_links_times_and_modes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    for name in ("link", "utime", "chmod"):
        monkeypatch.setattr(os, name, refuse)
    (tmp_path / "best.ckpt").write_text("weights")
    link(tmp_path / "best.ckpt", tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_text() == "weights" and len(list(tmp_path.iterdir())) == 2
