"""SQLite file of fetched objects, of a listing, and of files to send."""

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bincounter.data.s3.objects import Listed, Stored, UploadItem

# Special values of the size.
_PENDING = -1  # the object was requested and is not known to have arrived
_ABSENT = -2  # it is listed but does not exist: consoles make such markers to show an empty folder

_VERSION = 1
_CHUNK = 1000  # rows
_AFTER_SLASH = chr(ord("/") + 1)
_LAST = chr(0x10FFFF)


def is_corrupt(error: BaseException | None) -> bool:
    """Return True if SQLite reports a corrupt file; it has no subclass for this error."""
    return type(error) is sqlite3.DatabaseError


class Catalogue:
    """The objects of one bucket. Its methods may be called from several threads.

    A file that is corrupt or of another version is replaced by an empty one, which costs transfers and nothing else.

    Args:
        path: of the file, created if missing; ``None`` for a temporary one, deleted on close.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._lock = threading.Lock()
        try:
            self._rows = _opened(path)
        except sqlite3.Error as error:
            if path is None or not is_corrupt(error):
                raise
            path.unlink()
            self._rows = _opened(path)

    def close(self) -> None:
        """Close the file."""
        self._rows.close()

    def stored_version(self, key: str) -> Stored | None:
        """Etag and size of a fetched object; its file may have changed since."""
        with self._lock:
            row = self._rows.execute("SELECT etag, size FROM objects WHERE key = ? AND size >= 0", (key,)).fetchone()
        return Stored(*row) if row else None

    def is_recorded(self, key: str) -> bool:
        """Return True if an object was ever requested."""
        return self._number("SELECT count(*) FROM objects WHERE key = ?", key) > 0

    def record(self, objects: Iterable[Listed]) -> None:
        """Record fetched objects, all of them or none."""
        with self._writing() as rows:
            rows.executemany("INSERT OR REPLACE INTO objects VALUES (?, ?, ?)", objects)

    def forget(self, keys: Iterable[str]) -> None:
        """Delete the records of objects without a file."""
        with self._writing() as rows:
            rows.executemany("DELETE FROM objects WHERE key = ?", ((key,) for key in keys))

    def clear_listing(self) -> None:
        """Begin a new listing."""
        with self._writing() as rows:
            rows.execute("DELETE FROM listed")

    def add_listed(self, page: Iterable[Listed]) -> None:
        """Add objects to the listing."""
        with self._writing() as rows:
            rows.executemany("INSERT OR REPLACE INTO listed VALUES (?, ?, ?)", page)

    def drop_listed(self, keys: Iterable[str]) -> None:
        """Delete objects from the listing and from the jobs."""
        with self._writing() as rows:
            for key in keys:
                rows.execute("DELETE FROM listed WHERE key = ?", (key,))
                rows.execute("DELETE FROM jobs WHERE key = ?", (key,))

    def count_listed(self) -> int:
        """Count the objects of the listing."""
        return self._number("SELECT count(*) FROM listed")

    def is_listed(self, key: str) -> bool:
        """Return True if the listing has an object of this name."""
        return self._number("SELECT count(*) FROM listed WHERE key = ?", key) > 0

    def has_listed_below(self, folder: str) -> bool:
        """Return True if the listing has objects in a folder."""
        query = "SELECT count(*) FROM (SELECT 1 FROM listed WHERE key > ? AND key < ? LIMIT 1)"
        return self._number(query, f"{folder}/", f"{folder}{_AFTER_SLASH}") > 0

    def unlisted(self, prefix: str) -> list[str]:
        """Up to 1,000 recorded objects that the listing does not have; none when there are none left."""
        query = "SELECT key FROM objects WHERE key >= ? AND key < ? AND key NOT IN (SELECT key FROM listed) LIMIT ?"
        with self._lock:
            return [key for (key,) in self._rows.execute(query, (prefix, prefix + _LAST, _CHUNK))]

    def boundaries(self, prefix: str, most: int) -> list[str]:
        """Keys that cut the recorded objects into up to ``most`` parts of about one size.

        No part is so small that it would not take a request of its own.
        """
        with self._lock:
            span = (prefix, prefix + _LAST)
            (there,) = self._rows.execute("SELECT count(*) FROM objects WHERE key >= ? AND key < ?", span).fetchone()
            # A part with room for a few new keys ends within its last request, and needs no other to see its end.
            number = min(most, 1 + there // (_CHUNK * 9 // 10))
            query = "SELECT key FROM objects WHERE key >= ? AND key < ? ORDER BY key LIMIT 1 OFFSET ?"
            return [
                self._rows.execute(query, (*span, there * part // number)).fetchone()[0] for part in range(1, number)
            ]

    def mark_missing(self, prefix: str, is_here: Callable[[str, int], bool]) -> None:
        """Mark the objects with files that are missing or of another size.

        Args:
            prefix: of the keys to check.
            is_here: (key, size in bytes) -> True if the file exists in that size.
        """
        for page in self._pages("objects", prefix):
            missing = [item.key for item in page if item.size >= 0 and not is_here(item.key, item.size)]
            if missing:
                with self._writing() as rows:
                    query = f"UPDATE objects SET etag = '', size = {_PENDING} WHERE key = ?"
                    rows.executemany(query, ((key,) for key in missing))

    def plan_jobs(self) -> None:
        """Make a job of each listed object that is new, changed or missing here."""
        with self._writing() as rows:
            rows.execute("DELETE FROM jobs")
            rows.execute(
                "INSERT INTO jobs SELECT key, etag, size FROM listed AS l WHERE NOT EXISTS "
                "(SELECT 1 FROM objects AS o WHERE o.key = l.key AND o.etag = l.etag AND o.size IN (l.size, ?))",
                (_ABSENT,),
            )

    def jobs(self) -> Iterator[list[Listed]]:
        """The objects to fetch, in order of key."""
        return self._pages("jobs")

    def filter_jobs(self, verdict: Callable[[str], bool | None]) -> int:
        """Drop or defer jobs.

        Args:
            verdict: key -> True to keep its job; ``None`` defers it until :meth:`restore_deferred`.

        Returns:
            number of dropped jobs.
        """
        refused = 0
        for page in self.jobs():
            verdicts = [(verdict(item.key), item) for item in page]
            refused += sum(choice is False for choice, _ in verdicts)
            with self._writing() as rows:
                deferred = (item for choice, item in verdicts if choice is None)
                rows.executemany("INSERT INTO deferred VALUES (?, ?, ?)", deferred)
                not_now = ((item.key,) for choice, item in verdicts if not choice)
                rows.executemany("DELETE FROM jobs WHERE key = ?", not_now)
        return refused

    def restore_deferred(self) -> bool:
        """Replace the jobs by the deferred ones; return True if there are any."""
        with self._writing() as rows:
            rows.execute("DELETE FROM jobs")
            rows.execute("INSERT INTO jobs SELECT * FROM deferred")
            rows.execute("DELETE FROM deferred")
        return self._number("SELECT count(*) FROM jobs") > 0

    def jobs_total(self) -> tuple[int, int]:
        """Number of objects to fetch, and their bytes."""
        return self._total("jobs")

    def mark_jobs_pending(self) -> None:
        """Record all jobs before they start, so that a kill leaves no file unrecorded or taken for another version."""
        with self._writing() as rows:
            rows.execute(f"INSERT OR REPLACE INTO objects SELECT key, '', {_PENDING} FROM jobs")

    def mark_pending(self, keys: Iterable[str]) -> None:
        """Record objects that are about to be fetched without a listing."""
        with self._writing() as rows:
            rows.executemany("INSERT OR IGNORE INTO objects VALUES (?, ?, ?)", ((key, "", _PENDING) for key in keys))

    def record_absent(self, keys: Iterable[str]) -> list[str]:
        """Record the markers of empty folders among objects that do not exist, so that they are not requested again.

        Returns:
            those that are not markers.
        """
        others = []
        with self._writing() as rows:
            for key in keys:
                row = rows.execute("SELECT etag FROM listed WHERE key = ? AND size = 0", (key,)).fetchone()
                if row is None:
                    others.append(key)
                else:
                    rows.execute(f"INSERT OR REPLACE INTO objects VALUES (?, ?, {_ABSENT})", (key, *row))
        return others

    def add_files(self, parcels: Iterable[UploadItem], *, last: bool) -> str | None:
        """Plan to send files, all of them or none.

        Args:
            parcels: may be lazy and of any length.
            last: send them once all others have arrived.

        Returns:
            a key that two files have, or ``None``.
        """
        key = None
        try:
            with self._writing() as rows:
                for path, key, size, modified, _ in parcels:
                    rows.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?)", (key, str(path), size, modified, last))
        except sqlite3.IntegrityError:
            return key
        return None

    def files(self, *, last: bool) -> Iterator[UploadItem]:
        """The files to send, or those to send last, in the order in which they were added."""
        query = (
            "SELECT path, key, files.size, modified, etag FROM files LEFT JOIN listed USING (key, size) "
            "WHERE last = ? ORDER BY files.rowid"
        )
        for path, *rest in self._rows.execute(query, (last,)):
            yield UploadItem(Path(path), *rest)

    def files_total(self) -> tuple[int, int]:
        """Number of files to send, and their bytes."""
        return self._total("files")

    def files_of_other_size(self) -> tuple[int, int, str]:
        """Count the files with a listed object, and those of another size than it, and return the key of one of these.

        Files to send last do not count.
        """
        other = "files.size != listed.size"
        query = (
            f"SELECT count(*), coalesce(sum({other}), 0), coalesce(min(CASE WHEN {other} THEN key END), '') "
            "FROM files JOIN listed USING (key) WHERE NOT last"
        )
        with self._lock:
            there, others, key = self._rows.execute(query).fetchone()
        return there, others, key

    def forget_files(self) -> None:
        """Drop the files to send."""
        with self._writing() as rows:
            rows.execute("DELETE FROM files")

    def listed_besides_files(self) -> Iterator[str]:
        """Keys of the listing that no file becomes, in order."""
        query = "SELECT key FROM listed WHERE key NOT IN (SELECT key FROM files) ORDER BY key"
        return (key for (key,) in self._rows.execute(query))

    def listed_size(self, key: str) -> int | None:
        """Bytes of a listed object, ``None`` if it is not listed."""
        with self._lock:
            row = self._rows.execute("SELECT size FROM listed WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def _total(self, table: str) -> tuple[int, int]:
        with self._lock:
            number, size = self._rows.execute(f"SELECT count(*), coalesce(sum(size), 0) FROM {table}").fetchone()
        return number, size

    def _pages(self, table: str, prefix: str = "") -> Iterator[list[Listed]]:
        """Rows of a table that may grow meanwhile, a page at a time."""
        query = f"SELECT key, etag, size FROM {table} WHERE key > ? AND key < ? ORDER BY key LIMIT ?"
        last = prefix
        while True:
            with self._lock:
                found = self._rows.execute(query, (last, prefix + _LAST, _CHUNK)).fetchall()
            if not found:
                return
            yield [Listed(*row) for row in found]
            last = found[-1][0]

    def _number(self, query: str, *values: str) -> int:
        with self._lock:
            number: int = self._rows.execute(query, values).fetchone()[0]
        return number

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._rows:
            yield self._rows


def _opened(path: Path | None) -> sqlite3.Connection:
    rows = sqlite3.connect(path or "", check_same_thread=False)
    try:
        rows.execute("PRAGMA cache_size = -4000")  # kB
        rows.execute("PRAGMA synchronous = NORMAL")
        (version,) = rows.execute("PRAGMA user_version").fetchone()
        if version != _VERSION:
            rows.execute("DROP TABLE IF EXISTS objects")
            rows.execute("CREATE TABLE objects (key TEXT PRIMARY KEY, etag TEXT, size INTEGER) WITHOUT ROWID")
            rows.execute(f"PRAGMA user_version = {_VERSION}")
        for table in ("listed", "jobs", "deferred"):
            rows.execute(f"CREATE TEMP TABLE {table} (key TEXT PRIMARY KEY, etag TEXT, size INTEGER) WITHOUT ROWID")
        rows.execute(
            "CREATE TEMP TABLE files (key TEXT UNIQUE, path TEXT, size INTEGER, modified INTEGER, last INTEGER)"
        )
        rows.execute("SELECT key, etag, size FROM objects LIMIT 1").fetchone()
    except BaseException:
        rows.close()
        raise
    return rows
