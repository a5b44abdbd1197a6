"""Which values the next training job of a tuning job gets.

This is an invention: AWS does not tell how its Bayesian search or its Hyperband choose. Here ``Random`` and
``Hyperband`` draw every value by itself, ``Bayesian`` is Optuna's TPE, which knows what the ended training jobs came
to, and, after a warm start, those of the parents, and ``Grid`` takes all combinations in the order of the request.
``Auto`` scaling is linear.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sagemaker_rehearsal.protocol import Refused

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


_ETA = 3  # of so many that reach a rung, Hyperband lets one go on


class Progress(NamedTuple):
    """How far a training job has come.

    Attributes:
        values: of the objective, one an epoch.
        completed: whether it ran to its end.
    """

    values: Sequence[float]
    completed: bool


class StoppingRule(Protocol):
    """Decides on training jobs that run."""

    def gives_up(self, values: Sequence[float], others: Sequence[Progress]) -> bool:
        """Whether a job with these values is to be stopped, in view of the others of its tuning job."""
        ...


class Never:
    """``TrainingJobEarlyStoppingType=Off``."""

    def gives_up(self, values: Sequence[float], others: Sequence[Progress]) -> bool:
        """No job is stopped."""
        return False


class Median:
    """``TrainingJobEarlyStoppingType=Auto``, as AWS documents it ("Stop Training Jobs Early").

    After an epoch a job is stopped if its value is worse than the median, over the training jobs completed before, of
    the mean of their values up to that epoch.
    """

    def gives_up(self, values: Sequence[float], others: Sequence[Progress]) -> bool:
        """Whether the newest value is worse than that median."""
        epoch = len(values)
        means = [fmean(other.values[:epoch]) for other in others if other.completed and len(other.values) >= epoch > 0]
        return bool(means) and values[-1] < median(means)


@dataclass(frozen=True)
class Halving:
    """Hyperband in its simplest form, asynchronous successive halving; AWS's own is more, and secret.

    Rungs are at ``least``, 3 ``least``, 9 ``least``, ... epochs. At the last rung it has reached a job must be in the
    best third of those that have reached it so far; later arrivals can push it out. A job that goes on past ``most``
    epochs is stopped.

    Attributes:
        least: ``MinResource``.
        most: ``MaxResource``.
    """

    least: int
    most: int

    def gives_up(self, values: Sequence[float], others: Sequence[Progress]) -> bool:
        """Whether others leave no room at the rung, or the job has gone too far."""
        if len(values) > self.most:
            return True
        rungs = [rung for rung in self._rungs() if rung <= len(values)]
        if not rungs:
            return False
        rivals = [other.values[rungs[-1] - 1] for other in others if len(other.values) >= rungs[-1]]
        better = sum(rival > values[rungs[-1] - 1] for rival in rivals)
        return better >= math.ceil((len(rivals) + 1) / _ETA)

    def _rungs(self) -> list[int]:
        rungs, rung = [], self.least
        while rung < self.most:
            rungs.append(rung)
            rung *= _ETA
        return rungs


_EPOCH_NAMES = ("epochs", "numepochs", "n-epochs", "n_epochs", "num_epochs")


def most_epochs(request: Mapping[str, Any]) -> int | None:
    """Hyperband's ``MaxResource``; where it is not given, AWS looks for one among the static hyperparameters."""
    strategy = request["HyperParameterTuningJobConfig"].get("StrategyConfig", {})
    given = strategy.get("HyperbandStrategyConfig", {}).get("MaxResource")
    static = request.get("TrainingJobDefinition", {}).get("StaticHyperParameters", {})
    named = [int(static[name]) for name in _EPOCH_NAMES if static.get(name, "").isdecimal()]
    return given or next(iter(named), None)


def rule_for(request: Mapping[str, Any]) -> StoppingRule:
    """The rule that a tuning job asks for.

    Args:
        request: the body of CreateHyperParameterTuningJob, checked.
    """
    config = request["HyperParameterTuningJobConfig"]
    if config["Strategy"] == "Hyperband":
        most = most_epochs(request)
        assert most is not None
        return Halving(config.get("StrategyConfig", {}).get("HyperbandStrategyConfig", {}).get("MinResource", 1), most)
    return Median() if config.get("TrainingJobEarlyStoppingType") == "Auto" else Never()
