"""A space as Optuna's distributions, and Optuna's values as those of the configuration.

Optuna's categorical takes numbers, truth values, texts and ``None``, and cannot tell ``1`` from ``true``. Where that is
not enough, all values of a choice stand in the study as the text that an override would have for them.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bincounter.sweep.space import Choice, Interval, Parameter, Space, override_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_PLAIN = (bool, int, float, str, type(None))


def to_optuna(parameters: Space) -> "dict[str, BaseDistribution]":
    """Compile a space for ``study.ask(fixed_distributions=...)``: key to distribution."""
    return {parameter.key: _distribution(parameter) for parameter in parameters}


def values_of(params: Mapping[str, Any], parameters: Space) -> dict[str, Any]:
    """Read the parameters of an Optuna trial as values of the configuration.

    Args:
        params: of a trial; those of no parameter are left out.
        parameters: the space.

    Returns:
        Key to value, in the order of the space.
    """
    return {each.key: _value(params[each.key], each) for each in parameters if each.key in params}


def params_of(values: Mapping[str, Any], parameters: Space) -> dict[str, Any]:
    """Write values of the configuration as the parameters of an Optuna trial: the inverse of :func:`values_of`."""
    return {each.key: _param(values[each.key], each) for each in parameters if each.key in values}


def _distribution(parameter: Parameter) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(parameter, Choice):
        return CategoricalDistribution([_param(value, parameter) for value in parameter.values])
    low, high, log = parameter.low, parameter.high, parameter.log
    if parameter.integer:
        return IntDistribution(int(low), int(high), log=log, step=int(parameter.step or 1))
    return FloatDistribution(low, high, log=log, step=parameter.step)


def _value(param: Any, parameter: Parameter) -> Any:
    if isinstance(parameter, Interval):
        if parameter.integer or parameter.step is None:
            return param
        listed = parameter.values()
        assert listed is not None
        return min(listed, key=lambda value: abs(value - param))  # 0.3, which Optuna computes as 0.30000000000000004
    return next(value for value in parameter.values if _param(value, parameter) == param)


def _param(value: Any, parameter: Parameter) -> Any:
    if isinstance(parameter, Choice) and not _told_apart(parameter):
        return override_of("", value).removeprefix("=")
    return value


def _told_apart(choice: Choice) -> bool:
    return all(isinstance(value, _PLAIN) for value in choice.values) and len(set(choice.values)) == len(choice.values)
