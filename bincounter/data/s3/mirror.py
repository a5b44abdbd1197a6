"""The local copy of a bucket: what lies here whole, and who may change it.

``<data_dir>/s3/<bucket>/<key>`` holds one object each. What is known of them is kept out of the layouts' sight in
``<data_dir>/s3/.sync`` (a bucket's name cannot start with a dot): a journal that grows by a line per object, a lock,
and the files on their way. All sources in one bucket share these, so that ``s3://b`` and ``s3://b/photos`` agree.

Files are flushed to disk before they are renamed into place; the journal is not. After a power cut it may have lost its
last lines, whose objects are then fetched again, but it never vouches for a file that is not whole.
"""

import errno
import fcntl
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, Self

from bincounter.data.s3.address import refusal
from bincounter.files import replacing

log = logging.getLogger(__name__)

_ON_ITS_WAY = -1  # the size of an object that was asked for and is not known to have arrived


class Stored(NamedTuple):
    """One version of an object.

    Attributes:
        etag: the server's name of the version, without quotes.
        size: bytes.
    """

    etag: str
    size: int


class Mirror:
    """The local files of one bucket; a context manager that holds the bucket's lock.

    ``keep`` may be called from many threads, everything else from one.

    Args:
        data_dir: the folder that holds the copies of all buckets, in ``s3/``.
        bucket: a bucket name that :func:`bincounter.data.s3.parse` accepted.
    """

    def __init__(self, data_dir: Path, bucket: str) -> None:
        state = data_dir / "s3" / ".sync"
        self.folder = data_dir / "s3" / bucket
        self._lock_path = state / f"{bucket}.lock"
        self._journal_path = state / f"{bucket}.jsonl"
        self._staging = state / f"{bucket}.parts"
        self._writing = threading.Lock()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock_path.parent.mkdir(exist_ok=True)
        self._lock = self._lock_path.open("w")
        try:
            self._acquire()
            shutil.rmtree(self._staging, ignore_errors=True)  # what a killed process left half done
            self._staging.mkdir()
            self._known, self._lines = _read_journal(self._journal_path)
            self._journal = os.open(self._journal_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            os.close(self._journal)
            shutil.rmtree(self._staging, ignore_errors=True)
        finally:
            self._lock.close()

    def path(self, key: str) -> Path:
        """The local file of ``key``, which :func:`refusal` let pass."""
        return self.folder / key

    def known(self, key: str) -> Stored | None:
        """The version of ``key`` that lies here whole, or ``None``; a file whose size was changed does not count."""
        stored = self._known.get(key)
        if stored is None or stored.size == _ON_ITS_WAY:
            return None
        try:
            size = self.path(key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        return stored if size == stored.size else None

    def under(self, prefix: str) -> list[str]:
        """Keys that start with ``prefix`` and were asked for before, arrived or not."""
        return [key for key in self._known if key.startswith(prefix)]

    def expect(self, keys: Iterable[str]) -> None:
        """Note keys that are about to be fetched, so that a kill leaves no file that nobody knows of."""
        self._note({key: Stored("", _ON_ITS_WAY) for key in keys})

    @contextmanager
    def incoming(self) -> Iterator[IO[bytes]]:
        """Open a file to fill and hand to :meth:`keep`; it is deleted at the end if nobody did."""
        path = self._staging / str(threading.get_ident())  # a thread fills one file at a time
        try:
            with path.open("wb") as file:
                yield file
        finally:
            path.unlink(missing_ok=True)

    def keep(self, file: IO[bytes], key: str, stored: Stored) -> None:
        """Flush ``file``, which came from :meth:`incoming`, to disk, and make it the local file of ``key``."""
        file.flush()
        os.fsync(file.fileno())
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        Path(file.name).replace(path)
        self._note({key: stored})

    def forget(self, keys: Iterable[str]) -> None:
        """Delete the local files of ``keys``, and the folders which that leaves empty."""
        for key in keys:
            if self._known.pop(key, None) is None:
                continue
            path = self.path(key)
            try:
                path.unlink()
                _remove_empty(path.parent, self.folder)
            except (FileNotFoundError, NotADirectoryError):
                pass  # asked for, but it never arrived, or someone else deleted it
            self._append([json.dumps([key])])

    def compact(self) -> None:
        """Rewrite the journal with one line per object, once it is mostly lines that later ones outdate."""
        if self._lines <= 1.5 * len(self._known):
            return
        with replacing(self._journal_path) as file:
            file.writelines(_line(key, stored) + "\n" for key, stored in self._known.items())

    def _acquire(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("another process is fetching into %s; waiting until it is done", self.folder)
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def _note(self, entries: dict[str, Stored]) -> None:
        self._append([_line(key, stored) for key, stored in entries.items()])
        self._known.update(entries)

    def _append(self, lines: list[str]) -> None:
        data = "".join(f"{line}\n" for line in lines).encode()
        with self._writing:
            if os.write(self._journal, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._journal_path))
            self._lines += len(lines)


def _line(key: str, stored: Stored) -> str:
    return json.dumps([key, *stored])


def _read_journal(path: Path) -> tuple[dict[str, Stored], int]:
    """What the journal knows, and its number of lines; what a damaged line told is fetched again."""
    known: dict[str, Stored] = {}
    lines = 0
    if not path.exists():
        return known, lines
    with path.open("rb+") as file:
        for line in file:
            lines += 1
            try:
                key, *stored = json.loads(line)
                if refusal(key):  # no line of ours: whatever it is, it shall not delete a file elsewhere
                    continue
                known.pop(key, None)
                if stored:
                    known[key] = Stored(str(stored[0]), int(stored[1]))
            except (ValueError, TypeError, AttributeError, IndexError):
                continue
        if lines and not line.endswith(b"\n"):  # torn by a kill: the next line must not be glued to it
            file.write(b"\n")
    return known, lines


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove ``folder`` and its parents below ``root`` as far as they are empty."""
    while folder != root:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
