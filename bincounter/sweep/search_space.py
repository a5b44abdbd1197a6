"""Search space, parsed from Hydra's sweep syntax and checked."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, RangeSweep, Transformer
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, IntegerNode, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bincounter.config.launcher_schema import runs_locally
from bincounter.config.overrides import LAUNCH_KEYS, unknown_setting, wrong_value
from bincounter.config.quoting import override_of
from bincounter.config.validate import validate
from bincounter.errors import ConfigError, check_choice

log = logging.getLogger(__name__)


_TAGS = ("log", "int", "float")


@dataclass(frozen=True)
class Interval:
    """Numeric parameter between two bounds, both included.

    Attributes:
        key: key of the configuration, with Hydra's ``+`` or ``++`` as written.
        low: smallest value.
        high: largest value.
        integer: integers only; ``low``, ``high`` and ``step`` are integers, too.
        log: sampled on a logarithmic scale.
        step: distance between values, from ``low`` on; ``None`` for a continuous interval.
    """

    key: str
    low: float
    high: float
    integer: bool = False
    log: bool = False
    step: float | None = None

    def __str__(self) -> str:
        """Format for the log, such as ``1 to 5``."""
        step = f", in steps of {self.step:g}" if self.step not in (None, 1) else ""
        return f"{self.low:g} to {self.high:g}{step}{', on a logarithmic scale' if self.log else ''}"

    def values(self) -> Sequence[float] | None:
        """Return all values in ascending order; ``None`` for a continuous interval."""
        if self.integer:
            return range(int(self.low), int(self.high) + 1, int(self.step or 1))
        if self.low == self.high:
            return [self.low]
        if self.step is None:
            return None
        first, step = Decimal(str(self.low)), Decimal(str(self.step))
        return [float(first + number * step) for number in range(round((Decimal(str(self.high)) - first) / step) + 1)]


@dataclass(frozen=True)
class Choice:
    """Parameter with listed values.

    Attributes:
        key: key of the configuration, or group.
        values: numbers, booleans, strings, ``None``, lists or mappings, in the order written.
    """

    key: str
    values: tuple[Any, ...]

    def __str__(self) -> str:
        """Format the values for the log."""
        return ", ".join(override_of("", value).removeprefix("=") for value in self.values)


Parameter = Interval | Choice


def parameter_of(override: Override, base: DictConfig) -> Parameter:
    """Parse one sweep override.

    Args:
        override: ``choice``, ``range``, ``interval``, ``glob``, or values separated by commas.
        base: the composed configuration; an interval of a key with an integer value is one of integers.

    Raises:
        ConfigError: the sweep is empty, not bounded, or inconsistent with its tags.
    """
    key, sweep, written = override.get_key_element(), override.value(), str(override.input_line)
    if isinstance(sweep, Glob):
        if override.config_loader is None:
            raise ConfigError(f"{written} needs a running Hydra app to find options: list them, as in A,B")
        return Choice(key, tuple(override.sweep_iterator()))
    assert isinstance(sweep, (ChoiceSweep, RangeSweep, IntervalSweep))
    for tag in sweep.tags:
        if tag not in _TAGS:
            raise ConfigError(f"{written}: the tag {tag} is not one of {', '.join(_TAGS)}")
    if isinstance(sweep, ChoiceSweep):
        if sweep.tags:
            raise ConfigError(f"{written}: tags are for intervals and ranges, so write the choice without")
        texts = [f"{key}={Transformer.encode(value)}" for value in sweep.list]
        return Choice(key, tuple(each.value() for each in OverridesParser.create().parse_overrides(texts)))
    numbers = (sweep.start, sweep.end) if isinstance(sweep, IntervalSweep) else (sweep.start, sweep.stop, sweep.step)
    if not all(number is not None and math.isfinite(number) for number in numbers):
        raise ConfigError(f"{written} is not bounded by numbers: write finite ones")
    found = _range(key, sweep, written) if isinstance(sweep, RangeSweep) else _interval(key, sweep, written, base)
    if found.log and found.low <= 0:
        least = "1 or more" if found.integer else "a low bound above 0, such as 1e-5"
        raise ConfigError(f"{written} begins at {found.low:g}, which has no logarithm: write {least}, or drop log")
    return found


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
    # Decimal arithmetic: in binary, range(0, 0.3, 0.1) would include 0.3.
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
    """Return (the schema declares an integer, the present value is an integer)."""
    parent, _, name = key.lstrip("+").rpartition(".")
    node = OmegaConf.select(base, parent, throw_on_resolution_failure=False) if parent else base
    child = node._get_node(name, validate_access=False) if isinstance(node, DictConfig) else None
    value = OmegaConf.select(node, name, throw_on_resolution_failure=False) if child is not None else None
    return isinstance(child, IntegerNode), isinstance(value, int) and not isinstance(value, bool)


# Keys with one value for all trials: the objective, and the launch of a run.
_FIXED = (*LAUNCH_KEYS, "hydra", "paths", "train", "test", "ckpt_path", "optimized_metric")
_MOST_CHECKED = 60  # configurations; composing one takes about 50 ms

Space = Sequence[Parameter]


def read_space(
    space: Mapping[str, str], overrides: Sequence[str], base: DictConfig
) -> tuple[list[Parameter], list[str]]:
    """Separate searched parameters from other overrides.

    Args:
        space: ``hparams_search.space``: key to the text after ``=`` in Hydra's syntax.
        overrides: overrides of the command line; a sweep adds or replaces a parameter of the space, a plain value
            removes one.
        base: see :func:`parameter_of`.

    Returns:
        The parameters, those of ``space`` first, and the other overrides in order.

    Raises:
        ConfigError: one of them cannot be parsed, or has no value.
    """
    hydra = GlobalHydra.instance()
    parser = OverridesParser.create(hydra.config_loader() if hydra.is_initialized() else None)
    searched: dict[str, Parameter] = {}
    for key, text in space.items():
        override = _parsed(parser, f"{key}={text}")
        if not override.is_sweep_override():
            raise ConfigError(
                f"hparams_search.space has one value for {key}, {text}: write choice(A,B), range(START,STOP) or "
                "interval(LOW,HIGH), or set it on the command line"
            )
        searched[_name(override)] = parameter_of(override, base)
    others = []
    for text in overrides:
        override = _parsed(parser, text)
        if override.key_or_group == "hparams_search.space" and override.value() == {}:
            raise ConfigError(
                "hparams_search.space={} leaves the space as it is: give a value to each key that is not to be "
                "searched, or choose another file by hparams_search/space="
            )
        searched.pop(_name(override), None)
        if override.is_sweep_override():
            searched[_name(override)] = parameter_of(override, base)
        else:
            others.append(text)
    return list(searched.values()), others


def _parsed(parser: OverridesParser, text: str) -> Override:
    try:
        return parser.parse_overrides([text])[0]
    except HydraException as error:
        _, found, rest = str(error).partition(" while evaluating ")
        reason = rest.splitlines()[0].partition(": ")[2] if found else "a bracket or quote is off"
        raise ConfigError(
            f"{text} cannot be read ({reason}): write A,B or choice(A,B), range(START,STOP), interval(LOW,HIGH) or "
            "tag(log, interval(LOW,HIGH))"
        ) from None


def _name(override: Override) -> str:
    """Return a key without Hydra's prefixes."""
    return override.get_key_element().lstrip("+~")


def log_search_space(parameters: Space) -> None:
    """Log each parameter."""
    for parameter in parameters:
        log.info("Searching %s: %s", parameter.key, parameter)


def check_space(parameters: Space, compose: Callable[[list[str]], DictConfig]) -> None:
    """Check, before the first trial, that runs accept the values of a space.

    Args:
        parameters: the space.
        compose: composes the search's configuration with further overrides.

    Raises:
        ConfigError: the space is empty, or a value is not accepted; the message is about the first one found.
    """
    if not parameters:
        raise ConfigError(
            "nothing is left to search: name a key and its values, as in model.optimizer.lr=interval(0.001,0.1)"
        )
    for parameter in parameters:
        group = _group(parameter.key)
        if any(f"{group}.".startswith(f"{fixed}.") for fixed in _FIXED):
            raise ConfigError(
                f"{parameter.key} is the same for all trials of a search: start a search for each of its values"
            )
        if isinstance(parameter, Choice):
            _check_choice(parameter)
    base = compose([])
    _validate(base)
    for parameter, value in _values_to_check(parameters):
        override = override_of(parameter.key, value)
        try:
            _validate(compose([override]))
        except ConfigError as error:
            raise ConfigError(f"the search would try {override}: {error}") from None
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_explain(parameter.key, value, error, base)) from None


def _group(key: str) -> str:
    """Return the dotted name of a key or group, without prefixes and package."""
    return key.lstrip("+").replace("/", ".").partition("@")[0]


def _check_choice(choice: Choice) -> None:
    if not choice.values:
        raise ConfigError(f"{choice.key} has no option to choose from: list some")
    seen = set()
    for value in choice.values:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and not math.isfinite(value):
            raise ConfigError(f"{choice.key}={value} is among the values searched: list finite ones")
        same = f"{float(value)}" if number else override_of(choice.key, value)
        if same in seen:
            raise ConfigError(f"{override_of(choice.key, value)} is listed twice: list each value once")
        seen.add(same)


def _values_to_check(parameters: Space) -> list[tuple[Parameter, Any]]:
    """Return all listed values and both ends of each interval; of too many, only the extremes."""
    checked = [(parameter, value) for parameter in parameters for value in _extremes(parameter, few=False)]
    if len(checked) <= _MOST_CHECKED:
        return checked
    return [(parameter, value) for parameter in parameters for value in _extremes(parameter, few=True)]


def _extremes(parameter: Parameter, *, few: bool) -> list[Any]:
    if isinstance(parameter, Interval):
        return sorted({parameter.low, parameter.high})
    if not few:
        return list(parameter.values)
    first, *_, last = parameter.values * 2
    numbers = [value for value in parameter.values if isinstance(value, (int, float))]
    return [first, last, *([min(numbers), max(numbers)] if numbers else [])]


def _validate(cfg: DictConfig) -> None:
    validate(cfg)
    if cfg.ckpt_path is not None:
        raise ConfigError(
            "ckpt_path resumes one run, and a search is resumed by repeating its command: leave ckpt_path out"
        )
    if not cfg.train:
        raise ConfigError("train=false trains nothing that a search could compare: leave it out")
    # DDP would restart the search on every device.
    if runs_locally(cfg.launcher) and str(cfg.trainer.get("devices", 1)) != "1":
        raise ConfigError("a search runs its trials on one device each: set trainer.devices=1")


def _explain(key: str, value: Any, error: Exception, base: DictConfig) -> str:
    """Return the message for a value that cannot be composed."""
    if isinstance(error, MissingConfigException) and error.options:
        try:
            check_choice(key, value, error.options)
        except ConfigError as unknown:
            return str(unknown)
    unknown_key = None if key.startswith("+") else unknown_setting(_group(key), base)
    if unknown_key:
        return f"{unknown_key} (it is searched)"
    return f"the search would try {override_of(key, value)}: {wrong_value(error)}"
