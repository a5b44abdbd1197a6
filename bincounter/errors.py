"""Exceptions and their exit codes; the first line of a message; checks of extras and choices; ``closest_match``.

The entry points turn them into exit codes: 0 done, 2 the user has to change something, 143 stopped by SIGTERM with a
checkpoint, 1 anything else.
"""

import difflib
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
