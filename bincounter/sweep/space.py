"""The space of a search: written in Hydra's own sweep syntax, checked once, compiled for whoever chooses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Interval:
    """Numbers between two bounds, both included.

    Attributes:
        key: of the configuration.
        low: smallest value.
        high: largest value.
        integer: whole numbers alone; ``low`` and ``high`` are whole then.
        log: drawn evenly on a logarithmic scale.
        step: distance between neighbours, counted from ``low``; ``None`` for any number between.
    """

    key: str
    low: float
    high: float
    integer: bool = False
    log: bool = False
    step: float | None = None


@dataclass(frozen=True)
class Choice:
    """One of several values.

    Attributes:
        key: of the configuration, or a group.
        values: as written, in their order: numbers, truth values, texts, ``None``, lists or mappings.
    """

    key: str
    values: tuple[Any, ...]


Parameter = Interval | Choice
Space = Sequence[Parameter]
