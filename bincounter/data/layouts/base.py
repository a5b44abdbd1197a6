"""The ``Layout`` protocol and the walk over inputs."""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Protocol, runtime_checkable

from bincounter.data.records import Listing, Manifest

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
"""Endings of photo files, in lower case; any case is read."""

LARGEST_COUNT = 999_999
"""More items than any bin holds: a larger label is a mistake."""

COUNT_NAME = re.compile(r"[0-9]{1,6}")
"""Names of folders that are counts, up to :data:`LARGEST_COUNT`."""

CACHE_TAG = "CACHEDIR.TAG"
"""File that marks a folder as a cache (https://bford.info/cachedir): such folders below the root are passed over."""

_DEEPEST = 32  # folders inside each other: more is no data set, and recursion has to end somewhere


class Refused(Exception):
    """An input is not used; the message is the reason, as a short clause."""


@dataclass(frozen=True, slots=True)
class Found:
    """One input of a layout.

    Attributes:
        name: path relative to the root, with ``/``; a folder's name ends in ``/``.
        problem: why it cannot be opened, such as ``dangling link``; ``None`` for a regular file.
        size: in bytes, 0 when there is a problem.
        modified: time of the last change in nanoseconds, 0 when there is a problem.
    """

    name: str
    problem: str | None = None
    size: int = 0
    modified: int = 0


class Layout(Protocol):
    """How a data source lies on disk; its ``repr`` holds all its settings, since scans are kept under it.

    To bring another one, write these two methods and name the class as ``data.layout._target_``.
    """

    def walk(self, root: Path) -> Iterator[Found]:
        """Go through every file whose change could change the listing or a photo, opening none."""

    def list(self, root: Path) -> Listing:
        """List the photos with their labels, opening none of them.

        Raises:
            DataError: the root holds nothing of this layout.
        """


@runtime_checkable
class KnownLayout(Protocol):
    """A layout that knows of each photo what reading it would tell, so that a scan opens none."""

    def manifest(self, root: Path) -> Manifest:
        """Tell what is known of the photos.

        Raises:
            DataError: the root holds nothing of this layout, or is damaged.
        """


def walk(root: Path, folder: str = "") -> Iterator[Found]:
    """Find every file under ``root/folder``, sorted by name within each folder.

    Hidden files and folders (``.DS_Store``) and tagged caches are passed over. What cannot be read as a file
    comes with its problem: dangling links, pipes, empty or unreadable folders, links to a folder that contains them.

    Args:
        root: where names start.
        folder: the part to walk, relative to the root; all of it when empty.
    """
    yield from _walk(root / folder, f"{folder}/" if folder else "", ())


def look_at(path: Path) -> Found:
    """Find one file outside the root, such as an id list; its name is the path as given."""
    try:
        status = path.stat()
    except OSError as error:
        return _problem(str(path), _clause(error))
    return Found(str(path), None, status.st_size, status.st_mtime_ns)


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[Found]:
    try:
        status = folder.stat()
        with os.scandir(folder) as listed:
            entries = sorted((entry for entry in listed if not entry.name.startswith(".")), key=attrgetter("name"))
    except OSError as error:
        yield _problem(prefix, f"folder that cannot be read ({_clause(error)})")
        return
    identity = (status.st_dev, status.st_ino)
    if above and any(entry.name == CACHE_TAG for entry in entries):
        return
    if identity in above:
        yield _problem(prefix, "link to a folder that contains it")
    elif len(above) == _DEEPEST:
        yield _problem(prefix, f"nested deeper than {_DEEPEST} folders")
    elif not entries:
        yield _problem(prefix, "empty folder")
    else:
        for entry in entries:
            yield from _enter(entry, prefix + entry.name, (*above, identity))


def _enter(entry: os.DirEntry[str], name: str, above: tuple[tuple[int, int], ...]) -> Iterator[Found]:
    try:
        status = entry.stat()
    except OSError as error:
        yield _problem(name, "dangling link" if entry.is_symlink() else _clause(error))
        return
    if stat.S_ISDIR(status.st_mode):
        yield from _walk(Path(entry.path), f"{name}/", above)
    elif not stat.S_ISREG(status.st_mode):
        yield _problem(name, "not a regular file")
    elif name != _printable(name):
        yield _problem(name, "file name that is not UTF-8")
    else:
        yield Found(name, None, status.st_size, status.st_mtime_ns)


def _problem(name: str, problem: str) -> Found:
    return Found(_printable(name), problem)


def _printable(name: str) -> str:
    """Escape the bytes of a name that are no UTF-8, which no text file could hold."""
    return name.encode("utf-8", "backslashreplace").decode()


def _clause(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
