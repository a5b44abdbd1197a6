"""One searched parameter, as Hydra's sweep syntax describes it: an interval, a range or a choice."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, IntegerNode, OmegaConf

from bincounter.cloud.hyperparameters import override_of
from bincounter.errors import ConfigError

_TAGS = ("log", "int", "float")


@dataclass(frozen=True)
class Interval:
    """Numbers between two bounds, both included.

    Attributes:
        key: of the configuration, with Hydra's ``+`` or ``++`` where it was written.
        low: smallest value.
        high: largest value.
        integer: whole numbers alone; ``low``, ``high`` and ``step`` are whole then.
        log: drawn evenly on a logarithmic scale.
        step: distance between neighbours, counted from ``low``; ``None`` for any number between.
    """

    key: str
    low: float
    high: float
    integer: bool = False
    log: bool = False
    step: float | None = None

    def __str__(self) -> str:
        """In plain words, such as ``1 to 5``: where ranges leave their end out, it is not named."""
        step = f", in steps of {self.step:g}" if self.step not in (None, 1) else ""
        return f"{self.low:g} to {self.high:g}{step}{', on a logarithmic scale' if self.log else ''}"

    def values(self) -> Sequence[float] | None:
        """Every value there is, from ``low`` on; ``None`` where they are not countable."""
        if self.integer:
            return range(int(self.low), int(self.high) + 1, int(self.step or 1))
        if self.low == self.high:
            return [self.low]
        return None if self.step is None else _listed(self.low, self.high, self.step)


@dataclass(frozen=True)
class Choice:
    """One of several values.

    Attributes:
        key: of the configuration, or a group.
        values: as written, in their order: numbers, truth values, texts, ``None``, lists or mappings.
    """

    key: str
    values: tuple[Any, ...]

    def __str__(self) -> str:
        """In plain words: the values."""
        return ", ".join(override_of("", value).removeprefix("=") for value in self.values)


Parameter = Interval | Choice


def parameter_of(override: Override, base: DictConfig) -> Parameter:
    """Read one sweep override.

    Args:
        override: ``choice``, ``range``, ``interval`` or ``glob``, or values with commas between them.
        base: the composed configuration; an interval over what is a whole number there is one of whole numbers.

    Raises:
        ConfigError: it holds no value, or none that can be searched.
    """
    key, sweep, written = override.get_key_element(), override._value, str(override.input_line)
    if isinstance(sweep, Glob):
        return Choice(key, tuple(_options(override, written)))
    assert isinstance(sweep, (ChoiceSweep, RangeSweep, IntervalSweep))
    for tag in sweep.tags:
        if tag not in _TAGS:
            raise ConfigError(f"{written}: the tag {tag} is not one of {', '.join(_TAGS)}")
    if isinstance(sweep, ChoiceSweep):
        if sweep.tags:
            raise ConfigError(f"{written}: tags are for intervals and ranges, so write the choice without")
        return Choice(key, tuple(Override._convert_value(value) for value in sweep.list))
    numbers = (sweep.start, sweep.end) if isinstance(sweep, IntervalSweep) else (sweep.start, sweep.stop, sweep.step)
    if not all(number is not None and math.isfinite(number) for number in numbers):
        raise ConfigError(f"{written} is not bounded by numbers: write finite ones")
    found = _range(key, sweep, written) if isinstance(sweep, RangeSweep) else _interval(key, sweep, written, base)
    if found.log and found.low <= 0:
        least = "1 or more" if found.integer else "a low bound above 0, such as 1e-5"
        raise ConfigError(f"{written} begins at {found.low:g}, which has no logarithm: write {least}, or drop log")
    return found


def _options(override: Override, written: str) -> Iterator[Any]:
    if override.config_loader is None:
        raise ConfigError(f"{written} looks for options where no Hydra app runs: list them, as in A,B")
    return override.sweep_iterator()


def _interval(key: str, sweep: IntervalSweep, written: str, base: DictConfig) -> Interval:
    low, high = sweep.start, sweep.end
    assert low is not None
    assert high is not None
    if low > high:
        raise ConfigError(f"{written} has its bounds the wrong way round: write interval({high:g},{low:g})")
    typed, whole = _whole(key, base)
    integer = isinstance(low, int) or "int" in sweep.tags or typed or (whole and "float" not in sweep.tags)
    if integer and not (float(low).is_integer() and float(high).is_integer()):
        otherwise = "" if typed or "int" in sweep.tags else f", or tag(float, interval({low:g},{high:g}))"
        raise ConfigError(
            f"{written} searches whole numbers: write whole bounds, as in "
            f"interval({math.floor(low)},{math.ceil(high)}){otherwise}"
        )
    log = "log" in sweep.tags
    return Interval(key, int(low), int(high), integer=True, log=log) if integer else Interval(key, low, high, log=log)


def _range(key: str, sweep: RangeSweep, written: str) -> Interval:
    assert sweep.start is not None
    assert sweep.stop is not None
    if sweep.step == 0:
        raise ConfigError(f"{written} has a step of 0: write another, or leave it out for 1")
    # As decimals, since what was written is meant: in binary, 0.1 fits three times into 0.3 and once more.
    start, stop, step = (Decimal(str(number)) for number in (sweep.start, sweep.stop, sweep.step))
    last = start + (math.ceil((stop - start) / step) - 1) * step
    if (last - start) / step < 0:
        raise ConfigError(f"{written} is empty: its end is left out, so range(1,6) is 1 to 5")
    low, high = sorted((start, last))
    step = abs(step)
    whole = all(number == int(number) for number in (low, high, step))
    if "int" in sweep.tags and not whole:
        raise ConfigError(f"{written} holds numbers that are not whole: write a whole start and step, or drop int")
    written_whole = all(isinstance(number, int) for number in (sweep.start, sweep.stop, sweep.step))
    integer = "float" not in sweep.tags and ("int" in sweep.tags or written_whole)
    log = "log" in sweep.tags
    if log and not (integer and step == 1):
        raise ConfigError(
            f"{written} has steps, which a logarithmic scale cannot keep: write tag(log, interval({low},{high})), or a "
            "choice"
        )
    number = int if integer else float
    return Interval(key, number(low), number(high), integer=integer, log=log, step=number(step))


def _whole(key: str, base: DictConfig) -> tuple[bool, bool]:
    """Whether a key takes whole numbers alone by its schema, and whether its value is one."""
    parent, _, name = key.lstrip("+").rpartition(".")
    node = OmegaConf.select(base, parent, throw_on_resolution_failure=False) if parent else base
    child = node._get_node(name, validate_access=False) if isinstance(node, DictConfig) else None
    value = OmegaConf.select(node, name, throw_on_resolution_failure=False) if child is not None else None
    return isinstance(child, IntegerNode), isinstance(value, int) and not isinstance(value, bool)


def _listed(low: float, high: float, step: float) -> list[float]:
    first, distance = Decimal(str(low)), Decimal(str(step))
    return [float(first + number * distance) for number in range(round((Decimal(str(high)) - first) / distance) + 1)]
