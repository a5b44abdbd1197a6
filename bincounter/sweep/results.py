"""What came of a search: its own trials, the best of them, and what they took."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

WORDS = {"COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
"""Optuna's states in plain words."""

_LONGEST = 22  # characters of a name over a column or under an axis


def own_trials(study: "Study") -> "list[FrozenTrial]":
    """The trials of this search, without those it was told of by earlier ones, in the order of their numbers."""
    return [trial for trial in study.get_trials(deepcopy=False) if "warm_start" not in trial.user_attrs]


def completed(study: "Study") -> "list[FrozenTrial]":
    """Own trials that came to finite values."""
    trials = [trial for trial in own_trials(study) if trial.state.name == "COMPLETE"]  # pruned ones have values too
    return [trial for trial in trials if trial.values and all(map(math.isfinite, trial.values))]


def best_trials(study: "Study") -> "list[FrozenTrial]":
    """Completed own trials that no other outdoes: the best one, or with several objectives the Pareto front.

    Returns:
        One trial, the first of equals; or those of the front, the best by the first objective first.
    """
    trials = completed(study)
    losses = {trial.number: _losses(study, trial) for trial in trials}
    ranked = sorted(trials, key=lambda trial: losses[trial.number])
    if len(study.directions) == 1:
        return ranked[:1]
    return [one for one in ranked if not any(_outdoes(losses[other.number], losses[one.number]) for other in trials)]


def seconds(trial: "FrozenTrial") -> float | None:
    """Wall time of a trial's run; ``None`` where it has not ended."""
    told = trial.user_attrs.get("seconds")
    return told if told is not None or trial.duration is None else trial.duration.total_seconds()


def saved(trial: "FrozenTrial") -> float:
    """Seconds that were saved by pruning a trial; a job may have completed before it could be stopped."""
    return float(trial.user_attrs.get("saved_seconds", 0)) if trial.state.name == "PRUNED" else 0.0


def state(trial: "FrozenTrial") -> str:
    """In plain words, what has become of a trial."""
    return WORDS[trial.state.name]


def tally(study: "Study") -> str:
    """Such as ``20 trials: 16 completed, 3 pruned, 1 failed``."""
    trials = own_trials(study)
    found = Counter(map(state, trials))
    parts = ", ".join(f"{found[word]} {word}" for word in WORDS.values() if found[word])
    earlier = len(study.get_trials(deepcopy=False)) - len(trials)
    told = f", and {_trials(earlier)} of earlier searches" if earlier else ""
    return f"{_trials(len(trials))}{': ' if parts else ''}{parts}{told}"


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """As much of each dotted key, from its end, as tells it from the others, at most 22 characters."""
    short = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        name = next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1 or end == key)
        short[key] = shortened(name)
    return short


def shortened(text: str) -> str:
    """At most 22 characters of a text, from both its ends."""
    return text if len(text) <= _LONGEST else f"{text[:9]}…{text[10 - _LONGEST :]}"


def written(value: Any) -> str:
    """A value for the eye: four digits, and Hydra's words for the others."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _trials(number: int) -> str:
    return f"{number} trial{'s' * (number != 1)}"


def _losses(study: "Study", trial: "FrozenTrial") -> list[float]:
    return [
        -value if direction.name == "MAXIMIZE" else value
        for value, direction in zip(trial.values, study.directions, strict=True)
    ]


def _outdoes(one: list[float], other: list[float]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))
