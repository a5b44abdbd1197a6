"""Exceptions and their exit codes; the first line of a message; checks of extras and choices; files not read.

The entry points turn them into exit codes: 0 done, 2 the user has to change something, 143 stopped by SIGTERM with a
checkpoint, 1 anything else.
"""

import difflib
import errno
import re
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any


class BinCounterError(Exception):
    """An error that is printed as one sentence, without a traceback."""

    exit_code = 1


class UserError(BinCounterError):
    """A configuration or an input that the user has to change."""

    exit_code = 2


class ConfigError(UserError):
    """A wrong override or configuration file, rejected before anything starts."""


class DataError(UserError):
    """A data source that cannot be read: a missing folder, bucket or layout, or no usable photo in it."""


class ResourceError(BinCounterError):
    """Memory, disk or network failed; the message names the remedy."""


class Interrupted(BinCounterError):
    """Ctrl-C; the message names the command to resume."""


class Pruned(BinCounterError):
    """A trial was ended by the pruner; it has not failed."""


class Stopped(BinCounterError):
    """The process was stopped by SIGTERM and left a checkpoint to resume from."""

    exit_code = 143


def first_line(error: BaseException) -> str:
    """First line of an error's message; of an error without one the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


_OF_CONTENT = {errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EINVAL}  # another try fails, too
_OF_TORCH = re.compile(r"unable to .*: (.+) \(\d+\)|.*can't (allocate memory)")  # its RuntimeErrors have no errno


def unreadable(name: object, error: BaseException) -> ResourceError | None:
    """Describe a failure to read a file whose content may be whole; ``None`` if its content is at fault.

    Args:
        name: of the file.
        error: raised by what read it, such as ``torch.load``.
    """
    found = _OF_TORCH.match(first_line(error)) if isinstance(error, RuntimeError) else None
    if isinstance(error, MemoryError) or (found and "allocate" in found[0]):
        reason = "not enough memory"
    elif isinstance(error, OSError) and error.errno not in (None, *_OF_CONTENT):
        reason = (error.strerror or type(error).__name__).lower()
    elif found:
        reason = found[1].lower()
    else:
        return None
    return ResourceError(f"{name} cannot be read ({reason}): check memory, disk and permissions, and run again")


def check_extra(*modules: str, extra: str, wanted: str) -> None:
    """Check that optional packages are installed.

    Raises:
        ConfigError: one is not; the message names the extra.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ConfigError(f"{wanted} needs {missing[0]}: pip install 'bincounter[{extra}]'")


def closest_match(word: str, allowed: Iterable[str]) -> str | None:
    """The allowed word closest to ``word``, ignoring case; ``None`` if none is close."""
    by_lower = {name.lower(): name for name in allowed}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def check_choice(key: str, value: Any, allowed: Iterable[str], where: str = "") -> None:
    """Check that a value is one of ``allowed``.

    Args:
        key: the override that sets the value.
        value: of the override.
        allowed: the names.
        where: appended to the names, such as ``" for resnet18"``.

    Raises:
        ConfigError: it is not; the message has the key, the choices and the nearest spelling.
    """
    allowed = list(allowed)
    if value in allowed:
        return
    guess = closest_match(str(value), allowed)
    hint = f"; did you mean {key}={guess}?" if guess else ""
    raise ConfigError(f"{key}={value} is not one of {', '.join(allowed)}{where}{hint}")
