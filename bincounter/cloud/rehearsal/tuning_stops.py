"""Which training jobs of a tuning job are stopped before they end by themselves.

The k-th value of the objective that a training job logs is taken for that of its k-th epoch. Values are written so
that more is better.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, NamedTuple, Protocol

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
