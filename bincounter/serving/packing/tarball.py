"""``model.tar.gz`` from files in memory, byte for byte the same on every machine and day.

The gzip stream is stored, not deflated: weights hardly shrink, zlib and its relatives do not agree on bytes, and an
archive of 100 MB is written and read in a fraction of a second.
"""

import errno
import hashlib
import io
import struct
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

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
