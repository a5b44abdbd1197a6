"""Size and etag of objects, and the check of a file against an etag.

The etag of a body sent in one request is its MD5; that of a multipart upload is the MD5 of the parts' MD5s, a dash and
the number of parts (https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html). The size of the parts is
not reported, but senders use few sizes. With encryption by a key of KMS or of the customer an etag is neither, which
only the headers of a response show.
"""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from bincounter.errors import DataError


class Stored(NamedTuple):
    """One version of an object.

    Attributes:
        etag: the server's name of the version, without quotes.
        size: bytes.
    """

    etag: str
    size: int


class Listed(NamedTuple):
    """One object of a listing.

    Attributes:
        key: its name in the bucket.
        etag: the server's name of its version, without quotes.
        size: bytes.
    """

    key: str
    etag: str
    size: int


class DownloadItem(NamedTuple):
    """One object to fetch.

    Attributes:
        key: its name.
        listed: its version in the listing, or ``None`` without a listing.
        unless: etag of the version that is here already, or ``""``.
    """

    key: str
    listed: Stored | None
    unless: str = ""


class UploadItem(NamedTuple):
    """One file to send.

    Attributes:
        path: the file.
        key: the object it becomes.
        size: bytes of the file.
        modified: nanoseconds, the time of the file's last change.
        etag: of the existing object of the file's size, ``None`` without one.
    """

    path: Path
    key: str
    size: int
    modified: int
    etag: str | None = None


class TransferOutcome(NamedTuple):
    """Result of a transfer.

    Attributes:
        fetched: objects that are here now and were not.
        absent: those that could not be fetched, with the tolerated error.
    """

    fetched: int
    absent: dict[str, DataError]


_MD5 = re.compile(r"[0-9a-f]{32}")
_PARTS = re.compile(r"([0-9a-f]{32})-([1-9][0-9]*)")
_MB = 1 << 20
_PART_SIZES = [size * _MB for size in (5, 8, 10, 15, 16, 20, 25, 32, 50, 64, 100, 128, 256, 512, 1024)] + [
    5_000_000,
    10_000_000,
    50_000_000,
    100_000_000,
]


def is_md5_etag(etag: str) -> bool:
    """Return True if the etag has the form of an MD5."""
    return _MD5.fullmatch(etag) is not None


def is_computable_etag(etag: str, size: int) -> bool:
    """Return True if the etag has a form that can be computed from bytes.

    Args:
        etag: without quotes.
        size: of the object, bytes.
    """
    return is_md5_etag(etag) or bool(_part_sizes(etag, size))


def etag_matches(etag: str, path: Path, size: int) -> bool:
    """Return True if an etag belongs to the content of a file.

    Args:
        etag: without quotes.
        path: the file, which is read once for each possible size of parts.
        size: of the file, bytes.
    """
    if is_md5_etag(etag):
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == etag
    return any(_in_parts(path, part) == etag for part in _part_sizes(etag, size))


def _part_sizes(etag: str, size: int) -> list[int]:
    match = _PARTS.fullmatch(etag)
    if match is None:
        return []
    number = int(match[2])
    if number == 1:
        return [max(size, 1)]
    return [part for part in _PART_SIZES if -(-size // part) == number]


def _in_parts(path: Path, part: int) -> str:
    digests: list[bytes] = []
    with path.open("rb") as file:
        while True:
            digest, left = hashlib.md5(usedforsecurity=False), part
            while left and (chunk := file.read(min(left, _MB))):
                digest.update(chunk)
                left -= len(chunk)
            if left == part and digests:
                break
            digests.append(digest.digest())
            if left:
                break
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"
