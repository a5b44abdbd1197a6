"""``sweep.html``: a search on one page that opens anywhere; the best trial on top, plots, every trial below."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from markupsafe import Markup

from bincounter.inspect import page
from bincounter.sweep import plots
from bincounter.sweep.results import (
    best_trials,
    completed,
    own_trials,
    saved,
    seconds,
    short_names,
    state,
    tally,
    written,
)
from bincounter.sweep.summary import Search

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_OPTIONAL = {"seconds": "Time", "billed_seconds": "Billed", "usd": "USD", "saved_seconds": "Saved", "error": "Error"}


def write_page(path: Path, study: "Study", search: Search) -> None:
    """Write the page of a search, whole or not at all.

    Args:
        path: of the page; links to the runs' reports are relative to it.
        study: finished or not, on any storage.
        search: what the study does not know of itself.
    """
    from plotly.offline import get_plotlyjs

    best, trials = best_trials(study), own_trials(study)
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    content: dict[str, object] = {
        "title": search.title,
        "kicker": f"bincounter search · {search.title}",
        "headline": _headline(best, study, search),
        "lead": _lead(study),
        "footer": "Made by bincounter with Optuna's plots. This file needs no network.",
        "plotly": Markup(get_plotlyjs()),
        "metrics": search.metrics,
        "keys": keys,
        "short": short_names(keys),
        "best": [{**_row(trial, keys, path), "command": search.command(trial.params)} for trial in best],
        "course": plots.course(study, search.metrics),
        "parameters": plots.parameters(study, search.metrics),
        "cost": plots.cost(study),
        "columns": _columns(trials),
        "trials": [_row(trial, keys, path) for trial in trials],
    }
    page.write_page(path, "sweep.html", content, package="bincounter.sweep")


def _headline(best: "Sequence[FrozenTrial]", study: "Study", search: Search) -> str:
    if not best:
        return "No trial has completed"
    among = len(completed(study))
    if len(search.metrics) > 1:
        return f"{len(best)} of {among} completed trials outdone by no other"
    only = "the only one completed" if among == 1 else f"the best of {among} completed"
    return f"{search.metrics[0]} {best[0].value:.4g} by trial {best[0].number}, {only}"


def _lead(study: "Study") -> str:
    trials = own_trials(study)
    spent = sum(seconds(trial) or 0 for trial in trials)
    spared = sum(map(saved, trials))
    usd = sum(trial.user_attrs.get("usd", 0) for trial in trials)
    sentences = [f"{tally(study)}."]
    if spent:
        sentences.append(f"They took {_duration(spent)}{f', and pruning saved {_duration(spared)}' if spared else ''}.")
    if usd:
        sentences.append(f"They cost {usd:.2f} USD.")
    return " ".join(sentences)


def _columns(trials: "Sequence[FrozenTrial]") -> dict[str, str]:
    """What beside values and parameters there is to say about any of the trials: name to heading."""
    told = {name for trial in trials for name in trial.user_attrs}
    if any(seconds(trial) is not None for trial in trials):
        told.add("seconds")
    return {name: heading for name, heading in _OPTIONAL.items() if name in told}


def _row(trial: "FrozenTrial", keys: Sequence[str], path: Path) -> dict[str, object]:
    told = trial.user_attrs
    times = {
        "seconds": seconds(trial),
        "billed_seconds": told.get("billed_seconds"),
        "saved_seconds": saved(trial) or None,
    }
    return {
        "number": trial.number,
        "state": state(trial),
        "report": _report(trial, path),
        "scores": [f"{value:.5g}" for value in trial.values or ()],
        "params": [written(trial.params[key]) if key in trial.params else "" for key in keys],
        **{name: "" if value is None else _duration(value) for name, value in times.items()},
        "usd": f"{told['usd']:.4f}" if "usd" in told else "",
        "error": told.get("error", ""),
    }


def _report(trial: "FrozenTrial", path: Path) -> str | None:
    """Where the page finds the report of a trial's run, even after its folder has moved together with the page."""
    told = trial.user_attrs.get("folder")
    for folder in ([Path(told)] if told else []) + [path.parent / str(trial.number)]:
        if (folder / "report.html").is_file():
            return quote(os.path.relpath(folder / "report.html", path.parent))
    return None


def _duration(length: float) -> str:
    """Seconds in the unit that suits them."""
    if length < 60:
        return f"{length:.1f} s"
    minutes, rest = divmod(round(length), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
