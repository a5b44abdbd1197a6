"""Reproducible tar.gz files, and checked unpacking.

The gzip stream is stored, not deflated: weights hardly shrink, implementations of deflate differ in their output, and
an archive of 100 MB is written and read in a fraction of a second.
"""

import errno
import gzip
import hashlib
import io
import shutil
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from bincounter.errors import ResourceError, UserError
from bincounter.files import atomic_write

CHECKSUMS = "checksums.sha256"
"""Name of the file with checksums of all others, in the format of ``sha256sum --check``."""

_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # no name, no time, no operating system
_STORED = 0xFFFF  # bytes of the largest stored block
_CHUNK = 1 << 20  # bytes read at a time, and the largest header of a member
_MOST_MEMBERS = 10_000
_MOST_BYTES = 16 << 30  # unpacked
_MOST_RATIO, _SMALL = 50, 64 << 20  # largest ratio of unpacked to packed bytes, above _SMALL unpacked bytes
_MOST_TEXT = 16 << 20  # bytes of a member that is read whole
_ADVICE = "package the checkpoint again with action=package"


def write_tarball(files: Mapping[str, bytes], path: Path) -> str:
    """Write files and their checksums atomically.

    Args:
        files: contents by name, with ``/`` between folders.
        path: of the ``.tar.gz``; a missing folder is created.

    Returns:
        Hexadecimal sha256 of the file.

    Raises:
        UserError: ``path`` is not writable.
        ResourceError: the disk is full.
    """
    digest = hashlib.sha256()
    try:
        with atomic_write(path, "wb") as out:
            for chunk in _gzipped(_tar({**files, CHECKSUMS: checksums(files)})):
                digest.update(chunk)
                out.write(chunk)
    except OSError as error:
        kind = ResourceError if error.errno in (errno.ENOSPC, errno.EDQUOT) else UserError
        why = (error.strerror or str(error)).lower()
        raise kind(
            f"{path.parent} cannot be written to ({why}): free disk space, or set archive= to another file"
        ) from error
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(files: Mapping[str, bytes]) -> bytes:
    """Format the checksums of files as ``sha256sum`` does, by name."""
    return "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)).encode()


def _tar(files: Mapping[str, bytes]) -> memoryview:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(files):
            member = tarfile.TarInfo(name)  # time 0, owner 0
            member.size = len(files[name])
            member.mode = 0o644
            tar.addfile(member, io.BytesIO(files[name]))
    return packed.getbuffer()


def _gzipped(content: memoryview) -> Iterator[bytes]:
    """Yield a gzip stream (RFC 1952) of stored blocks (RFC 1951)."""
    yield _GZIP_HEADER
    for start in range(0, len(content), _STORED):
        block = content[start : start + _STORED]
        last = start + _STORED >= len(content)
        yield struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF)
        yield bytes(block)
    yield struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF)


def unpack(archive: Path, folder: Path, *, key: str = "paths.cache_dir") -> Path:
    """Unpack an archive into a new folder atomically.

    Args:
        archive: a ``model.tar.gz``.
        folder: to create; it must not exist yet, or be empty.
        key: setting or variable that names its place, for the message.

    Returns:
        ``folder``.

    Raises:
        UserError: it does not exist, is damaged or holds unsafe members.
        ResourceError: the disk is full.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name a new folder to unpack {archive} into")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
            whole = Path(aside) / "archive"
            whole.mkdir()
            with _opened(archive) as tar:
                for name, content in _members(tar, archive):
                    (whole / name).parent.mkdir(parents=True, exist_ok=True)
                    with (whole / name).open("xb") as file:
                        shutil.copyfileobj(content, file, _CHUNK)
            _verify(whole, archive)
            whole.replace(folder)
    except OSError as error:
        raise ResourceError(
            f"{archive} cannot be unpacked into {folder} ({(error.strerror or str(error)).lower()}): free disk "
            f"space, or set {key} to another folder"
        ) from error
    return folder


def read_member(archive: Path, wanted: str) -> bytes:
    """Read one file of an archive.

    Raises:
        UserError: the archive does not exist or is damaged, or the file is not in it.
    """
    with _opened(archive) as tar:
        for name, content in _members(tar, archive):
            if name == wanted:
                text = io.BytesIO()
                while text.tell() <= _MOST_TEXT and (part := content.read(_CHUNK)):
                    text.write(part)
                if text.tell() > _MOST_TEXT:
                    raise UserError(f"{archive} is not an archive of bincounter: its {wanted} is too large: {_ADVICE}")
                return text.getvalue()
    raise UserError(f"{archive} is not an archive of bincounter, since it has no {wanted}: {_ADVICE}")


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    if not archive.is_file():
        raise UserError(f"The archive {archive} does not exist: create it with action=package, or correct the path")
    try:
        with _Stream(archive, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            yield tar
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{archive} is truncated or not an archive: {_ADVICE}") from error


class _Stream(gzip.GzipFile):
    """Unpacked stream with bounded reads: tarfile reads extended headers whole, of any announced size."""

    def read(self, size: int | None = -1) -> bytes:
        """Read up to ``size`` bytes."""
        if size is None or not 0 <= size <= _CHUNK:
            raise tarfile.ReadError("a header is too large")
        return super().read(size)


def _members(tar: tarfile.TarFile, archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield names and contents of an archive's files, within bounds.

    Raises:
        UserError: a member is not a plain file inside the archive, or the archive unpacks to too much.
    """
    seen: set[str] = set()
    most = min(_MOST_BYTES, max(_SMALL, _MOST_RATIO * archive.stat().st_size))
    for member in tar:
        path = PurePosixPath(member.name)
        inside = not path.is_absolute() and ".." not in path.parts and "\\" not in member.name
        plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)  # tarfile counts sparse files in
        if not (plain and inside and path.as_posix() == member.name) or member.name in seen:
            raise UserError(f"{archive} holds {member.name}, which is not a plain file of its own: {_ADVICE}")
        seen.add(member.name)
        if len(seen) > _MOST_MEMBERS or member.offset_data + member.size > most:
            raise UserError(
                f"{archive} is not an archive of bincounter: it unpacks to more than {_MOST_MEMBERS} files or "
                f"{most / 1e6:,.0f} MB: {_ADVICE}"
            )
        content = tar.extractfile(member)
        assert content is not None  # a regular file has content
        yield member.name, content


def _verify(folder: Path, archive: Path) -> None:
    listing = folder / CHECKSUMS
    if not listing.is_file():
        raise UserError(f"{archive} is not an archive of bincounter, since it has no {CHECKSUMS}: {_ADVICE}")
    lines = listing.read_text(encoding="utf-8", errors="replace").splitlines()
    stated = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {CHECKSUMS}
    wrong = sorted(stated.keys() ^ found) or sorted(
        name for name in found if file_digest(folder / name) != stated[name]
    )
    if wrong:
        raise UserError(
            f"{archive} was changed after it was packed (the checksum of {wrong[0]} does not match): {_ADVICE}"
        )
