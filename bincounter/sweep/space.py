"""The space of a search: written in Hydra's own sweep syntax, checked once, compiled for whoever chooses."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bincounter.cloud.hyperparameters import override_of
from bincounter.cloud.overrides import HERE
from bincounter.config import override_errors, validate
from bincounter.config.choices import one_of
from bincounter.config.launcher import carried_out_here
from bincounter.config.schema import TrainConfig
from bincounter.errors import ConfigError
from bincounter.sweep.parameters import Choice, Interval, Parameter, parameter_of

__all__ = ["Choice", "Interval", "Parameter", "Space", "override_of", "read_space", "refuse_bad", "tell"]

log = logging.getLogger(__name__)

# What a run is compared by, and where and whether it is carried out, is the same for all trials.
_FIXED = (*HERE, "hydra", "paths", "train", "test", "ckpt_path", "optimized_metric")
_TRIED = 60  # composing takes some 50 ms

Space = Sequence[Parameter]


def read_space(
    space: Mapping[str, str], overrides: Sequence[str], base: DictConfig
) -> tuple[list[Parameter], list[str]]:
    """Tell what is searched from what is set.

    Args:
        space: ``hparams_search.space``: key to what Hydra takes after the ``=``.
        overrides: of the command line; sweeps add to the space, or replace what it has under their key, and plain ones
            take their key out of it.
        base: the composed configuration; an interval over what is a whole number there is one of whole numbers.

    Returns:
        The searched parameters, those of ``space`` first, and the overrides that are none, in their order.

    Raises:
        ConfigError: one of them cannot be read, or holds no value.
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
        said = [line for line in str(error).splitlines() if " while evaluating " in line]
        reason = said[0].partition(" while evaluating ")[2].partition(": ")[2] if said else "a bracket or quote is off"
        raise ConfigError(
            f"{text} cannot be read ({reason}): write A,B or choice(A,B), range(START,STOP), interval(LOW,HIGH) or "
            "tag(log, interval(LOW,HIGH))"
        ) from None


def _name(override: Override) -> str:
    """A key without Hydra's prefixes."""
    return override.get_key_element().lstrip("+~")


def tell(parameters: Space) -> None:
    """Say what is searched, in plain words."""
    for parameter in parameters:
        log.info("Searching %s: %s", parameter.key, parameter)


def refuse_bad(parameters: Space, compose: Callable[[list[str]], DictConfig]) -> None:
    """Refuse a space some of whose values no run could take, before the first trial.

    Args:
        parameters: the space.
        compose: the configuration that the search's other overrides give, and those it is handed after them.

    Raises:
        ConfigError: the first thing that is wrong.
    """
    if not parameters:
        raise ConfigError(
            "nothing is left to search: name a key and its values, as in model.optimizer.lr=interval(0.001,0.1)"
        )
    for parameter in parameters:
        _refuse_fixed(parameter.key)
        if isinstance(parameter, Choice):
            _refuse_choice(parameter)
    base = compose([])
    _validate(base)
    for parameter, value in _tried(parameters):
        override = override_of(parameter.key, value)
        try:
            _validate(compose([override]))
        except ConfigError as error:
            raise ConfigError(f"the search would try {override}: {error}") from None
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_explained(parameter.key, value, error, base)) from None


def _refuse_fixed(key: str) -> None:
    group = key.lstrip("+").replace("/", ".").partition("@")[0]
    if any(f"{group}.".startswith(f"{fixed}.") for fixed in _FIXED):
        raise ConfigError(f"{key} is one for all trials of a search: start a search for each of its values")


def _refuse_choice(choice: Choice) -> None:
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


def _tried(parameters: Space) -> list[tuple[Parameter, Any]]:
    """All values listed and both ends of each interval; of long lists, the outer ones."""
    tried = [(parameter, value) for parameter in parameters for value in _telling(parameter, few=False)]
    if len(tried) <= _TRIED:
        return tried
    return [(parameter, value) for parameter in parameters for value in _telling(parameter, few=True)]


def _telling(parameter: Parameter, *, few: bool) -> list[Any]:
    if isinstance(parameter, Interval):
        return sorted({parameter.low, parameter.high})
    if not few:
        return list(parameter.values)
    first, *_, last = parameter.values * 2
    numbers = [value for value in parameter.values if isinstance(value, (int, float))]
    return [first, last, *([min(numbers), max(numbers)] if numbers else [])]


def _validate(cfg: DictConfig) -> None:
    if OmegaConf.get_type(cfg) is TrainConfig:  # other Hydra apps check theirs by themselves
        validate(cfg)
        _refuse_no_trial(cfg)


def _refuse_no_trial(cfg: DictConfig) -> None:
    if cfg.ckpt_path is not None:
        raise ConfigError(
            "ckpt_path goes on with one run, and a search goes on when its command is given again: leave ckpt_path out"
        )
    if not cfg.train:
        raise ConfigError("train=false trains nothing that a search could compare: leave it out")
    # DDP would start the search anew on every device.
    if carried_out_here(cfg.launcher) and str(cfg.trainer.get("devices", 1)) != "1":
        raise ConfigError("a search runs its trials on one device each: set trainer.devices=1")


def _explained(key: str, value: Any, error: Exception, base: DictConfig) -> str:
    group = key.lstrip("+").replace("/", ".").partition("@")[0]
    if isinstance(error, MissingConfigException) and error.options:
        try:
            one_of(key, value, error.options)
        except ConfigError as unknown:
            return str(unknown)
    unknown_key = None if key.startswith("+") else override_errors.no_setting(group, base)
    if unknown_key:
        return f"{unknown_key} (it is searched)"
    return f"the search would try {override_of(key, value)}: {override_errors.wrong_value(error)}"
