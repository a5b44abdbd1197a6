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
"""Suffixes of photo files, in lower case; any case is read."""

LARGEST_COUNT = 999_999
"""More items than any bin holds: a larger label is a mistake."""

COUNT_NAME = re.compile(r"[0-9]{1,6}")
"""Names of folders that are counts, up to :data:`LARGEST_COUNT`."""

CACHE_TAG = "CACHEDIR.TAG"
"""File that marks a folder as a cache (https://bford.info/cachedir): such folders below the root are skipped."""

_DEEPEST = 32  # nested folders; bounds the recursion


class UnusableInput(Exception):
    """An input is rejected; the message is the reason, as a short clause.

    Args:
        reason: the message.
        passing: see :class:`bincounter.data.records.RejectedInput`.
    """

    def __init__(self, reason: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


@dataclass(frozen=True, slots=True)
class InputFile:
    """One input of a layout.

    Attributes:
        name: path relative to the root, with ``/``; a folder's name ends in ``/``.
        problem: reason why it cannot be opened, such as ``dangling link``; ``None`` for a regular file.
        size: in bytes; 0 if it has a problem.
        modified: time of the last change in nanoseconds; 0 if it has a problem.
    """

    name: str
    problem: str | None = None
    size: int = 0
    modified: int = 0


class Layout(Protocol):
    """Arrangement of a data source on disk. Its ``repr`` must hold all its settings: it is part of the cache key.

    To add a layout, write these two methods and set ``data.layout._target_`` to the class.
    """

    def walk(self, root: Path) -> Iterator[InputFile]:
        """Yield every file whose change could change the listing or a photo, without opening any."""

    def list(self, root: Path) -> Listing:
        """List the photos with their labels, without opening any.

        Raises:
            DataError: the root does not have this layout.
        """


@runtime_checkable
class IndexedLayout(Protocol):
    """Layout that supplies the manifest from its own index, so that a scan opens no photo."""

    def manifest(self, root: Path) -> Manifest:
        """Return the manifest of the photos.

        Raises:
            DataError: the root does not have this layout, or is corrupt.
        """


def walk(root: Path, folder: str = "") -> Iterator[InputFile]:
    """Find every file under ``root/folder``, sorted by name within each folder.

    Hidden files and folders (``.DS_Store``) and tagged caches are skipped. Inputs that cannot be read as files are
    yielded with their problem: dangling links, pipes, empty or unreadable folders, links to a folder
    that contains them.

    Args:
        root: folder that names are relative to.
        folder: the part to walk, relative to the root; empty for all of it.
    """
    yield from _walk(root / folder, f"{folder}/" if folder else "", ())


def stat_file(path: Path) -> InputFile:
    """Return one file outside the root, such as an id list; its name is the path as given."""
    try:
        status = path.stat()
    except OSError as error:
        return _problem(str(path), _clause(error))
    return InputFile(str(path), None, status.st_size, status.st_mtime_ns)


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[InputFile]:
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


def _enter(entry: os.DirEntry[str], name: str, above: tuple[tuple[int, int], ...]) -> Iterator[InputFile]:
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
        yield InputFile(name, None, status.st_size, status.st_mtime_ns)


def _problem(name: str, problem: str) -> InputFile:
    return InputFile(_printable(name), problem)


def _printable(name: str) -> str:
    """Escape the bytes of a name that are not UTF-8, which no text file could hold."""
    return name.encode("utf-8", "backslashreplace").decode()


def _clause(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
