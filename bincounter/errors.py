"""Errors a person is meant to read: one sentence that ends in the next step, no traceback.

The entry points turn them into exit codes (DESIGN: 0 done, 2 the user has to change something, 143 stopped by SIGTERM
with a checkpoint, 1 anything else).
"""


class BinCounterError(Exception):
    """A failure that is answered in one sentence instead of a traceback."""

    exit_code = 1


class UserError(BinCounterError):
    """A configuration or an input that the user has to change."""

    exit_code = 2


class ConfigError(UserError):
    """An override or a configuration file that is refused before anything starts."""


class DataError(UserError):
    """A data source that cannot be read as asked: a missing folder, bucket or layout, or no usable photo in it."""


class ResourceError(BinCounterError):
    """Memory, disk or the network gave out; the message says what to change."""


class Interrupted(BinCounterError):
    """Ctrl-C; the message says how to go on."""


class Pruned(BinCounterError):
    """A trial of a search was ended since others promise more; it has not failed."""


class Stopped(BinCounterError):
    """The process was asked to stop by SIGTERM and left a checkpoint to go on from."""

    exit_code = 143
