"""Plots of a search as inline SVG, in the colours of the reports.

The accent colour marks the best trials: the best and its ties, or the Pareto front. All others are grey.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bincounter.number_format import is_fraction, score_heading
from bincounter.report.plots import (
    ACCENT,
    ERROR,
    INK,
    LINE,
    MUTED,
    RC,
    SIZE,
    SURFACE,
    canvas,
    percent_tick,
    to_svg,
    whole_numbers,
)
from bincounter.sweep.search_results import format_value, shorten, state

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    Trials = Sequence[FrozenTrial]

_MOST_TICKS = 8  # labelled values of a choice
_LONGEST = 12  # characters of a value below an axis
_MOST_MARKS = 100  # trials of a timeline; markers of more would hide the bars
_TITLES = 90  # characters of all titles of parallel axes; longer ones are slanted
_BARS: dict[str, tuple[str, str]] = {"completed": (ACCENT, ""), "pruned": (MUTED, ""), "failed": (ERROR, "x")}
"""Colour of a state's bars in the timeline, and the marker at their end."""


def history(trials: "Trials", number: int, metric: str, best: Collection[int], *, maximize: bool) -> Markup:
    """Draw an objective by trial, and its best value so far.

    Args:
        trials: completed trials by number.
        number: index of the objective.
        metric: its name.
        best: numbers of the best trials.
        maximize: higher is better.
    """
    values = np.array([trial.values[number] for trial in trials])
    x = [trial.number for trial in trials]
    with mpl.rc_context(RC):
        figure, axes = _axes("Trial", metric)
        so_far = np.maximum.accumulate(values) if maximize else np.minimum.accumulate(values)
        axes.step(x, so_far, where="post", color=INK, linewidth=1, linestyle=(0, (3, 3)))
        _dots(axes, x, values, trials, best)
        whole_numbers(axes, x)
        return to_svg(figure, f"{metric} by trial")


def front(trials: "Trials", metrics: Sequence[str], best: Collection[int]) -> Markup:
    """Draw two objectives against each other."""
    x, y = np.array([trial.values for trial in trials]).T
    with mpl.rc_context(RC):
        figure, axes = _axes(score_heading(metrics[0]), metrics[1])
        _dots(axes, x, y, trials, best)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if is_fraction(metrics[0]):
            axes.xaxis.set_major_formatter(percent_tick)
        return to_svg(figure, "Pareto front")


def epochs(trials: "Trials", metric: str, best: Collection[int]) -> Markup:
    """Draw the intermediate values of trials; those of pruned ones end in a cross."""
    with mpl.rc_context(RC):
        figure, axes = _axes("Epoch", metric)
        steps: set[int] = set()
        for trial in sorted(trials, key=lambda trial: trial.number in best):  # the best are drawn last, on top
            points = [(x, y) for x, y in sorted(trial.intermediate_values.items()) if math.isfinite(y)]
            if not points:
                continue
            x, y = zip(*points, strict=True)
            is_best = trial.number in best
            axes.plot(x, y, color=ACCENT if is_best else MUTED, linewidth=1.6 if is_best else 0.8)
            ends = {"pruned": "x", "failed": "x"}.get(state(trial), "o")
            axes.plot(x[-1:], y[-1:], ends, color=ACCENT if is_best else MUTED, markersize=3.2)
            steps |= set(x)
        whole_numbers(axes, sorted(steps) or [1])
        return to_svg(figure, f"{metric} by epoch")


def importance(shares: Mapping[str, float], metric: str) -> Markup:
    """Draw the importance of parameters, each 0-1, the largest on top."""
    with mpl.rc_context(RC):
        figure = Figure(figsize=(SIZE[0], 0.45 * len(shares) + 0.3), layout="constrained")
        axes = figure.subplots()
        axes.barh(range(len(shares)), list(shares.values()), height=0.35, color=ACCENT)
        for row, (key, share) in enumerate(shares.items()):
            axes.annotate(f"{key}  {percent_tick(round(share, 2))}", (0, row - 0.28), size=8.5, va="bottom")
        axes.set(xlim=(0, max(*shares.values(), 0.01)), ylim=(len(shares) - 0.5, -0.8), xticks=[], yticks=[])
        axes.spines["bottom"].set_visible(False)
        return to_svg(figure, f"Importance for {metric}")


def slice_(
    trials: "Trials", number: int, metric: str, key: str, space: "BaseDistribution", best: Collection[int]
) -> Markup:
    """Draw an objective against a parameter."""
    some = [trial for trial in trials if key in trial.params]
    scale = _Scale([trial.params[key] for trial in some], space)
    with mpl.rc_context(RC):
        figure, axes = _axes("", metric)
        _dots(axes, scale.place, [trial.values[number] for trial in some], some, best)
        axes.set_xlim(-0.06, 1.06)
        axes.set_xticks([at for at, _ in scale.ticks], [text for _, text in scale.ticks])
        return to_svg(figure, f"{metric} against {key}")


def parallel(
    trials: "Trials", metric: str, space: "Mapping[str, BaseDistribution]", names: Mapping[str, str], best: set[int]
) -> Markup:
    """Draw each completed trial as a line over its parameters and the first objective.

    Args:
        trials: completed trials.
        metric: name of the first objective.
        space: distributions by parameter; only trials with all of them are drawn.
        names: short names of the parameters.
        best: numbers of the best trials.
    """
    some = [trial for trial in trials if set(space) <= set(trial.params)]
    scales = [_Scale([trial.params[key] for trial in some], each) for key, each in space.items()]
    scales.append(_Scale([trial.values[0] for trial in some], None, percent=is_fraction(metric)))
    with mpl.rc_context(RC):
        figure = Figure(figsize=(2 * SIZE[0], 1.2 * SIZE[1]), layout="constrained")
        axes = figure.subplots()
        for row in sorted(range(len(some)), key=lambda row: some[row].number in best):
            is_best = some[row].number in best
            places = [scale.place[row] for scale in scales]
            axes.plot(places, color=ACCENT if is_best else MUTED, linewidth=1.6 if is_best else 0.8)
        for at, scale in enumerate(scales):
            axes.axvline(at, color=LINE, linewidth=1, zorder=0)
            for height, text in scale.ticks:
                note = axes.annotate(text, (at, height), (4, 0), textcoords="offset points", va="center", size=8)
                note.set_bbox({"facecolor": SURFACE, "edgecolor": "none", "alpha": 0.85, "pad": 0.6})
        titles = [*(names[key] for key in space), score_heading(metric)]
        crowded = sum(map(len, titles)) > _TITLES
        axes.set_xticks(range(len(scales)), titles, rotation=20 if crowded else 0, ha="right" if crowded else "center")
        axes.set(xlim=(-0.1, len(scales) - 0.6), ylim=(-0.06, 1.06), yticks=[])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="x", length=0)
        return to_svg(figure, "Parallel coordinates")


def timeline(trials: "Trials") -> Markup:
    """Draw the start and end of each trial."""
    started = [trial for trial in trials if trial.datetime_start]
    first = min(trial.datetime_start for trial in started if trial.datetime_start)
    last = max(filter(None, (trial.datetime_complete or trial.datetime_start for trial in started)))
    scale, unit = (60, "Minutes") if (last - first).total_seconds() < 3 * 3600 else (3600, "Hours")

    def at(moment: datetime) -> float:
        return (moment - first).total_seconds() / scale

    with mpl.rc_context(RC):
        figure, axes = canvas(f"{unit} since the first trial began")
        figure.set_size_inches(2 * SIZE[0], SIZE[1])
        least = at(last) / 200  # keeps the shortest trials visible
        for trial in started:
            colour, end = _BARS.get(state(trial), (INK, ">"))
            begun = at(trial.datetime_start or first)
            length = max(at(trial.datetime_complete or last) - begun, least)
            axes.barh(trial.number, length, left=begun, height=0.6, color=colour)
            if end and len(started) <= _MOST_MARKS:
                axes.plot([begun + length], [trial.number], end, color=colour, markersize=4)
        axes.set_ylabel("Trial")
        axes.set_xlim(left=0)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        return to_svg(figure, "Timeline of the trials")


class _Scale:
    """Positions of a parameter's values on an axis, 0-1, and its ticks.

    Attributes:
        place: position of each value.
        ticks: ``(position, label)`` of each tick.
    """

    def __init__(self, values: Sequence[Any], space: "BaseDistribution | None", *, percent: bool = False) -> None:
        if hasattr(space, "choices"):
            known = list(dict.fromkeys(map(format_value, values)))
            order = [text for text in map(format_value, space.choices) if text in known]  # type: ignore[union-attr]
            where = {text: (row + 0.5) / len(order) for row, text in enumerate(order)}
            self.place = [where[format_value(value)] for value in values]
            step = -(-len(order) // _MOST_TICKS)
            self.ticks = [(where[text], shorten(text, _LONGEST)) for text in order[::step]]
            return
        numbers = np.array(values, dtype=float)
        log = getattr(space, "log", False) and numbers.min() > 0
        scaled = np.log(numbers) if log else numbers
        low, high = scaled.min(), scaled.max()
        span = (high - low) or 1.0
        self.place = ((scaled - low) / span if high > low else np.full(len(numbers), 0.5)).tolist()
        marks = _log_ticks(numbers.min(), numbers.max()) if log else MaxNLocator(4).tick_values(low, high)
        marks = [mark for mark in marks if numbers.min() <= mark <= numbers.max()] or [numbers.min()]
        if bool(np.all(numbers == numbers.round())) and not log and low < high:
            marks = [mark for mark in marks if mark == round(mark)] or [low, high]
        placed = [(float(np.log(mark) if log else mark) - low) / span if high > low else 0.5 for mark in marks]
        texts = [percent_tick(mark) if percent else f"{mark:.3g}" for mark in marks]
        self.ticks = list(zip(placed, texts, strict=True))


def _log_ticks(low: float, high: float) -> list[float]:
    """Return the powers of ten; if there are fewer than two, both ends, and a power whose label has room between."""
    powers = [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    if len(powers) > 1 or low == high:
        return powers if len(powers) > 1 else [low]
    room = 0.2 * math.log(high / low)
    return [low, *(power for power in powers if min(math.log(power / low), math.log(high / power)) > room), high]


def _axes(xlabel: str, metric: str) -> tuple[Figure, Axes]:
    figure, axes = canvas(xlabel, percent=is_fraction(metric))
    axes.margins(x=0.04, y=0.1)
    return figure, axes


def _dots(
    axes: Axes,
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    trials: "Trials",
    best: Collection[int],
) -> None:
    """Draw a dot for each trial, the best ones larger and on top."""
    is_best = np.array([trial.number in best for trial in trials], dtype=bool)
    for some, colour, size in ((~is_best, MUTED, 12), (is_best, ACCENT, 22)):
        axes.scatter(np.asarray(x)[some], np.asarray(y)[some], s=size, color=colour, linewidths=0, zorder=3)
