"""Answers to a word that is none of the allowed ones."""

import difflib
from collections.abc import Iterable
from typing import Any

from bincounter.errors import ConfigError


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """The allowed word that ``word`` is most likely a misspelling of, if any is close; case is no difference."""
    by_lower = {name.lower(): name for name in allowed}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def one_of(key: str, value: Any, allowed: Iterable[str], where: str = "") -> None:
    """Refuse a value that is not among ``allowed``, naming the key, the choices and the nearest spelling.

    Args:
        key: the override that sets the value.
        value: what it was set to.
        allowed: the names.
        where: said after the names, such as ``" for resnet18"``.

    Raises:
        ConfigError: when it is none of them.
    """
    allowed = list(allowed)
    if value in allowed:
        return
    guess = nearest(str(value), allowed)
    hint = f"; did you mean {key}={guess}?" if guess else ""
    raise ConfigError(f"{key}={value} is not one of {', '.join(allowed)}{where}{hint}")
