"""Choice of the next hyperparameters of a tuning job, and the rule that stops training jobs early.

AWS's Bayesian search is not published. Here ``Bayesian`` draws at random, like ``Random``: a rehearsal shows that a
search runs, not its result. ``Grid`` takes all combinations in the order of the request. ``Auto`` scaling is linear.
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from statistics import fmean, median
from typing import Any, NamedTuple

Values = dict[str, str]
"""Hyperparameters by name, as text for a training job."""


def choices(config: Mapping[str, Any]) -> Iterator[Values]:
    """Iterate over the hyperparameters to try; only a grid ends.

    Args:
        config: ``HyperParameterTuningJobConfig``, checked.
    """
    if config["Strategy"] == "Grid":
        return _grid(config["ParameterRanges"])
    return _random(config["ParameterRanges"], random.Random(config.get("RandomSeed")))


def combinations(ranges: Mapping[str, Any]) -> int:
    """Return the number of training jobs of a grid."""
    return math.prod(len(each["Values"]) for each in ranges.get("CategoricalParameterRanges", []))


def _grid(ranges: Mapping[str, Any]) -> Iterator[Values]:
    categories = ranges["CategoricalParameterRanges"]
    names = [each["Name"] for each in categories]
    for values in itertools.product(*(each["Values"] for each in categories)):
        yield dict(zip(names, values, strict=True))


def _random(ranges: Mapping[str, Any], generator: random.Random) -> Iterator[Values]:
    while True:
        values: Values = {}
        for each in ranges.get("IntegerParameterRanges", []):
            values[each["Name"]] = str(_draw_integer(each, generator))
        for each in ranges.get("ContinuousParameterRanges", []):
            number = _draw(each, float(each["MinValue"]), float(each["MaxValue"]), generator)
            values[each["Name"]] = format(Decimal(repr(number)), "f")  # decimal digits, never 1e-05
        for each in ranges.get("CategoricalParameterRanges", []):
            values[each["Name"]] = generator.choice(each["Values"])
        yield values


def _draw_integer(bounds: Mapping[str, str], generator: random.Random) -> int:
    low, high = int(bounds["MinValue"]), int(bounds["MaxValue"])
    if bounds.get("ScalingType") != "Logarithmic":
        return generator.randint(low, high)
    # Half a step beyond both ends, which are then as likely as their neighbours.
    return min(max(round(_draw(bounds, low - 0.5, high + 0.5, generator)), low), high)


def _draw(bounds: Mapping[str, str], low: float, high: float, generator: random.Random) -> float:
    if bounds.get("ScalingType") != "Logarithmic":
        return generator.uniform(low, high)
    return min(max(math.exp(generator.uniform(math.log(low), math.log(high))), low), high)


class Progress(NamedTuple):
    """Progress of a training job.

    Attributes:
        values: values of the objective, signed so that more is better; the k-th counts as the k-th epoch's.
        completed: the job ran to its end.
    """

    values: Sequence[float]
    completed: bool


def is_behind_median(values: Sequence[float], others: Sequence[Progress]) -> bool:
    """Rule of ``TrainingJobEarlyStoppingType=Auto``, from AWS's page "Stop Training Jobs Early".

    After an epoch a job is stopped if its value is worse than the median, over completed training jobs, of the mean of
    their values up to that epoch.

    Args:
        values: values of the job's objective so far, signed so that more is better.
        others: the other training jobs of the tuning job.
    """
    epoch = len(values)
    means = [fmean(other.values[:epoch]) for other in others if other.completed and len(other.values) >= epoch > 0]
    return bool(means) and values[-1] < median(means)
