"""What callers tell apart of what goes wrong; the sentences are in :mod:`bincounter.data.s3.explanations`."""

from bincounter.errors import DataError


class MissingError(DataError):
    """There is no object of that name."""


class DeniedError(DataError):
    """The server does not let us read it."""


class DamagedError(Exception):
    """A body that is not what the server said it would send."""


class LostError(Exception):
    """A redirect that does not say to which region."""
