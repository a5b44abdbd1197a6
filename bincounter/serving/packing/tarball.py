"""Tar.gz written reproducibly, unpacked with checks.

The gzip stream is stored, not deflated: weights hardly shrink, zlib and its relatives do not agree on bytes, and an
archive of 100 MB is written and read in a fraction of a second.
"""

import errno
import gzip
import hashlib
import io
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from bincounter.errors import ResourceError, UserError
from bincounter.files import replacing

CHECKSUMS = "checksums.sha256"
"""What ``sha256sum --check`` reads: a line for every other file."""

_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # no name, no time, no operating system
_STORED = 0xFFFF  # bytes of the largest stored block


def write_tarball(files: Mapping[str, bytes], path: Path) -> str:
    """Write files and their checksums, whole or not at all.

    Args:
        files: contents by name, with ``/`` between folders.
        path: of the ``.tar.gz``; its folder is made when it is missing.

    Returns:
        The hexadecimal sha256 of what was written.

    Raises:
        UserError: ``path`` cannot be written to.
        ResourceError: there is no room for it.
    """
    digest = hashlib.sha256()
    try:
        with replacing(path, "wb") as out:
            for chunk in _gzipped(_tar({**files, CHECKSUMS: checksums(files)})):
                digest.update(chunk)
                out.write(chunk)
    except OSError as error:
        kind = ResourceError if error.errno in (errno.ENOSPC, errno.EDQUOT) else UserError
        why = (error.strerror or str(error)).lower()
        raise kind(
            f"{path.parent} cannot be written to ({why}): free the place, or name another by archive=FILE"
        ) from error
    return digest.hexdigest()


def checksums(files: Mapping[str, bytes]) -> bytes:
    """A line for each file, as ``sha256sum`` writes it, in the order of names."""
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
    """RFC 1952 around stored blocks of RFC 1951."""
    yield _GZIP_HEADER
    for start in range(0, len(content), _STORED):
        block = content[start : start + _STORED]
        last = start + _STORED >= len(content)
        yield struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF)
        yield bytes(block)
    yield struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF)


_ADVICE = "package the checkpoint anew with action=package"


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack an archive into a new folder, whole or not at all.

    Args:
        archive: a ``model.tar.gz``.
        folder: to make; it must not be there yet, or be empty.

    Returns:
        The folder.

    Raises:
        UserError: there is no such archive, it is damaged, or it holds what no archive holds.
        ResourceError: there is no place for it.
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
                    (whole / name).write_bytes(content)
            _verify(whole, archive)
            whole.replace(folder)
    except OSError as error:
        raise ResourceError(
            f"{archive} cannot be unpacked into {folder} ({(error.strerror or str(error)).lower()}): free the place, "
            "or name another by paths.cache_dir"
        ) from error
    return folder


def read_member(archive: Path, wanted: str) -> bytes:
    """The content of one file of an archive.

    Raises:
        UserError: there is no such archive, it is damaged, or it holds no such file.
    """
    with _opened(archive) as tar:
        for name, content in _members(tar, archive):
            if name == wanted:
                return content
    raise UserError(f"{archive} is no archive of bincounter, since it holds no {wanted}: {_ADVICE}")


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    if not archive.is_file():
        raise UserError(f"There is no archive {archive}: make it with action=package, or correct the path")
    try:
        with tarfile.open(archive, "r:gz") as tar:
            yield tar
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{archive} is truncated or no archive: {_ADVICE}") from error


def _members(tar: tarfile.TarFile, archive: Path) -> Iterator[tuple[str, bytes]]:
    seen: set[str] = set()
    for member in tar:
        path = PurePosixPath(member.name)
        inside = not path.is_absolute() and ".." not in path.parts and "\\" not in member.name
        if not (member.isreg() and inside and path.as_posix() == member.name) or member.name in seen:
            raise UserError(f"{archive} holds {member.name}, which is no plain file of its own: {_ADVICE}")
        seen.add(member.name)
        content = tar.extractfile(member)
        assert content is not None  # a regular file has content
        yield member.name, content.read()


def _verify(folder: Path, archive: Path) -> None:
    listing = folder / CHECKSUMS
    if not listing.is_file():
        raise UserError(f"{archive} is no archive of bincounter, since it holds no {CHECKSUMS}: {_ADVICE}")
    lines = listing.read_text(encoding="utf-8").splitlines()
    stated = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {CHECKSUMS}
    wrong = sorted(stated.keys() ^ found) or sorted(
        name for name in found if hashlib.sha256((folder / name).read_bytes()).hexdigest() != stated[name]
    )
    if wrong:
        raise UserError(f"{archive} was changed after it was made ({wrong[0]} is not as its checksum says): {_ADVICE}")
