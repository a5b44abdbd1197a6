"""The page ``sweep.html``: headline, table of trials, and the figures of optuna.visualization."""

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from markupsafe import Markup

from bincounter.report import page
from bincounter.sweep.search_results import (
    Search,
    best_trials,
    completed,
    format_tally,
    format_value,
    own_trials,
    saved_seconds,
    seconds,
    short_names,
    state,
)

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial
    from plotly.graph_objects import Figure

log = logging.getLogger(__name__)

_FEWEST = 5  # completed trials that an importance needs
_OPTIONAL = {"seconds": "Time", "billed_seconds": "Billed", "usd": "USD", "saved_seconds": "Saved", "error": "Error"}


def write_page(path: Path, study: "Study", search: Search) -> None:
    """Write the page of a search atomically.

    Args:
        path: of the page; links to the runs' reports are relative to it.
        study: finished or not, on any storage.
        search: facts that the study lacks.
    """
    from plotly.offline import get_plotlyjs

    best, trials = best_trials(study), own_trials(study)
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    content: dict[str, object] = {
        "title": search.title,
        "kicker": f"bincounter search · {search.title}",
        "headline": _headline(best, study, search),
        "lead": _lead(study),
        "footer": "Made by bincounter with Optuna's plots. This file works offline.",
        "plotly": Markup(get_plotlyjs()),
        "metrics": search.metrics,
        "keys": keys,
        "short": short_names(keys),
        "best": [{**_row(trial, keys, path), "command": search.command(trial.params)} for trial in best],
        "course": _course(study, search.metrics),
        "parameters": _parameters(study, search.metrics),
        "timeline": _timeline(study),
        "columns": _columns(trials),
        "trials": [_row(trial, keys, path) for trial in trials],
    }
    page.write_page(path, "sweep.html", content, package="bincounter.sweep")


def _headline(best: "Sequence[FrozenTrial]", study: "Study", search: Search) -> str:
    if not best:
        return "No trial has completed"
    among = len(completed(study))
    if len(search.metrics) > 1:
        return f"{len(best)} of {among} completed trials are on the Pareto front"
    only = "the only completed trial" if among == 1 else f"the best of {among} completed trials"
    return f"{search.metrics[0]} {best[0].value:.4g} by trial {best[0].number}, {only}"


def _lead(study: "Study") -> str:
    trials = own_trials(study)
    spent = sum(seconds(trial) or 0 for trial in trials)
    spared = sum(map(saved_seconds, trials))
    usd = sum(trial.user_attrs.get("usd", 0) for trial in trials)
    sentences = [f"{format_tally(study)}."]
    if spent:
        sentences.append(f"They took {_duration(spent)}{f', and pruning saved {_duration(spared)}' if spared else ''}.")
    if usd:
        sentences.append(f"They cost {usd:.2f} USD.")
    return " ".join(sentences)


def _columns(trials: "Sequence[FrozenTrial]") -> dict[str, str]:
    """Return the columns beside values and parameters that any trial fills: name to heading."""
    attrs = {name for trial in trials for name in trial.user_attrs}
    if any(seconds(trial) is not None for trial in trials):
        attrs.add("seconds")
    return {name: heading for name, heading in _OPTIONAL.items() if name in attrs}


def _row(trial: "FrozenTrial", keys: Sequence[str], path: Path) -> dict[str, object]:
    attrs = trial.user_attrs
    times = {
        "seconds": seconds(trial),
        "billed_seconds": attrs.get("billed_seconds"),
        "saved_seconds": saved_seconds(trial) or None,
    }
    return {
        "number": trial.number,
        "state": state(trial),
        "report": _report(trial, path),
        "scores": [f"{value:.5g}" for value in trial.values or ()],
        "params": [format_value(trial.params[key]) if key in trial.params else "" for key in keys],
        **{name: "" if value is None else _duration(value) for name, value in times.items()},
        "usd": f"{attrs['usd']:.4f}" if "usd" in attrs else "",
        "error": attrs.get("error", ""),
    }


def _report(trial: "FrozenTrial", path: Path) -> str | None:
    """Return the link to the report of a trial's run, also after the sweep's folder was moved."""
    attrs = trial.user_attrs.get("folder")
    for folder in ([Path(attrs)] if attrs else []) + [path.parent / str(trial.number)]:
        if (folder / "report.html").is_file():
            return quote(os.path.relpath(folder / "report.html", path.parent))
    return None


def _duration(length: float) -> str:
    """Format seconds, such as ``3 min 05 s``."""
    if length < 60:
        return f"{length:.1f} s"
    minutes, rest = divmod(round(length), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


@dataclass(frozen=True)
class Plot:
    """One plot, or the reason for its absence.

    Attributes:
        name: of the plot.
        figure: HTML that draws it with the page's plotly.js; ``None`` for none.
        note: caption.
        across: whether it spans the page's width.
    """

    name: str
    figure: Markup | None
    note: str = ""
    across: bool = False


def _course(study: "Study", metrics: Sequence[str]) -> list[Plot]:
    """The objectives by trial, by epoch where trials reported them, and against each other."""
    from optuna import visualization

    if not completed(study):
        return [Plot("History", None, "No trial has completed yet.")]
    plots = []
    for number, metric in enumerate(metrics):
        target = _target(number) if len(metrics) > 1 else None
        figure = _drawn(visualization.plot_optimization_history, study, target=target, target_name=metric)
        note = "" if target else "Each dot is a trial; the line is the best value so far."
        plots.append(_plot(f"History of {metric}", figure, note))
    if len(metrics) == 2:
        figure = _drawn(visualization.plot_pareto_front, study, target_names=list(metrics))
        plots.append(_plot("Pareto front", figure, "No other trial is better in both metrics."))
    if any(trial.intermediate_values for trial in own_trials(study)):
        figure = _drawn(visualization.plot_intermediate_values, study)
        if figure is not None:
            figure.update_layout(xaxis_title="Epoch", yaxis_title=metrics[0])
        plots.append(_plot("Metric by epoch", figure, "Each line is a trial; pruned ones end early."))
    return plots


def _parameters(study: "Study", metrics: Sequence[str]) -> list[Plot]:
    """How the objectives depend on the parameters: importance, slices and parallel coordinates."""
    from optuna import visualization

    if not completed(study):
        return [Plot("Importance", None, "No trial has completed yet.")]
    plots = [_importance(study, number, metric) for number, metric in enumerate(metrics)]
    for number, metric in enumerate(metrics):
        target = _target(number) if len(metrics) > 1 else None
        figure = _drawn(visualization.plot_slice, study, target=target, target_name=metric)
        plots.append(_plot(f"Slices of {metric}", figure, "The darker a dot, the later its trial.", across=True))
    figure = _drawn(visualization.plot_parallel_coordinate, study, target_name=metrics[0])
    return [*plots, _plot("Parallel coordinates", figure, "Each line is a completed trial.", across=True)]


def _importance(study: "Study", number: int, metric: str) -> Plot:
    from optuna import visualization
    from optuna.importance import PedAnovaImportanceEvaluator

    name, trials = f"Importance for {metric}", completed(study)
    if len({key for trial in trials for key in trial.params}) < 2:
        return Plot(name, None, "Only one parameter was searched.")
    if len(trials) < _FEWEST:
        return Plot(name, None, f"Importance needs {_FEWEST} completed trials or more.")
    if len({trial.values[number] for trial in trials}) == 1:
        return Plot(name, None, f"All trials have the same {metric}.")
    # PED-ANOVA (arXiv:2304.10255) compares the best trials to all; it needs about 5 of them.
    evaluator = PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, 5 / len(trials))))
    target = None
    if len(study.directions) > 1:  # Optuna minimises a target
        target = _target(number, -1 if study.directions[number].name == "MAXIMIZE" else 1)
    figure = _drawn(visualization.plot_param_importances, study, evaluator=evaluator, target=target, target_name=metric)
    return _plot(name, figure, "How far the best trials differ from all in a parameter (PED-ANOVA); shares of 1.")


def _timeline(study: "Study") -> Plot:
    from optuna import visualization

    if not any(seconds(trial) is not None for trial in own_trials(study)):
        return Plot("Timeline", None, "No trial has ended yet.")
    return _plot("Timeline", _drawn(visualization.plot_timeline, study), "When each trial ran.", across=True)


def _target(number: int, sign: int = 1) -> "Callable[[FrozenTrial], float]":
    return lambda trial: sign * trial.values[number]


def _drawn(draw: "Callable[..., Figure]", study: "Study", **options: object) -> "Figure | None":
    """Return a plot of Optuna; ``None`` if it fails, so that the page is still written."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of experimental features and of several objectives
            return draw(study, **options)
    except Exception as error:
        log.warning("sweep.html lacks the plot %s: %s", draw.__name__.removeprefix("plot_"), error)
        return None


def _plot(name: str, figure: "Figure | None", note: str, *, across: bool = False) -> Plot:
    if figure is None:
        return Plot(name, None, "Optuna could not draw this.")
    figure.update_layout(
        template="plotly_white",
        title=None,
        height=360,
        margin={"l": 8, "r": 8, "t": 30, "b": 8},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    html = figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True})
    return Plot(name, Markup(html), note, across)
