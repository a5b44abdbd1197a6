"""Page ``sweep.html``: headline, ties, plots, and the table of trials."""

import json
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from markupsafe import Markup

from bincounter.errors import UserError
from bincounter.number_format import duration, format_score, score_heading, score_name
from bincounter.report import page
from bincounter.sweep import sweep_plots
from bincounter.sweep.search_results import (
    Search,
    Ties,
    best_trials,
    completed,
    format_tally,
    format_value,
    own_trials,
    run_folder,
    saved_seconds,
    seconds,
    short_names,
    state,
    ties,
)
from bincounter.training.results import SPLIT_OF_SIDE, read_metrics

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

RETRAINED, RETRAINED_TRIAL = "best", "best_trial.json"
"""Folder, inside the sweep's, of the best trial's retraining, and the file beside it with the trial's number."""

_FEWEST = 5  # completed trials for an importance
_OPTIONAL = {"seconds": "Time", "billed_seconds": "Billed", "usd": "USD", "saved_seconds": "Saved", "error": "Error"}


def write_page(path: Path, study: "Study", search: Search) -> None:
    """Write the page of a search atomically.

    Args:
        path: path of the page; links to the runs' reports are relative to it.
        study: the study, finished or not, on any storage.
        search: facts that are not in the study.
    """
    search = replace(search, folder=path.parent)
    best, trials, tied = best_trials(study), own_trials(study), ties(study, search)
    marks = dict.fromkeys(tied.numbers if tied else [], "tie") | {trial.number: "best" for trial in best}
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    content: dict[str, object] = {
        "title": search.title,
        "kicker": f"bincounter search · {search.title}",
        "headline": _headline(best, study, search),
        "lead": _lead(study, search, tied),
        "footer": "Made by bincounter. This file needs no network.",
        "metrics": [score_heading(metric) for metric in search.metrics],
        "keys": keys,
        "short": short_names(keys),
        "best": [{**_row(trial, keys, search, ""), "command": search.command(trial.params)} for trial in best],
        "retrained": _retrained(path.parent),
        "course": _history_plots(study, search.metrics, set(marks)),
        "parameters": _parameter_plots(study, search.metrics, set(marks)),
        "timeline": _timeline(study),
        "columns": _columns(trials),
        "trials": [_row(trial, keys, search, marks.get(trial.number, "")) for trial in trials],
    }
    page.write_page(path, "sweep.html", content, package="bincounter.sweep")


def _headline(best: "Sequence[FrozenTrial]", study: "Study", search: Search) -> str:
    if not best:
        return "No trial has completed"
    among = len(completed(study))
    if len(search.metrics) > 1:
        return f"{len(best)} of {among} completed trials are on the Pareto front"
    metric = search.metrics[0]
    rank = "the only completed trial" if among == 1 else f"the best of {among} completed trials"
    score = format_score(metric, best[0].values[0], unit=True)
    return f"Trial {best[0].number} is {rank}: {score_name(metric)} {score}"


def _lead(study: "Study", search: Search, tied: Ties | None) -> str:
    trials, best = own_trials(study), best_trials(study)
    spent = sum(seconds(trial) or 0 for trial in trials)
    saved = sum(map(saved_seconds, trials))
    usd = sum(trial.user_attrs.get("usd", 0) for trial in trials)
    sentences = []
    if best and len(search.metrics) == 1:
        params = best[0].params
        settings = ", ".join(f"{name} {format_value(params[key])}" for key, name in short_names(list(params)).items())
        sentences.append(f"Its settings: {settings}.")
        if tied:
            sentences.append(tied.describe(search.metrics[0], len(completed(study))))
    sentences.append(f"{format_tally(study)}.")
    if spent:
        sentences.append(f"They took {duration(spent)}{f', and pruning saved {duration(saved)}' if saved else ''}.")
    if usd:
        sentences.append(f"They cost {usd:.2f} USD.")
    return " ".join(sentences)


def _retrained(sweep: Path) -> dict[str, str] | None:
    """Return trial, link and scores of the best trial's retraining, if it has ended."""
    try:
        trial = json.loads((sweep / RETRAINED_TRIAL).read_text(encoding="utf-8"))["trial"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    try:
        scores = read_metrics(sweep / RETRAINED)
    except UserError as error:
        log.warning("%s", error)
        return None
    if not scores.keys() & {"test", "val"}:
        return None
    report = f"{RETRAINED}/report.html"
    side = "test" if scores.get("test") else "val"
    photos = f"{scores[side]['n']:,} {SPLIT_OF_SIDE[side]} photos"
    return {
        "trial": str(trial),
        "report": report if (sweep / report).is_file() else "",
        "scores": f"{score_name('accuracy')} {format_score('accuracy', scores[side]['accuracy'])} on {photos}",
    }


def _columns(trials: "Sequence[FrozenTrial]") -> dict[str, str]:
    """Return the optional columns with a value in any trial: name to heading."""
    attrs = {name for trial in trials for name in trial.user_attrs}
    if any(seconds(trial) is not None for trial in trials):
        attrs.add("seconds")
    return {name: heading for name, heading in _OPTIONAL.items() if name in attrs}


def _row(trial: "FrozenTrial", keys: Sequence[str], search: Search, mark: str) -> dict[str, object]:
    attrs = trial.user_attrs
    times = {
        "seconds": seconds(trial),
        "billed_seconds": attrs.get("billed_seconds"),
        "saved_seconds": saved_seconds(trial) or None,
    }
    scores = zip(search.metrics, trial.values or (), strict=False)
    return {
        "number": trial.number,
        "state": state(trial),
        "mark": mark,
        "report": _report(trial, search.folder),
        "scores": [format_score(metric, value) for metric, value in scores],
        "params": [format_value(trial.params[key]) if key in trial.params else "" for key in keys],
        **{name: "" if value is None else duration(value) for name, value in times.items()},
        "usd": f"{attrs['usd']:.4f}" if "usd" in attrs else "",
        "error": attrs.get("error", ""),
    }


def _report(trial: "FrozenTrial", sweep: Path | None) -> str | None:
    """Return the link to the report of a trial's run."""
    folder = run_folder(trial, sweep, "report.html")
    return quote(os.fsencode(os.path.relpath(folder / "report.html", sweep))) if folder else None


@dataclass(frozen=True)
class Plot:
    """A plot, or the reason for its absence.

    Attributes:
        name: title of the plot.
        figure: inline SVG, or ``None``.
        note: caption, or the reason.
        across: span the page's width.
    """

    name: str
    figure: Markup | None
    note: str = ""
    across: bool = False


def _history_plots(study: "Study", metrics: Sequence[str], best: set[int]) -> list[Plot]:
    """Plot the objectives by trial, by epoch if trials reported them, and two of them against each other."""
    trials = completed(study)
    if not trials:
        return [Plot("History", None, "No trial has completed yet.")]
    plots = []
    for number, metric in enumerate(metrics):
        maximize = study.directions[number].name == "MAXIMIZE"
        draw = partial(sweep_plots.history, trials, number, metric, best, maximize=maximize)
        plots.append(_drawn(score_heading(metric), draw, "Each dot is a trial; the dashed line is the best so far."))
    if len(metrics) == 2:
        draw = partial(sweep_plots.front, trials, metrics, best)
        plots.append(_drawn("Pareto front", draw, "No other trial is better in both metrics than a coloured one."))
    if any(trial.intermediate_values for trial in own_trials(study)):
        draw = partial(sweep_plots.epochs, own_trials(study), metrics[0], best)
        note = "Each line is a trial; pruned and failed ones end in a cross."
        plots.append(_drawn(f"{score_heading(metrics[0])} by epoch", draw, note))
    return plots


def _parameter_plots(study: "Study", metrics: Sequence[str], best: set[int]) -> list[Plot]:
    """Plot the objectives by parameter: importance, slices and parallel coordinates."""
    trials = completed(study)
    if not trials:
        return [Plot("Importance", None, "No trial has completed yet.")]
    space = {key: each for trial in trials for key, each in trial.distributions.items()}
    names = short_names(list(space))
    plots = [_importance(study, number, metric) for number, metric in enumerate(metrics)]
    for number, metric in enumerate(metrics):
        for key, distribution in space.items():
            draw = partial(sweep_plots.slice_, trials, number, metric, key, distribution, best)
            plots.append(_drawn(f"{score_heading(metric)} against {names[key]}", draw))
    draw = partial(sweep_plots.parallel, trials, metrics[0], space, names, best)
    return [*plots, _drawn("Parallel coordinates", draw, "Each line is a completed trial.", across=True)]


def _importance(study: "Study", number: int, metric: str) -> Plot:
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    name, trials = f"Importance for {score_name(metric)}", completed(study)
    if len({key for trial in trials for key in trial.params}) < 2:
        return Plot(name, None, "Only one parameter was searched.")
    if len(trials) < _FEWEST:
        return Plot(name, None, f"Importance needs {_FEWEST} completed trials or more.")
    if len({trial.values[number] for trial in trials}) == 1:
        return Plot(name, None, f"All trials have the same {score_name(metric)}.")
    # PED-ANOVA (arXiv:2304.10255) compares the best trials to all; it needs about 5 of them.
    evaluator = PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, 5 / len(trials))))
    sign = -1 if study.directions[number].name == "MAXIMIZE" else 1  # Optuna minimises a target
    target = None if len(study.directions) == 1 else lambda trial: sign * trial.values[number]

    def draw() -> Markup:
        return sweep_plots.importance(get_param_importances(study, evaluator=evaluator, target=target), metric)

    return _drawn(name, draw, "How far the best trials differ from all in a parameter (PED-ANOVA), as shares.")


def _timeline(study: "Study") -> Plot:
    if not any(seconds(trial) is not None for trial in own_trials(study)):
        return Plot("Timeline", None, "No trial has ended yet.")
    draw = partial(sweep_plots.timeline, own_trials(study))
    return _drawn("Timeline", draw, "When each trial ran; a cross ends a failed one.", across=True)


def _drawn(name: str, draw: Callable[[], Markup], note: str = "", *, across: bool = False) -> Plot:
    """Draw a plot, or put a note in its place if that fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental features, and glyphs missing in matplotlib's font
            return Plot(name, draw(), note, across)
    except Exception as error:
        log.warning("sweep.html lacks the plot %r: %s", name, error)
        return Plot(name, None, "This could not be drawn.")
