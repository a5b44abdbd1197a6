"""Atomic writes (write aside, fsync, rename), advisory file locks, full-disk error."""

import errno
import fcntl
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bincounter.errors import ResourceError

log = logging.getLogger(__name__)


# Read once: the only way to read the mask is to set it, which another thread could see.
_UMASK = os.umask(0o022)
os.umask(_UMASK)


@contextmanager
def replacing(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside ``path`` that takes its place when the block ends without an error.

    Args:
        path: the file to create or replace; its folder is created when it is missing.
        mode: ``"w"`` for text (UTF-8, newlines untouched) or ``"wb"`` for bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, since a rename is atomic only inside one file system.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        binary = "b" in mode
        with os.fdopen(descriptor, mode, encoding=None if binary else "utf-8", newline=None if binary else "") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_UMASK)  # mkstemp makes the file private to its owner
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` (UTF-8) to ``path``, whole or not at all."""
    with replacing(path) as file:
        file.write(text)


def link(source: Path, path: Path) -> None:
    """Give the content of a file a second name at once, instead of writing it again; a copy where links are unknown.

    Both names last on their own as long as files are replaced and never written in place.

    Args:
        source: the file.
        path: its other name in the same file system, which is taken from the file that has it now.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        temporary.hardlink_to(source)
    except OSError:
        with source.open("rb") as content, replacing(path, "wb") as copy:
            shutil.copyfileobj(content, copy)
        return
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable: without it a power cut can bring the old name back."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def full_disk_answered(folder: Path) -> Iterator[None]:
    """Turn the system's "no space left" in this block into a sentence that names the folder.

    Raises:
        ResourceError: the disk or the quota is used up.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"no space is left on the disk of {folder}: free some, or name a folder on another disk."
            ) from error
        raise


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a folder's lock in this block; the system frees it when the process ends, however it does.

    Args:
        folder: made when it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("Waiting for another process that is at work in %s", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
