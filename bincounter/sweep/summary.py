"""The end of a search on screen: the best trial, and the command that trains it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bincounter.sweep.results import best_trials, own_trials, saved, short_names, tally, written

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


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
