"""The ``Layout`` protocol and the walk over inputs."""

import errno
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

from bincounter.data.records import Listing, Manifest
from bincounter.errors import DataError
from bincounter.names import escape_name

log = logging.getLogger(__name__)

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
"""Suffixes of photo files, in lower case; any case is read."""

LARGEST_COUNT = 999_999
"""More items than any bin holds: a larger label is a mistake."""

COUNT_NAME = re.compile(r"[0-9]{1,6}")
"""Names of folders that are counts, up to :data:`LARGEST_COUNT`."""

CACHE_TAG = "CACHEDIR.TAG"
"""File that marks a folder as a cache (https://bford.info/cachedir): such folders below the root are skipped."""

NOT_UTF8 = "file name that is not UTF-8"
"""Problem of a readable file with a name that no data set can hold."""

_DEEPEST = 32  # nested folders; bounds the recursion


class UnusableInput(Exception):
    """Rejection of an input; the message is the reason, as a short clause.

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
        size: in bytes; 0 if it cannot be opened.
        modified: time of the last change in nanoseconds; 0 if it cannot be opened.
        passing: the problem is not in the input, see :class:`bincounter.data.records.RejectedInput`.
    """

    name: str
    problem: str | None = None
    size: int = 0
    modified: int = 0
    passing: bool = False


class Layout(Protocol):
    """Arrangement of a data source on disk. Its ``repr`` must hold all its settings: it is part of the cache key.

    To add a layout, write these two methods and set ``data.layout._target_`` to the class.
    """

    def walk(self, root: Path) -> Iterator[InputFile]:
        """Yield every file that affects the listing or a photo, without opening any."""

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


def walk(root: Path, folder: str = "", passed_over: Counter[str] | None = None) -> Iterator[InputFile]:
    """Yield every file under ``root/folder``, sorted by name within each folder; none is opened.

    Hidden files and folders (``.DS_Store``) and tagged caches are skipped. Links are followed, to each folder once.
    Inputs that cannot be read as files are yielded with their problem: dangling links, pipes, empty or unreadable
    folders, links to a folder that contains them.

    Args:
        root: folder that names are relative to.
        folder: the part to walk, relative to the root; empty for all of it.
        passed_over: incremented by the number of skipped files and folders, by reason.
    """
    yield from _Walk(Counter() if passed_over is None else passed_over).folder(
        root / folder, f"{folder}/" if folder else "", (), linked=False
    )


def is_photo_name(name: str, suffixes: frozenset[str] = PHOTO_SUFFIXES) -> bool:
    """Return True if a relative path with ``/`` has the suffix of a photo and is not hidden."""
    path = PurePosixPath(name)
    return path.suffix.lower() in suffixes and not any(part.startswith(".") for part in path.parts)


def find_photos(folder: Path) -> list[Path]:
    """Find the photos in a folder, whatever its layout; the number of other inputs is logged by reason.

    Raises:
        DataError: there is none.
    """
    passed_over: Counter[str] = Counter()
    photos = []
    for found in walk(folder, passed_over=passed_over):
        if found.problem not in (None, NOT_UTF8):
            passed_over[found.problem or ""] += 1
        elif not is_photo_name(found.name):
            passed_over["not a .jpg, .jpeg, .png or .webp file"] += 1
        else:
            photos.append(folder / found.name)
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in passed_over.most_common())
    if not photos:
        held = f" ({reasons})" if reasons else ""
        raise DataError(f"{escape_name(folder)} has no photos{held}: name a folder of .jpg, .png or .webp files")
    if reasons:
        log.info("%s: passed over %s", escape_name(folder), reasons)
    return photos


def stat_file(path: Path) -> InputFile:
    """Describe one file outside the root, such as an id list; its name is the path as given."""
    try:
        status = path.stat()
    except OSError as error:
        return InputFile(str(path), _clause(error), passing=True)
    return InputFile(str(path), None, status.st_size, status.st_mtime_ns)


class _Walk:
    """State of one walk, which enters a folder through at most one link: links between folders may form cycles."""

    def __init__(self, passed_over: Counter[str]) -> None:
        self._passed_over = passed_over
        self._linked: set[tuple[int, int]] = set()

    def folder(
        self, folder: Path, prefix: str, above: tuple[tuple[int, int], ...], *, linked: bool
    ) -> Iterator[InputFile]:
        try:
            status = folder.stat()
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=attrgetter("name"))
        except OSError as error:
            yield InputFile(prefix, f"folder that cannot be read ({_clause(error)})", passing=True)
            return
        shown = [entry for entry in entries if not entry.name.startswith(".")]
        identity = (status.st_dev, status.st_ino)
        if above and any(entry.name == CACHE_TAG for entry in shown):
            self._passed_over["cache folder"] += 1
            return
        if identity in above:
            yield InputFile(prefix, "link to a folder that contains it")
        elif linked and identity in self._linked:
            yield InputFile(prefix, "link to a folder that another link leads to")
        elif len(above) == _DEEPEST:
            yield InputFile(prefix, f"nested deeper than {_DEEPEST} folders")
        else:
            if hidden := len(entries) - len(shown):
                self._passed_over["hidden"] += hidden
            if not shown:
                yield InputFile(prefix, "empty folder")
            if linked:
                self._linked.add(identity)
            for entry in shown:
                yield from self._enter(entry, prefix + entry.name, (*above, identity))

    def _enter(self, entry: os.DirEntry[str], name: str, above: tuple[tuple[int, int], ...]) -> Iterator[InputFile]:
        try:
            status = entry.stat()
        except OSError as error:
            dangling = entry.is_symlink() and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
            yield InputFile(name, "dangling link" if dangling else _clause(error), passing=not dangling)
            return
        if stat.S_ISDIR(status.st_mode):
            yield from self.folder(Path(entry.path), f"{name}/", above, linked=entry.is_symlink())
        elif not stat.S_ISREG(status.st_mode):
            yield InputFile(name, "not a regular file")
        else:
            problem = None if name.isascii() or _is_utf8(name) else NOT_UTF8
            yield InputFile(name, problem, status.st_size, status.st_mtime_ns)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _clause(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
