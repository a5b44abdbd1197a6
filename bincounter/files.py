"""Checks of destinations, atomic writes (write aside, fsync, rename), advisory file locks, full-disk errors."""

import errno
import json
import logging
import math
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from bincounter.errors import BinCounterError, ResourceError, UserError
from bincounter.hub import download, is_hub
from bincounter.names import UNENCODABLE, TableWriter

log = logging.getLogger(__name__)

Parsed = TypeVar("Parsed")


_HOME = re.compile(r"((?:sqlite|file):/{2,3})?(~.*)", re.DOTALL)


def expand_user(path: str) -> str:
    """Expand the ``~`` or ``~user`` that a path, or the URL of a local file, begins with; other texts are unchanged."""
    found = _HOME.fullmatch(path)
    if found is None:
        return path
    try:
        return f"{found[1] or ''}{Path(found[2]).expanduser()}"
    except RuntimeError:  # there is no such user
        return path


_DESCRIPTOR = re.compile(r"/dev/(stdout|stderr|fd/(\d+))|/proc/self/fd/(\d+)")


def is_stream(path: Path) -> bool:
    """Return True if a path is a stream: a named pipe, a device, a descriptor such as /dev/stdout."""
    with suppress(OSError):
        mode = path.stat().st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or _DESCRIPTOR.fullmatch(str(path)) is not None
    return False


def _open_stream(path: Path, mode: str, **text: str) -> IO:
    found = _DESCRIPTOR.fullmatch(str(path))
    if found is None:
        return path.open(mode, **text)  # type: ignore[call-overload]
    sys.stdout.flush()
    number = {"stdout": 1, "stderr": 2}.get(found[1]) or int(found[2] or found[3])
    return os.fdopen(os.dup(number), mode, **text)  # type: ignore[call-overload]  # opened anew, a file would be emptied


_LONGEST_NAME = 255  # bytes, on every common file system


def check_writable(path: Path, *, folder: bool = False, key: str = "") -> None:
    """Check that a file, or files in a folder, can be written at a path, before work starts; nothing is left there.

    Args:
        path: of the file or the folder, which need not exist.
        folder: the path is a folder, not a file.
        key: the setting or option that names it, for the message.

    Raises:
        UserError: it cannot be written; the message has the reason and the next step.
    """
    what, named = "folder" if folder else "file", f"{key}={path}" if key else str(path)
    try:
        if not folder and is_stream(path) and os.access(path, os.W_OK):
            return
        there = path.absolute() if folder else path.absolute().parent
        with suppress(FileNotFoundError):
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode) != folder or not (folder or stat.S_ISREG(mode)):
                kind = "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "not a regular file"
                raise UserError(f"{named} is {kind}: name a {what}")
        if any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.parts):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        # What its owner may write can still be on a read-only disk, and root may write nearly all.
        tempfile.TemporaryFile(dir=next(each for each in (there, *there.parents) if os.path.lexists(each))).close()
    except OSError as error:
        why = (error.strerror or type(error).__name__).lower()
        raise UserError(f"{named} cannot be created ({why}): name a {what} that you can write to") from error


def checkpoint_file(name: str | Path) -> Path:
    """The checkpoint of a name: a file, the ``best.ckpt`` of a run's folder, or the one of ``hf://owner/name``.

    Raises:
        UserError: the model cannot be had from the hub.
        ResourceError: the hub does not answer.
    """
    if is_hub(name):
        return download(name)
    path = Path(name)
    inside = (path / name for name in ("checkpoints/best.ckpt", "best.ckpt"))
    return next((file for file in inside if file.is_file()), path)


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside ``path`` that replaces it when the block ends without an error.

    Args:
        path: the file to create or replace; its folder is created if missing. A stream (:func:`is_stream`) is written
            to as the block goes.
        mode: ``"w"`` for text (UTF-8, newlines untouched, other bytes in names escaped) or ``"wb"`` for bytes.
    """
    path = Path(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "errors": UNENCODABLE, "newline": ""}
    if is_stream(path):
        with _open_stream(path, mode, **text) as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:  # before the file is made: SIGTERM may come at once
        with temporary.open(mode.replace("w", "x"), **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` atomically."""
    with atomic_write(path) as file:
        file.write(text)


def write_table(path: str | os.PathLike[str], header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table to ``path`` atomically, its cells neutralised for spreadsheets."""
    with atomic_write(path) as file:
        writer = TableWriter(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_json(path: str | os.PathLike[str], content: Any, indent: int | None = 2) -> None:
    """Write :func:`format_json` to ``path`` atomically."""
    write_text(path, format_json(content, indent) + "\n")


def format_json(content: Any, indent: int | None = 2) -> str:
    """Format JSON; numbers that are not finite become ``null``, since JSON has none."""
    return json.dumps(_finite(content), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def read_file(path: Path, parse: Callable[[IO[str]], Parsed], advice: str) -> Parsed | None:
    """Parse a text file (UTF-8) of a run; ``None`` if it is missing.

    Args:
        path: the file.
        parse: turns the open file into a value.
        advice: the end of the sentence on a file that cannot be parsed.

    Raises:
        UserError: the file cannot be read, or is corrupt.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return parse(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (BinCounterError, MemoryError):
        raise
    except OSError as error:  # a folder in its place, no permission
        raise UserError(f"{path} cannot be read ({error.strerror or error}): {advice}") from error
    except Exception as error:  # parsers raise almost anything on a corrupt file
        raise UserError(f"{path} is corrupt ({type(error).__name__}): {advice}") from error


def read_json(path: Path, advice: str) -> dict[str, Any] | None:
    """Read a JSON object; ``None`` if the file is missing.

    Args:
        path: the file.
        advice: see :func:`read_file`.

    Raises:
        UserError: the file cannot be read, or is corrupt.
    """
    return read_file(path, lambda file: check_mapping(json.load(file)), advice)


def check_mapping(value: Any) -> dict[str, Any]:
    """Return a value that was read from JSON or YAML, if it is a mapping.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, dict):
        raise TypeError(f"a {type(value).__name__} instead of a mapping")
    return value


def look_up(mapping: Mapping[str, Any], key: str) -> Any:
    """Return the value of nested mappings by its dotted name; ``None`` if there is none."""
    node: Any = mapping
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def link(source: Path, path: Path) -> None:
    """Hard-link a file atomically; copies it if the file system has no links.

    ``path`` replaces an existing file. The two names are independent as long as files are never written in place.
    """
    place(source, path)
    _sync_folder(path.parent)


def place(source: Path, path: Path) -> None:
    """Do as :func:`link`, and copy the times, too, but leave the folder to be synced with others."""
    temporary = _beside(path)
    try:
        try:
            temporary.hardlink_to(source.resolve())
        except OSError:  # the file system, the device or the owner forbids it
            with source.open("rb") as content, temporary.open("xb") as copy:
                shutil.copyfileobj(content, copy)
                copy.flush()
                os.fsync(copy.fileno())  # before the rename: a power cut must not leave an empty file
            with suppress(OSError):  # some of these file systems keep no times or modes
                shutil.copystat(source, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # a rename onto another link of the same file leaves both


def _beside(path: Path) -> Path:
    """Temporary name beside a file, since a rename is atomic only inside one file system."""
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.part")  # all of its name could be too long


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, without which a power cut can undo it, if the file system can."""
    if sys.platform == "win32":  # which opens no folders
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written, but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # SMB and FUSE flush no folders
            raise
    finally:
        os.close(descriptor)


@contextmanager
def translate_disk_full(folder: Path) -> Iterator[None]:
    """Translate "no space left on device" in this block into a sentence that names the folder.

    Raises:
        ResourceError: the disk or the quota is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"no space is left on the disk of {folder}: free some, or name a folder on another disk."
            ) from error
        raise


# Not filelock: it has no shared locks and none that forked processes inherit, and keeps its lock in a file of its own.
def lock(file: IO, *, wait: float = math.inf, shared: bool = False, inherited: bool = True) -> bool:
    """Take the advisory lock of an open file; the system releases it when the file is closed or the process ends.

    On Windows it is always exclusive and never inherited, and no other process can read the file meanwhile.

    Args:
        file: open for writing, unless the lock is inherited.
        wait: seconds to wait for another holder.
        shared: admit other shared holders.
        inherited: forked processes hold the lock, too, and keep it when this process is killed.

    Returns:
        True if the lock is held now.

    Raises:
        ResourceError: the file cannot be locked at all.
    """
    import portalocker  # here: it reads its version from its metadata, which would delay every command

    windows = sys.platform == "win32"  # shared locks need pywin32 there
    flags = portalocker.LockFlags.SHARED if shared and not windows else portalocker.LockFlags.EXCLUSIVE
    if wait != math.inf:
        flags |= portalocker.LockFlags.NON_BLOCKING
    take = portalocker.lock if inherited or windows else portalocker.portalocker.LockfLocker().lock
    end = time.monotonic() + wait
    while True:
        try:
            take(file, flags)
        except portalocker.AlreadyLocked:  # on Windows after 10 s of waiting, too
            if time.monotonic() >= end:
                return False
            time.sleep(0.2)
        except portalocker.LockException as error:  # such as ENOLCK of a network file system
            raise ResourceError(
                f"{file.name} cannot be locked ({getattr(error.__cause__, 'strerror', None) or error}): name a folder "
                "on a file system that has locks, such as a local disk"
            ) from error
        else:
            return True


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a folder's lock in this block; the system releases it when the process ends in any way.

    Args:
        folder: created if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        if not lock(file, wait=0):
            log.info("Waiting for another process that uses %s", folder)
            lock(file)
        yield
