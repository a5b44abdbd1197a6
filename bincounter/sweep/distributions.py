"""The space as Optuna distributions and as SageMaker ranges.

Optuna's categorical distribution takes numbers, booleans, strings and ``None``, and does not distinguish ``1`` from
``true``. For other values the study stores all values of the choice as override text.

SageMaker's categorical ranges hold values in the encoding of all hyperparameters (bincounter.cloud.hyperparameters), so
that the container decodes tuned and fixed ones in the same way.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bincounter.cloud.hyperparameters import encode_overrides
from bincounter.config.quoting import override_of
from bincounter.errors import ConfigError
from bincounter.sweep.search_space import Choice, Interval, Parameter, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_PLAIN = (bool, int, float, str, type(None))


def to_optuna(parameters: Space) -> "dict[str, BaseDistribution]":
    """Convert a space for ``study.ask(fixed_distributions=...)``: key to distribution."""
    return {parameter.key: _distribution(parameter) for parameter in parameters}


def values_of(params: Mapping[str, Any], parameters: Space) -> dict[str, Any]:
    """Convert the parameters of an Optuna trial to values of the configuration.

    Args:
        params: parameters of a trial; those outside the space are skipped.
        parameters: the space.

    Returns:
        Key to value, in the order of the space.
    """
    return {each.key: _optuna_value(params[each.key], each) for each in parameters if each.key in params}


def params_of(values: Mapping[str, Any], parameters: Space) -> dict[str, Any]:
    """Convert values of the configuration to parameters of an Optuna trial: the inverse of :func:`values_of`."""
    return {each.key: _param(values[each.key], each) for each in parameters if each.key in values}


def _distribution(parameter: Parameter) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(parameter, Choice):
        return CategoricalDistribution([_param(value, parameter) for value in parameter.values])
    low, high, log = parameter.low, parameter.high, parameter.log
    if parameter.integer:
        return IntDistribution(int(low), int(high), log=log, step=int(parameter.step or 1))
    return FloatDistribution(low, high, log=log, step=parameter.step)


def _optuna_value(param: Any, parameter: Parameter) -> Any:
    if isinstance(parameter, Interval):
        if parameter.integer or parameter.step is None:
            return param
        listed = parameter.values()
        assert listed is not None
        return min(listed, key=lambda value: abs(value - param))  # 0.3, which Optuna computes as 0.30000000000000004
    return next(value for value in parameter.values if _param(value, parameter) == param)


def _param(value: Any, parameter: Parameter) -> Any:
    if isinstance(parameter, Choice):
        values = parameter.values
        if not all(isinstance(each, _PLAIN) for each in values) or len(set(values)) < len(values):
            return override_of("", value).removeprefix("=")
    return value


MOST = 30
"""Maximum number of parameters of a tuning job, and of values of a categorical one (CreateHyperParameterTuningJob)."""


def to_sagemaker(parameters: Space, strategy: str = "Bayesian") -> dict[str, list[dict[str, Any]]]:
    """Convert a space for CreateHyperParameterTuningJob.

    Args:
        parameters: the space.
        strategy: SageMaker's strategy; ``Grid`` takes only categorical ranges, so integers are listed.

    Returns:
        ``ParameterRanges`` of the request.

    Raises:
        ConfigError: too many parameters or values, or a continuous interval in a grid.
    """
    if len(parameters) > MOST:
        raise ConfigError(f"a tuning job searches {MOST} keys at most, not {len(parameters)}: set some of them")
    ranges: dict[str, list[dict[str, Any]]] = {
        "IntegerParameterRanges": [],
        "ContinuousParameterRanges": [],
        "CategoricalParameterRanges": [],
    }
    for parameter in parameters:
        values = _listed(parameter, strategy)
        if values is not None:
            ranges["CategoricalParameterRanges"].append({"Name": parameter.key, "Values": values})
        else:
            assert isinstance(parameter, Interval)
            kind = "IntegerParameterRanges" if parameter.integer else "ContinuousParameterRanges"
            ranges[kind].append(_bounds(parameter))
    return ranges


def from_sagemaker(hyperparameters: Mapping[str, str], parameters: Space) -> dict[str, Any]:
    """Convert the values of a tuning job's training job.

    Args:
        hyperparameters: ``TunedHyperParameters`` of the training job; those outside the space are skipped.
        parameters: the space.

    Returns:
        Key to value, in the order of the space.
    """
    return {
        each.key: _sagemaker_value(hyperparameters[each.key], each)
        for each in parameters
        if each.key in hyperparameters
    }


def _listed(parameter: Parameter, strategy: str) -> list[str] | None:
    """Return the strings of a categorical range; ``None`` for a range with bounds."""
    values: Sequence[Any]
    if isinstance(parameter, Choice):
        values = parameter.values
    else:
        # SageMaker has no steps, and rejects equal bounds.
        countable = parameter.values()
        one = parameter.low == parameter.high
        if strategy != "Grid" and not one and parameter.step in (None, 1 if parameter.integer else None):
            return None
        if countable is None:
            raise ConfigError(
                f"hparams_search.strategy=Grid tries listed values, and {parameter.key} is any number from "
                f"{parameter.low:g} to {parameter.high:g}: write {parameter.key}=choice({parameter.low:g},"
                f"{parameter.high:g}), with as many as wanted"
            )
        values = countable
    if len(values) > MOST:
        raise ConfigError(
            f"{parameter.key} has {len(values)} values, and a tuning job lists {MOST} at most: list fewer, or write "
            "interval(LOW,HIGH)"
        )
    return [_text(parameter.key, value) for value in values]


def _bounds(interval: Interval) -> dict[str, Any]:
    return {
        "Name": interval.key,
        "MinValue": _text(interval.key, interval.low),
        "MaxValue": _text(interval.key, interval.high),
        "ScalingType": "Logarithmic" if interval.log else "Linear",
    }


def _text(key: str, value: Any) -> str:
    return encode_overrides([override_of(key, value)])[key]


def _sagemaker_value(text: str, parameter: Parameter) -> Any:
    if isinstance(parameter, Choice):
        return next(value for value in parameter.values if _text(parameter.key, value) == text)
    return int(float(text)) if parameter.integer else float(text)
