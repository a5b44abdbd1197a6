"""Which values the next training job of a tuning job gets.

This is an invention: AWS does not tell how its Bayesian search or its Hyperband choose. Here ``Random`` and
``Hyperband`` draw every value by itself, ``Bayesian`` is Optuna's TPE, which knows what the ended training jobs came
to, and, after a warm start, those of the parents, and ``Grid`` takes all combinations in the order of the request.
``Auto`` scaling is linear.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from bincounter.cloud.rehearsal.answers import Refused

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_DRAWN_FIRST = 3  # TPE's trials that are drawn by chance; Optuna's own 10 are more than many tuning jobs have

Values = dict[str, str]
"""Hyperparameter to text, as a training job gets it."""


class Choice(NamedTuple):
    """What a training job is to try.

    Attributes:
        number: for :meth:`Search.learn`.
        values: hyperparameter to text.
    """

    number: int
    values: Values


class Search(Protocol):
    """Chooses values, one training job after the other."""

    def choose(self) -> Choice | None:
        """The next choice, ``None`` where nothing is left."""
        ...

    def learn(self, number: int, objective: float | None) -> None:
        """Take note of what a choice came to; ``None`` is no value at all."""
        ...


class _Grid:
    def __init__(self, ranges: Mapping[str, Any]) -> None:
        categories = ranges["CategoricalParameterRanges"]
        names = [each["Name"] for each in categories]
        combinations = itertools.product(*(each["Values"] for each in categories))
        self._choices = enumerate(dict(zip(names, values, strict=True)) for values in combinations)

    def choose(self) -> Choice | None:
        found = next(self._choices, None)
        return None if found is None else Choice(*found)

    def learn(self, number: int, objective: float | None) -> None:
        """A grid is the same whatever comes of it."""


class _Sampled:
    """Any sampler of Optuna's, asked and told."""

    def __init__(self, config: Mapping[str, Any], past: Iterable[tuple[Values, float]]) -> None:
        optuna = _optuna()
        seed = config.get("RandomSeed")
        informed = config["Strategy"] == "Bayesian"
        sampler = (
            optuna.samplers.TPESampler(n_startup_trials=_DRAWN_FIRST, seed=seed)
            if informed
            else optuna.samplers.RandomSampler(seed=seed)
        )
        direction = config["HyperParameterTuningJobObjective"]["Type"].lower()
        self._distributions = _distributions(config["ParameterRanges"])
        self._study = optuna.create_study(sampler=sampler, direction=direction)
        for values, objective in past if informed else ():
            self._add(values, objective)

    def _add(self, texts: Values, objective: float) -> None:
        """Learn of a parent's training job; of one outside the ranges there is nothing to learn."""
        distributions = self._distributions
        try:
            values = {name: _read(texts[name], distribution) for name, distribution in distributions.items()}
            trial = _optuna().create_trial(params=values, distributions=distributions, value=objective)
        except (KeyError, ValueError):
            return
        self._study.add_trial(trial)

    def choose(self) -> Choice | None:
        trial = self._study.ask(self._distributions)
        return Choice(trial.number, {name: _text(value) for name, value in trial.params.items()})

    def learn(self, number: int, objective: float | None) -> None:
        if objective is None:
            self._study.tell(number, state=_optuna().trial.TrialState.FAIL)
        else:
            self._study.tell(number, objective)


def search_for(config: Mapping[str, Any], past: Iterable[tuple[Values, float]]) -> Search:
    """The search that a tuning job asks for.

    Args:
        config: ``HyperParameterTuningJobConfig``, checked.
        past: what the parents of a warm start tried, and what it came to.

    Raises:
        Refused: Optuna is not installed.
    """
    return _Grid(config["ParameterRanges"]) if config["Strategy"] == "Grid" else _Sampled(config, past)


def combinations(ranges: Mapping[str, Any]) -> int:
    """How many training jobs a grid has."""
    return math.prod(len(each["Values"]) for each in ranges.get("CategoricalParameterRanges", []))


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError:
        message = "The rehearsal's tuning jobs need Optuna: pip install 'bincounter[sweep]'"
        raise Refused("ValidationException", message) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distributions(ranges: Mapping[str, Any]) -> dict[str, "BaseDistribution"]:
    kinds = _optuna().distributions
    found: dict[str, BaseDistribution] = {}
    for each in ranges.get("IntegerParameterRanges", []):
        found[each["Name"]] = kinds.IntDistribution(int(each["MinValue"]), int(each["MaxValue"]), log=_is_log(each))
    for each in ranges.get("ContinuousParameterRanges", []):
        low, high = float(each["MinValue"]), float(each["MaxValue"])
        found[each["Name"]] = kinds.FloatDistribution(low, high, log=_is_log(each))
    for each in ranges.get("CategoricalParameterRanges", []):
        found[each["Name"]] = kinds.CategoricalDistribution(each["Values"])
    return found


def _is_log(bounds: Mapping[str, str]) -> bool:
    return bounds.get("ScalingType") == "Logarithmic"


def _text(value: str | int | float) -> str:
    """As a training job is told: numbers in decimal digits, never 1e-05."""
    return value if isinstance(value, str) else format(Decimal(repr(value)), "f")


def _read(text: str, distribution: "BaseDistribution") -> str | int | float:
    kinds = _optuna().distributions
    if isinstance(distribution, kinds.IntDistribution):
        return int(text)
    return float(text) if isinstance(distribution, kinds.FloatDistribution) else text
