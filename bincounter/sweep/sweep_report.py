"""Sweep.html with optuna.visualization figures."""

import logging
import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from markupsafe import Markup

from bincounter.report import page
from bincounter.sweep.search_results import (
    WORDS,
    Search,
    best_trials,
    completed,
    own_trials,
    saved,
    seconds,
    short_names,
    shortened,
    state,
    tally,
    written,
)

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial
    from plotly.graph_objects import Bar, Figure

log = logging.getLogger(__name__)


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
        "course": course(study, search.metrics),
        "parameters": parameters(study, search.metrics),
        "cost": cost(study),
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


# Colours of the light page; the style sheet turns plots over on the dark one.
_MUTED, _LINE, _ACCENT = "#646c75", "#e3e1db", "#1d62ad"
_STATES = {
    "completed": _ACCENT,
    "pruned": "#d9822b",
    "failed": "#c2413a",
    "running": "#3d9a6d",
    "waiting": "#8a8f98",
}
_COLOURS = [_ACCENT, "#d9822b", "#3d9a6d", "#a8509a", "#8a8f98", "#c2413a"]
# Plotly writes < so that it cannot end a script; what is left of it in names and values is no markup of Optuna's.
_MARK = re.compile(r"\\u003c(?!br\\u003e|(?:\\u002f)?extra\\u003e)")
_EARLY_TO_LATE = ["#b3c7de", "#0d4a8f"]
_HEIGHT, _SMALL = 340, 280  # pixels
_FEWEST = 5  # completed trials from which an importance says anything


@dataclass(frozen=True)
class Plot:
    """One plot, or the reason why there is none.

    Attributes:
        name: of the plot.
        figure: what plotly.js draws, as JSON that can stand in a page; ``None`` for none.
        note: what it shows, or why it does not.
        across: whether it takes the page's whole width.
    """

    name: str
    figure: Markup | None
    note: str = ""
    across: bool = False


def course(study: "Study", metrics: Sequence[str]) -> list[Plot]:
    """How the objectives went: by trial, by epoch where trials reported them, and against each other."""
    from optuna import visualization

    if not completed(study):
        return [Plot("History", None, "No trial has completed yet.")]
    plots = []
    for number, metric in enumerate(metrics):
        target = _target(number) if len(metrics) > 1 else None
        figure = _drawn(visualization.plot_optimization_history, study, target=target, target_name=metric)
        if figure is not None:
            figure.update_xaxes(dtick=_ones(len(own_trials(study))))
        note = "" if target else "One dot is a trial; the line is the best value so far."
        plots.append(_plot(f"History of {metric}", figure, note))
    if len(metrics) == 2:
        figure = _drawn(visualization.plot_pareto_front, study, target_names=list(metrics))
        if figure is not None:
            figure.data[0].marker = {"color": _STATES["waiting"]}
            figure.data[1].marker = {"color": _STATES["failed"], "size": 9}
        plots.append(_plot("Pareto front", figure, "Red dots are outdone by no other trial."))
    if any(trial.intermediate_values for trial in own_trials(study)):
        figure = _drawn(visualization.plot_intermediate_values, study)
        if figure is not None:
            longest = max(len(trial.intermediate_values) for trial in own_trials(study))
            figure.update_layout(xaxis_title="Epoch", yaxis_title=metrics[0], xaxis_dtick=_ones(longest))
            figure.update_traces(line_width=1.2, opacity=0.75)
        plots.append(_plot("As epochs ended", figure, "One line is a trial; pruned ones end early."))
    return plots


def parameters(study: "Study", metrics: Sequence[str]) -> list[Plot]:
    """How the objectives depend on what was searched: importance, parallel coordinates and slices."""
    if not completed(study):
        return [Plot("Importance", None, "No trial has completed yet.")]
    plots = [_importance(study, number, metric) for number, metric in enumerate(metrics)]
    plots += [_slice(study, key, number, metrics) for number in range(len(metrics)) for key in _keys(study)]
    return [*plots, _parallel(study, metrics)]


def cost(study: "Study") -> list[Plot]:
    """What the trials took: when they ran, for how long, and what they were billed."""
    from optuna import visualization

    trials = [trial for trial in own_trials(study) if seconds(trial) is not None]
    if not trials:
        return [Plot("Time", None, "No trial has ended yet.")]
    timeline = _drawn(visualization.plot_timeline, study)
    if timeline is not None:
        timeline.for_each_trace(_in_words)
        timeline.update_layout(xaxis_title=None, yaxis_dtick=_ones(len(trials)))
    plots = [_plot("Timeline", timeline, "When each trial ran.")]
    note = "Faint: what pruning saved, at the pace that the trial had." if any(map(saved, trials)) else ""
    plots.append(_plot("Time per trial", _bars(trials, "Seconds", seconds), note))
    if any("usd" in trial.user_attrs for trial in trials):
        figure = _bars(trials, "USD", lambda trial: trial.user_attrs.get("usd"))
        plots.append(_plot("Cost per trial", figure, "By the billed time of its jobs."))
    return plots


def _importance(study: "Study", number: int, metric: str) -> Plot:
    from optuna import visualization
    from optuna.importance import PedAnovaImportanceEvaluator

    name, trials, keys = f"Importance for {metric}", completed(study), _keys(study)
    if len(keys) < 2:
        return Plot(name, None, "One key was searched, so that there is nothing to compare it with.")
    if len(trials) < _FEWEST:
        return Plot(name, None, f"It takes {_FEWEST} completed trials or more to tell which key matters.")
    if len({trial.values[number] for trial in trials}) == 1:
        return Plot(name, None, f"All trials came to the same {metric}, so that no key matters.")
    # PED-ANOVA (arXiv:2304.10255) asks what the best trials have in common; it wants some 5 of them.
    evaluator = PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, 5 / len(trials))))
    target = None
    if len(study.directions) > 1:  # of a target, lower is taken for better
        sign = -1 if study.directions[number].name == "MAXIMIZE" else 1
        target = _target(number, sign)
    figure = _drawn(visualization.plot_param_importances, study, evaluator=evaluator, target=target, target_name=metric)
    if figure is not None:
        short = short_names(keys)
        figure.update_yaxes(title=None, tickvals=keys, ticktext=[short[key] for key in keys])
        figure.update_xaxes(title=None, range=[0, 1.12])
        figure.update_traces(marker_color=_ACCENT)
    note = "How far the best trials differ from all in a key (PED-ANOVA); shares of 1."
    return _plot(name, figure, note, height=_SMALL)


def _parallel(study: "Study", metrics: Sequence[str]) -> Plot:
    from optuna import visualization

    figure = _drawn(visualization.plot_parallel_coordinate, study, target_name=metrics[0])
    if figure is not None:
        keys = sorted(_keys(study))
        short = short_names(keys)
        figure.update_xaxes(
            ticktext=[*metrics, *(short[key] for key in keys)], range=[-0.3, len(metrics) + len(keys) - 0.8]
        )
        figure.for_each_annotation(lambda annotation: annotation.update(text=shortened(annotation.text)))
        figure.update_traces(opacity=0.8, selector={"mode": "lines"})
    return _plot("Parallel coordinates", figure, "One line is a completed trial.", across=True)


def _slice(study: "Study", key: str, number: int, metrics: Sequence[str]) -> Plot:
    from optuna import visualization

    target = _target(number) if len(metrics) > 1 else None
    figure = _drawn(visualization.plot_slice, study, params=[key], target=target, target_name=metrics[number])
    if figure is not None:
        distribution = next(trial.distributions[key] for trial in completed(study) if key in trial.params)
        figure.update_xaxes(title=None, **_ticks(figure, distribution))
        figure.update_traces(marker_showscale=False, marker_size=8, marker_colorscale=_EARLY_TO_LATE)
    return _plot(key, figure, "The stronger a dot, the later its trial.", height=_SMALL)


def _ticks(figure: "Figure", distribution: "BaseDistribution") -> dict[str, Any]:
    """Where the axis of a searched key has ticks: no longer than readable, and none between whole numbers."""
    from optuna.distributions import IntDistribution

    axis = figure.layout.xaxis
    if axis.categoryarray:
        return {"tickvals": axis.categoryarray, "ticktext": [shortened(name) for name in axis.categoryarray]}
    if axis.type == "log":
        return {"dtick": "D2"}  # 2 and 5 of each decade
    return {"dtick": _ones(distribution.high - distribution.low)} if isinstance(distribution, IntDistribution) else {}


def _ones(numbers: int) -> int | None:
    """The distance of ticks on an axis of few whole numbers; Plotly would put some between them."""
    return 1 if numbers <= 10 else None


def _bars(trials: "Sequence[FrozenTrial]", unit: str, value: "Callable[[FrozenTrial], float | None]") -> "Figure":
    from plotly import graph_objects as go

    figure = go.Figure()
    for word, colour in _STATES.items():
        some = [trial for trial in trials if state(trial) == word]
        if some:
            bar = go.Bar(x=[t.number for t in some], y=[value(t) for t in some], name=word, marker_color=colour)
            figure.add_trace(bar)
    spared = [trial for trial in trials if saved(trial)]
    if spared and unit == "Seconds":
        heights = [saved(trial) for trial in spared]
        numbers = [trial.number for trial in spared]
        figure.add_trace(go.Bar(x=numbers, y=heights, name="saved", marker_color=_STATES["pruned"], opacity=0.35))
    figure.update_layout(
        barmode="stack", xaxis_title="Trial", xaxis_dtick=_ones(len(trials)), yaxis_title=unit, showlegend=True
    )
    return figure


def _in_words(trace: "Bar") -> None:
    """Give the bars of one state, as Optuna names it, our name and colour for it."""
    word = WORDS.get(trace.name, trace.name)
    trace.update(name=word, marker_color=_STATES.get(word, _MUTED), hovertemplate=f"%{{text}}<extra>{word}</extra>")


def _target(number: int, sign: int = 1) -> "Callable[[FrozenTrial], float]":
    return lambda trial: sign * trial.values[number]


def _keys(study: "Study") -> list[str]:
    return list(dict.fromkeys(key for trial in completed(study) for key in trial.params))


def _drawn(draw: "Callable[..., Figure]", study: "Study", **options: object) -> "Figure | None":
    """One of Optuna's plots; a page must not fail with the one that it cannot draw."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is done here on purpose, and of experimental features
            return draw(study, **options)
    except Exception as error:
        log.warning("sweep.html goes without %s: %s", draw.__name__.removeprefix("plot_"), error)
        return None


def _plot(name: str, figure: "Figure | None", note: str = "", *, height: int = _HEIGHT, across: bool = False) -> Plot:
    """Set a figure as the page sets its text."""
    if figure is None:
        return Plot(name, None, "Optuna could not draw this.")
    figure.update_layout(
        template="none",
        title=None,
        autosize=True,
        width=None,
        height=height,
        margin={"l": 8, "r": 8, "t": 30, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": _MUTED},
        colorway=_COLOURS,
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
    )
    figure.update_xaxes(gridcolor=_LINE, zeroline=False, automargin=True, title_standoff=8)
    figure.update_yaxes(gridcolor=_LINE, zeroline=False, automargin=True, title_standoff=8)
    return Plot(name, Markup(_MARK.sub("&lt;", figure.to_json())), note, across)
