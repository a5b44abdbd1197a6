"""What a server tells of an object, and what is done with many."""

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


class Job(NamedTuple):
    """One object to fetch.

    Attributes:
        key: its name.
        listed: what the listing said of it, or ``None`` where there was none.
        unless: the version that is here already, or ``""``.
    """

    key: str
    listed: Stored | None
    unless: str = ""


class Outcome(NamedTuple):
    """What a transfer did.

    Attributes:
        fetched: objects that are here now and were not.
        absent: those that could not be had, with the tolerated error.
    """

    fetched: int
    absent: dict[str, DataError]
