"""Own trials, the best of them and its command, on screen."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Search:
    """What a study does not know of itself.

    Attributes:
        metrics: names of its objectives, in their order.
        command: from the parameters of a trial, as the study holds them, to the shell line that trains it.
        title: name of the study.
    """

    metrics: list[str]
    command: Callable[[Mapping[str, Any]], str]
    title: str


def show(study: "Study", search: Search) -> None:
    """Print the best trial, or the Pareto front of several objectives, with the commands that train them."""
    print(f"{search.title}: {tally(study)}")
    spared = sum(map(saved, own_trials(study)))
    if spared:
        print(f"Pruning saved about {spared:.0f} s.")
    best = best_trials(study)
    if not best:
        print("No trial has completed, so that there is no best one.")
    elif len(search.metrics) == 1:
        _show_best(best[0], search)
    else:
        _show_front(best, search)


def _show_best(best: "FrozenTrial", search: Search) -> None:
    print(f"Best trial: {best.number}")
    names = [*search.metrics, *best.params]
    values = [*_scores(best), *map(written, best.params.values())]
    _table(["", ""], [list(pair) for pair in zip(names, values, strict=True)])
    print("Train it with:")
    print(search.command(best.params))


def _show_front(front: "Sequence[FrozenTrial]", search: Search) -> None:
    print(f"Trials that no other outdoes in {' and '.join(search.metrics)}:")
    short = short_names(list(dict.fromkeys(key for trial in front for key in trial.params)))
    rows = [
        [str(trial.number), *_scores(trial), *(written(trial.params.get(key, "-")) for key in short)] for trial in front
    ]
    _table(["trial", *search.metrics, *short.values()], rows)
    print("Train them with:")
    for trial in front:
        print(f"# trial {trial.number}")
        print(search.command(trial.params))


def _scores(trial: "FrozenTrial") -> list[str]:
    return [f"{value:.5g}" for value in trial.values]


def _table(names: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=any(names))
    for name in names:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # Text, since brackets in values are no markup
    Console().print(table)
