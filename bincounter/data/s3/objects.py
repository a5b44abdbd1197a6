"""What a server tells of an object."""

from typing import NamedTuple


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
