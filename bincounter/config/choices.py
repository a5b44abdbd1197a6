"""Answers to a word that is none of the allowed ones."""

import difflib
from collections.abc import Iterable
from typing import Any

from bincounter.errors import ConfigError


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """The allowed word that ``word`` is most likely a misspelling of, if any is close."""
    found = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return found[0] if found else None


def one_of(key: str, value: Any, allowed: Iterable[str]) -> None:
    """Refuse a value that is not among ``allowed``, naming the key, the choices and the nearest spelling.

    Raises:
        ConfigError: when it is not.
    """
    allowed = list(allowed)
    if value in allowed:
        return
    guess = nearest(str(value), allowed)
    hint = f"; did you mean {key}={guess}?" if guess else ""
    raise ConfigError(f"{key}={value} is not one of {', '.join(allowed)}{hint}")
