"""What is to be sent and what is there already, in a temporary SQLite file: so that memory stays flat."""

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from bincounter.data.s3.address import refusal
from bincounter.data.s3.objects import Listed
from bincounter.errors import DataError

LARGEST = 5 * 1024**4
"""Bytes of the largest object."""

_LONGEST_KEY = 1024  # bytes


class Parcel(NamedTuple):
    """One file to send.

    Attributes:
        path: the file.
        key: the object it becomes.
        size: bytes of the file.
        modified: nanoseconds, the time of the file's last change.
        etag: of the object that is there, ``None`` where there is none of the file's size.
    """

    path: Path
    key: str
    size: int
    modified: int
    etag: str | None


class SendingPlan:
    """Files, the objects they become, and the objects that are there.

    Args:
        bucket: the name of the bucket, for messages.
        prefix: of all keys, empty or ending in a slash.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket, self._prefix = bucket, prefix
        self._rows = sqlite3.connect("", check_same_thread=False)  # without a name: a file that vanishes when closed
        self._rows.execute("PRAGMA cache_size = -4000")  # kB
        self._rows.execute(
            "CREATE TABLE files (key TEXT UNIQUE, path TEXT, size INTEGER, modified INTEGER, last INTEGER)"
        )
        self._rows.execute("CREATE TABLE there (key TEXT PRIMARY KEY, etag TEXT, size INTEGER) WITHOUT ROWID")

    def close(self) -> None:
        """Forget it all."""
        self._rows.close()

    def add_files(self, files: Iterable[tuple[Path, str]], *, last: bool = False) -> None:
        """Plan to send files.

        Args:
            files: each with its name below the prefix; may be lazy and of any length.
            last: once all others have arrived.

        Raises:
            DataError: a file cannot be read, is too large or has a name that no object can have.
        """
        with self._rows:
            for path, name in files:
                status = self._checked(path, self._prefix + name)
                try:
                    self._rows.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?)", (*status, last))
                except sqlite3.IntegrityError as error:
                    raise DataError(f"two files would become {self._address}{name}: rename one of them") from error

    def add_there(self, page: Iterable[Listed]) -> None:
        """Note objects of a listing."""
        with self._rows:
            self._rows.executemany("INSERT OR REPLACE INTO there VALUES (?, ?, ?)", page)

    def forget_files(self) -> None:
        """Drop the files, which have been sent."""
        with self._rows:
            self._rows.execute("DELETE FROM files")

    def totals(self) -> tuple[int, int]:
        """How many files there are, and how many bytes."""
        objects, size = self._rows.execute("SELECT count(*), coalesce(sum(size), 0) FROM files").fetchone()
        return objects, size

    def size_there(self, key: str) -> int | None:
        """The bytes of an object that is there, or ``None``."""
        row = self._rows.execute("SELECT size FROM there WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def others(self) -> Iterator[str]:
        """Names below the prefix of the objects that no file becomes."""
        query = "SELECT key FROM there WHERE key NOT IN (SELECT key FROM files) ORDER BY key"
        return (key.removeprefix(self._prefix) for (key,) in self._rows.execute(query))

    def parcels(self, *, last: bool) -> Iterator[Parcel]:
        """The files in the order in which they were added, apart from those of the other kind."""
        query = (
            "SELECT path, key, files.size, modified, etag FROM files LEFT JOIN there USING (key, size) "
            "WHERE last = ? ORDER BY files.rowid"
        )
        for path, *rest in self._rows.execute(query, (last,)):
            yield Parcel(Path(path), *rest)

    def _checked(self, path: Path, key: str) -> tuple[str, str, int, int]:
        try:
            status = path.stat()
            reason = _refusal(key, status.st_size)
        except OSError as error:
            raise unreadable(path, error) from error
        if reason:
            raise DataError(f"{path} cannot become an object of {self._address}: it {reason}")
        return key, str(path), status.st_size, status.st_mtime_ns

    @property
    def _address(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}"


def unreadable(path: Path, error: OSError) -> DataError:
    """The sentence for a file that cannot be read."""
    why = (error.strerror or type(error).__name__).lower()
    return DataError(f"{path} cannot be read ({why}): make it readable, or move it out of the folder")


def _refusal(key: str, size: int) -> str | None:
    """Why a file cannot become the object ``key``, or ``None`` when it can."""
    reason = refusal(key)
    if reason:
        return f"{reason}, rename it"
    if size > LARGEST:
        return "is larger than the 5 TB that S3 takes, divide it"
    try:
        length = len(key.encode())
    except UnicodeEncodeError:
        return "has a name that is not UTF-8, rename it"
    if length > _LONGEST_KEY:
        return f"needs a key of {length} bytes and S3 takes {_LONGEST_KEY}, name a shorter folder or file"
    return None
