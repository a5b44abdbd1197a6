"""Results of a study: its own trials, the best of them, and the printed summary."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

WORDS = {"COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
"""Optuna's states and their names in texts."""

_LONGEST = 22  # characters of a column's name


def own_trials(study: "Study") -> "list[FrozenTrial]":
    """Return the trials of this search in order, without those of a warm start."""
    return [trial for trial in study.get_trials(deepcopy=False) if "warm_start" not in trial.user_attrs]


def completed(study: "Study") -> "list[FrozenTrial]":
    """Return own trials that completed with finite values."""
    trials = [trial for trial in own_trials(study) if trial.state.name == "COMPLETE"]  # pruned ones have values too
    return [trial for trial in trials if trial.values and all(map(math.isfinite, trial.values))]


def best_trials(study: "Study") -> "list[FrozenTrial]":
    """Return the best completed own trial, or with several objectives the Pareto front.

    Returns:
        One trial, the first of equal ones; or the front, sorted by the first objective, best first.
    """
    trials = completed(study)
    losses = {trial.number: _losses(study, trial) for trial in trials}
    ranked = sorted(trials, key=lambda trial: losses[trial.number])
    if len(study.directions) == 1:
        return ranked[:1]
    return [one for one in ranked if not any(_dominates(losses[other.number], losses[one.number]) for other in trials)]


def seconds(trial: "FrozenTrial") -> float | None:
    """Return the wall time of a trial's run; ``None`` if it has not ended."""
    measured = trial.user_attrs.get("seconds")
    return measured if measured is not None or trial.duration is None else trial.duration.total_seconds()


def saved_seconds(trial: "FrozenTrial") -> float:
    """Return the seconds saved by pruning a trial; 0 for a job that completed before it was stopped."""
    return float(trial.user_attrs.get("saved_seconds", 0)) if trial.state.name == "PRUNED" else 0.0


def state(trial: "FrozenTrial") -> str:
    """Return the name of a trial's state."""
    return WORDS[trial.state.name]


def format_tally(study: "Study") -> str:
    """Format counts, such as ``20 trials: 16 completed, 3 pruned, 1 failed``."""
    trials = own_trials(study)
    found = Counter(map(state, trials))
    parts = ", ".join(f"{found[word]} {word}" for word in WORDS.values() if found[word])
    earlier = len(study.get_trials(deepcopy=False)) - len(trials)
    others = f", and {_trials(earlier)} of earlier searches" if earlier else ""
    return f"{_trials(len(trials))}{': ' if parts else ''}{parts}{others}"


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the shortest unambiguous end of each dotted key, at most 22 characters."""
    short = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        name = next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1 or end == key)
        short[key] = shorten(name)
    return short


def shorten(text: str) -> str:
    """Cut a text in its middle to at most 22 characters."""
    return text if len(text) <= _LONGEST else f"{text[:9]}…{text[10 - _LONGEST :]}"


def format_value(value: Any) -> str:
    """Format a value: floats with four digits, others as in Hydra."""
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


def _dominates(one: list[float], other: list[float]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))


@dataclass(frozen=True)
class Search:
    """Facts about a search that its study lacks.

    Attributes:
        metrics: names of its objectives, in their order.
        command: converts the parameters of a trial, as in the study, to the shell command that trains it.
        title: name of the study.
    """

    metrics: list[str]
    command: Callable[[Mapping[str, Any]], str]
    title: str


def print_results(study: "Study", search: Search) -> None:
    """Print the best trial, or the Pareto front of several objectives, with the commands that train them."""
    print(f"{search.title}: {format_tally(study)}")
    spared = sum(map(saved_seconds, own_trials(study)))
    if spared:
        print(f"Pruning saved about {spared:.0f} s.")
    best = best_trials(study)
    if not best:
        print("No trial has completed, so there is no best trial.")
    elif len(search.metrics) == 1:
        _show_best(best[0], search)
    else:
        _show_front(best, search)


def _show_best(best: "FrozenTrial", search: Search) -> None:
    print(f"Best trial: {best.number}")
    names = [*search.metrics, *best.params]
    values = [*_scores(best), *map(format_value, best.params.values())]
    _table(["", ""], [list(pair) for pair in zip(names, values, strict=True)])
    print("Train it with:")
    print(search.command(best.params))


def _show_front(front: "Sequence[FrozenTrial]", search: Search) -> None:
    print(f"Pareto front of {' and '.join(search.metrics)}:")
    short = short_names(list(dict.fromkeys(key for trial in front for key in trial.params)))
    rows = [
        [str(trial.number), *_scores(trial), *(format_value(trial.params.get(key, "-")) for key in short)]
        for trial in front
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
        table.add_row(*map(Text, row))  # Text, as brackets in values are not markup
    Console().print(table)
