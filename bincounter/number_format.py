"""Numbers as people read them, the same on every page and screen; JSON and CSV files keep plain fractions."""

import math
from typing import Any, TypeGuard

ABSENT = "n/a"

_SCORES = {
    "accuracy": ("accuracy", "%"),
    "within_one": ("within one", "%"),
    "rmse": ("RMSE", "items"),
    "mae": ("MAE", "items"),
    "macro_f1": ("macro F1", "%"),
    "cross_entropy": ("cross entropy", "nats"),
    "ece": ("calibration error", "%"),
}
"""Scores of ``metrics.json``, in the order of tables: name in a sentence, and unit."""

SCORES = tuple(_SCORES)
BASELINES = {"accuracy": ("majority_accuracy", "majority"), "rmse": ("mean_rmse", "mean")}
"""Scores with a baseline: its key in ``metrics.json``, and its name."""

_SIDES = {"val": "validation", "test": "test", "train": "training"}


def format_score(metric: str, value: float | None, *, unit: bool = False) -> str:
    """Format a score, such as ``37.5 %``, ``0.812``, or ``0.812 items`` with its unit.

    Args:
        metric: such as ``rmse`` or ``val/rmse``; another one is a number without unit.
        value: of the metric; fractions are 0-1.
        unit: append ``items`` or ``nats``; leave it out if the heading names it.
    """
    if (known := _score(metric)) is None:
        return f"{value:.5g}" if is_number(value) else ABSENT
    _, measure = known
    if measure == "%":
        return percent(value)
    return f"{decimals(value)} {measure}" if unit and is_number(value) else decimals(value)


def format_interval(metric: str, interval: tuple[float, float] | list[float], *, unit: bool = False) -> str:
    """Format the interval of a score, such as ``31.2 to 43.8 %``."""
    low, high = interval
    return f"{format_score(metric, low).removesuffix(' %')} to {format_score(metric, high, unit=unit)}"


def score_name(metric: str, *, unit: bool = False) -> str:
    """Return the name of a score in a sentence, such as ``validation accuracy`` for ``val/accuracy``.

    Args:
        metric: see :func:`format_score`.
        unit: append ``items`` or ``nats``, for headings.
    """
    if (known := _score(metric)) is None:
        return metric
    side, (text, measure) = metric.rpartition("/")[0], known
    return f"{_SIDES.get(side, '')} {text}".strip() + (f", {measure}" if unit and measure != "%" else "")


def score_heading(metric: str) -> str:
    """Return the name of a score and its unit as a heading, such as ``Cross entropy, nats``."""
    name = score_name(metric, unit=True)
    return name[0].upper() + name[1:] if _score(metric) else name


def is_fraction(metric: str) -> bool:
    """Return True if a score is a fraction, which is formatted in per cent."""
    known = _score(metric)
    return known is not None and known[1] == "%"


def _score(metric: str) -> tuple[str, str] | None:
    side, _, name = metric.rpartition("/")
    return _SCORES.get(name) if side in ("", *_SIDES) else None


def percent(fraction: float | None, digits: int = 1) -> str:
    """Format a fraction in per cent, such as ``36.1 %`` for 0.3612."""
    return f"{100 * fraction:.{digits}f} %" if is_number(fraction) else ABSENT


def decimals(value: float | None, digits: int = 3) -> str:
    """Format a number with a fixed number of decimals."""
    return f"{value:.{digits}f}" if is_number(value) else ABSENT


def whole(value: float | None) -> str:
    """Format a whole number, such as ``5,331``."""
    return f"{value:,.0f}" if is_number(value) else ABSENT


def duration(seconds: float) -> str:
    """Format a duration, such as ``4.2 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def is_number(value: Any) -> TypeGuard[float]:
    """Return True if there is a number to format."""
    return value is not None and not math.isnan(value)
