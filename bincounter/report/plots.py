"""Plots as inline SVG: drawn by Matplotlib, with colours and fonts of the page's style sheet."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Placeholders for variables of the style sheet, so that one plot fits the light and the dark page.
INK, MUTED, LINE, ACCENT, SURFACE, ERROR = "#010a01", "#020a02", "#030a03", "#040a04", "#050a05", "#060a06"
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", ACCENT: "accent", SURFACE: "surface", ERROR: "error"}
SIZE = (3.9, 2.45)  # inches: three side by side on a desktop, one on a phone, with text near its nominal size on both
# Colours of the splits, on every page; keys of plots take them from the style sheet's classes of the same names.
_COLOURS = {"train": MUTED, "validation": ACCENT, "test": INK}
_DASHES: dict[str, Any] = {"test": (0, (3, 3))}

RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}

Points = Sequence[tuple[float, float]]


def lines(
    series: Mapping[str, Points], *, xlabel: str, label: str, percent: bool = False, baseline: float | None = None
) -> Markup:
    """Draw up to two lines: a split in its colour; else the last in the accent colour, the one before in grey.

    Args:
        series: split or other name to points ``(x, y)``.
        xlabel: label of x.
        label: description for screen readers.
        percent: format y, a fraction, in per cent.
        baseline: a dashed level to compare with.
    """
    with mpl.rc_context(RC):
        figure, axes = canvas(xlabel, percent)
        for (name, points), colour in zip(reversed(list(series.items())), (ACCENT, MUTED), strict=False):
            x, y = np.array(points, dtype=float).T
            marker = "o" if len(x) < 16 else ""
            axes.plot(x, y, color=_COLOURS.get(name, colour), marker=marker, markersize=3.2)
        if baseline is not None:
            axes.axhline(baseline, color=INK, linewidth=1, linestyle=(0, (3, 3)))
        axes.margins(x=0.03, y=0.12)
        whole_numbers(axes, [x for points in series.values() for x, _ in points])
        return to_svg(figure, label)


def reliability(bins: Sequence[Mapping[str, float]], *, label: str) -> Markup:
    """Draw accuracy against confidence (Guo et al. 2017, arXiv:1706.04599); a dot's area is its share of photos."""
    kept = [each for each in bins if each["n"]]
    confidence, accuracy, photos = (np.array([each[name] for each in kept]) for name in ("confidence", "accuracy", "n"))
    with mpl.rc_context(RC):
        figure, axes = canvas("Confidence", percent=True)
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (3, 3)))
        axes.vlines(confidence, np.minimum(confidence, accuracy), np.maximum(confidence, accuracy), color=ACCENT, lw=1)
        size = 14 + 160 * photos / photos.sum()
        axes.scatter(confidence, accuracy, s=size, color=ACCENT, linewidths=0, clip_on=False, zorder=3)
        axes.set(xlim=(0, 1.04), ylim=(0, 1.06), xticks=np.linspace(0, 1, 6), yticks=np.linspace(0, 1, 6))
        axes.xaxis.set_major_formatter(FuncFormatter(percent_tick))
        return to_svg(figure, label)


def kept_accuracy(rows: Sequence[Mapping[str, float]], *, label: str) -> Markup:
    """Draw the accuracy of the most confident photos against their share, see :func:`bincounter.model.scores.score`."""
    share, accuracy = (np.array([row[name] for row in rows]) for name in ("coverage", "accuracy"))
    with mpl.rc_context(RC):
        figure, axes = canvas("Share of photos kept", percent=True)
        axes.axhline(accuracy[-1], color=INK, linewidth=1, linestyle=(0, (3, 3)))
        axes.plot(share, accuracy, color=ACCENT)
        axes.set(xlim=(0, 1.04), ylim=(0, 1.06), xticks=np.linspace(0, 1, 6), yticks=np.linspace(0, 1, 6))
        axes.xaxis.set_major_formatter(FuncFormatter(percent_tick))
        return to_svg(figure, label)


def found_errors(
    checks: Sequence[int], found: Sequence[float], ends: Sequence[tuple[int, int]], *, stop: int | None, label: str
) -> Markup:
    """Draw the wrong records that checks are expected to find, with their interval and those of a random order.

    Args:
        checks: ascending numbers of checks, the last of all records ``[N]``.
        found: expected number of wrong records ``[N]``.
        ends: of the intervals ``[N]``.
        stop: checks that are worth their cost, ``None`` without costs.
        label: description for screen readers.
    """
    low, high = np.array(ends, dtype=float).T
    with mpl.rc_context(RC):
        figure, axes = canvas("Checks")
        axes.fill_between(checks, low, high, color=ACCENT, alpha=0.2, linewidth=0)
        axes.plot([0, checks[-1]], [0, found[-1]], color=INK, linewidth=1, linestyle=(0, (3, 3)))
        axes.plot(checks, found, color=ACCENT)
        if stop is not None:
            axes.axvline(stop, color=MUTED, linewidth=1)
        axes.set_xlim(0, checks[-1])
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        return to_svg(figure, label)


def stacked_bars(names: Sequence[str], parts: Mapping[str, Sequence[int]], *, xlabel: str, label: str) -> Markup:
    """Draw one stacked bar per name, parts in the colours of their splits, and the totals above."""
    total = np.zeros(len(names))
    with mpl.rc_context(RC):
        figure, axes = canvas(xlabel)
        for part, heights in parts.items():
            colour = _COLOURS.get(part, ACCENT)
            axes.bar(range(len(names)), heights, bottom=total, width=0.72, color=colour, label=part)
            total = total + np.asarray(heights)
        if len(names) <= 12:
            for x, height in enumerate(total):
                axes.annotate(f"{height:,.0f}", (x, height), (0, 3), textcoords="offset points", ha="center", size=8)
        step = -(-len(names) // 16)
        axes.set_xticks(range(0, len(names), step), [str(name) for name in names[::step]])
        axes.tick_params(axis="x", length=0)
        axes.margins(y=0.12)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        return to_svg(figure, label)


Losses = Sequence[tuple[float | None, tuple[float, float] | None]]


def photos_and_losses(
    counts: Sequence[int], photos: Mapping[str, Sequence[int]], losses: Mapping[str, Losses], *, label: str
) -> Markup:
    """Draw bars of photos above lines of losses, over the same counts.

    Args:
        counts: ascending ``[K]``.
        photos: by split ``[K]``, stacked.
        losses: by split, loss and interval of each count ``[K]``.
        label: description for screen readers.
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(SIZE[0], 1.6 * SIZE[1]))
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
        bottom = np.zeros(len(counts))
        for split, heights in photos.items():
            above.bar(range(len(counts)), heights, bottom=bottom, width=0.72, color=_COLOURS[split])
            bottom = bottom + np.asarray(heights)
        above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        for number, (split, of_counts) in enumerate(losses.items()):
            _loss_line(below, of_counts, 0.1 * (number - (len(losses) - 1) / 2), split)
        below.set_ylim(bottom=0)
        _name_axes(above, below, counts)
        return to_svg(figure, label)


def _loss_line(axes: Axes, losses: Losses, aside: float, split: str) -> None:
    """Draw a split's losses with their intervals, shifted so that other splits stay visible."""
    x = np.arange(len(losses)) + aside
    y = np.array([np.nan if loss is None else loss for loss, _ in losses])
    colour, style = _COLOURS[split], _DASHES.get(split, "-")
    axes.plot(x, y, color=colour, linestyle=style, linewidth=1.2, marker="o", markersize=3.2, clip_on=False)
    known = [(at, *interval) for at, (_, interval) in zip(x, losses, strict=True) if interval]
    if known:
        at, low, high = np.array(known).T
        axes.vlines(at, low, high, color=colour, linewidth=1, alpha=0.6)


def _name_axes(above: Axes, below: Axes, counts: Sequence[int]) -> None:
    for axes, name in ((above, "Photos"), (below, "Loss, nats")):
        axes.grid(axis="y")
        axes.set_title(name, loc="left", color=MUTED, fontsize=8.5)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(axis="x", length=0)
    step = -(-len(counts) // 16)
    below.set_xticks(range(0, len(counts), step), [str(count) for count in counts[::step]])
    below.set_xlabel("Count")


def shares(
    edges: np.ndarray, parts: Mapping[str, np.ndarray], *, xlabel: str, label: str, colours: Mapping[str, str]
) -> Markup:
    """Draw shares of intervals of time, stacked to 1.

    Args:
        edges: of the intervals, float ``[N + 1]``.
        parts: by name, fractions ``[N]`` of each interval, in the order of stacking.
        xlabel: label of the edges.
        label: description for screen readers.
        colours: by name of the part: a colour of this module, and an opacity after a slash.
    """
    bottom = np.zeros(len(edges) - 1)
    with mpl.rc_context(RC):
        figure, axes = canvas(xlabel, percent=True)
        figure.set_size_inches(2 * SIZE[0], SIZE[1])
        for name, heights in parts.items():
            colour, _, opacity = colours[name].partition("/")
            axes.stairs(bottom + heights, edges, baseline=bottom, fill=True, color=colour, alpha=float(opacity), lw=0)
            bottom = bottom + heights
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, 1)
        axes.xaxis.set_major_locator(MaxNLocator(8))
        return to_svg(figure, label)


def sizes(pixels: np.ndarray, *, label: str) -> Markup:
    """Draw photo heights against widths, ``int[N, 2]`` in pixels; the area of a dot grows with its photos.

    Sizes are binned into at most 32 x 32 cells, which keeps the plot small.
    """
    cells = np.maximum(np.ptp(pixels, axis=0) / 32, 1)
    where, photos = np.unique(np.round(pixels / cells), axis=0, return_counts=True)
    width, height = (where * cells).T
    with mpl.rc_context(RC):
        figure, axes = canvas("Width, pixels")
        axes.scatter(width, height, s=3 + 42 * photos / photos.max(), color=ACCENT, alpha=0.65, linewidths=0)
        axes.set_ylabel("Height, pixels")
        axes.margins(0.08)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return to_svg(figure, label)


def canvas(xlabel: str, percent: bool = False) -> tuple[Figure, Axes]:
    """Create a figure with horizontal grid lines; y is a fraction, formatted in per cent, or a number."""
    figure = Figure(figsize=SIZE)
    axes = figure.subplots()
    axes.grid(axis="y")
    axes.set_xlabel(xlabel)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if percent:
        axes.yaxis.set_major_formatter(FuncFormatter(percent_tick))
    return figure, axes


def whole_numbers(axes: Axes, x: Sequence[float]) -> None:
    """Put ticks at whole numbers only, even if all ``x`` are equal."""
    low, high = min(x), max(x)
    if low == high:
        axes.set_xlim(low - 1, high + 1)
        axes.set_xticks([low])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=high - low >= 1))


def percent_tick(value: float, _: object = None) -> str:
    """Format a fraction on an axis."""
    return f"{100 * value:.3g} %"


def _leave_margins(figure: Figure) -> None:
    """Leave room for labels of one line; a layout engine takes as long as drawing, and knows no more of page fonts."""
    titled = any(axes.get_title("left") for axes in figure.axes)
    named = any(axes.get_ylabel() for axes in figure.axes)
    beside = [text for axes in figure.axes for text in _tick_labels(axes.yaxis)]
    left = 0.1 + 0.068 * max(map(len, beside), default=0) + 0.2 * named  # inches, as all
    right = 0.06 + 0.034 * len("".join(_tick_labels(figure.axes[-1].xaxis)[-1:]))  # half of the last label
    top, bottom = 0.25 if titled else 0.1, 0.43
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height, hspace=0.25)


def _tick_labels(axis: Axis) -> list[str]:
    return axis.get_major_formatter().format_ticks(axis.get_majorticklocs().tolist())


def to_svg(figure: Figure, label: str) -> Markup:
    """Render a figure to a reproducible SVG element with colours and font of the page."""
    if figure.get_layout_engine() is None:
        _leave_margins(figure)
    buffer = io.StringIO()
    # The label salts the ids, which have to differ between the plots of a page.
    with mpl.rc_context({"svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    for stand_in, name in _VARIABLES.items():
        text = text.replace(stand_in, f"var(--{name})")
    opening = f'<svg class="plot" role="img" aria-label="{escape(label)}"'
    text = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf"{opening} \1>", text)
    return Markup(re.sub(r"\n\s*", "\n", text))
