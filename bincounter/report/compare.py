"""Comparison of runs: settings that differ, scores, and their differences."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bincounter.config.checks import METRICS
from bincounter.errors import UserError
from bincounter.names import escape_name, one_line
from bincounter.number_format import BASELINES, SCORES, format_interval, format_score, score_name, whole
from bincounter.training.results import SPLIT_OF_SIDE, Predictions, RunResults, read_results
from bincounter.training.resume import flatten

_PLACES = ("paths", "hydra", "ckpt_path", "logger")  # storage and resumption of a run, which change no score
_UNSET = "(not set)"
MARK = " †"
"""Mark of runs with a caveat on their scores."""

_GAP = 3  # characters between two columns
_VALUE = 16  # characters kept for a value beside a long key
_LABEL = 13  # characters of a score's name on one line
_BREAKS = r"(?<=[./,= -])|(?<=[^\W_]_)(?=[^\W_])"  # after dots, dashes and slashes, and underscores between words


@dataclass(frozen=True, slots=True)
class Comparison:
    """Result of :func:`compare`; runs are in the given order.

    Attributes:
        names: one per run ``[R]``, short and different from each other.
        settings: configuration keys that differ: ``{key: value of each run [R]}``.
        side: ``test`` or ``val``: the side of the scores.
        scores: each run's scores on that side ``[R]``.
        gains: for each run, accuracy minus that of the first on the same photos, and its 95 % interval (paired
            bootstrap): ``(difference, low, high)``; ``None`` for the first, and if the photos differ ``[R]``.
        remarks: sentences on the limits of the comparison.
        caveats: sentences on the limits of each run's scores ``[R]``.
        runs: the results themselves ``[R]``.
    """

    names: tuple[str, ...]
    settings: Mapping[str, tuple[str, ...]]
    side: str
    scores: tuple[Mapping[str, Any], ...]
    gains: tuple[tuple[float, float, float] | None, ...]
    remarks: tuple[str, ...]
    caveats: tuple[tuple[str, ...], ...]
    runs: tuple[RunResults, ...]

    def best(self, score: str) -> int | None:
        """Index of the run with the best value of a score; ``None`` if no run is ahead."""
        values = [scores[score] for scores in self.scores if scores.get(score) is not None]
        if len(values) < len(self.scores):
            return None
        best = (max if METRICS[score] == "max" else min)(values)
        return None if values.count(best) > 1 else values.index(best)


def compare(runs: Sequence[Path]) -> Comparison:
    """Compare runs with the first of them.

    Args:
        runs: run folders; the folder of a sweep stands for the numbered runs in it. A run without scores, or one that
            cannot be read, is left out with a remark.

    Raises:
        UserError: fewer than two runs with scores on the same side; the message names one without.
    """
    folders, reasons = _expand(runs), list[str]()
    if len(folders) < 2:
        raise UserError("Comparing takes at least two runs: name two run folders, or the folder of a sweep")
    read = []
    for path in folders:
        try:
            read.append(read_results(path))
        except UserError as error:
            reasons.append(str(error))
    # The side that most runs were scored on; test if equally many.
    side = max(("test", "val"), key=lambda side: sum(bool(run.metrics.get(side)) for run in read))
    for run in (run for run in read if not run.metrics.get(side)):
        of = f"{SPLIT_OF_SIDE[side]} " if run.metrics else ""
        reasons.append(f"{run.path} has no {of}scores: score its checkpoint first")
    read = [run for run in read if run.metrics.get(side)]
    if len(read) < 2:
        raise UserError(reasons[0])
    scored = [run.predictions.of(SPLIT_OF_SIDE[side]) if run.predictions else None for run in read]
    return Comparison(
        names=distinct_names([run.path for run in read]),
        settings=_differing([_settings(run) for run in read]),
        side=side,
        scores=tuple(run.metrics[side] for run in read),
        gains=(None, *(_gain(scored[0], other) for other in scored[1:])),
        remarks=(*_remarks(read, scored, side), *(f"left out: {reason}." for reason in reasons)),
        caveats=tuple(tuple(run.caveats) for run in read),
        runs=tuple(read),
    )


@dataclass(frozen=True)
class ComparisonTables:
    """A comparison, laid out for the width of the console."""

    comparison: Comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the settings that differ, the scores, best values marked, and the remarks."""
        comparison, width = self.comparison, options.max_width
        if comparison.settings:
            yield Text("Settings that differ", style="bold")
            yield _settings_table(comparison, width)
        else:
            yield Text("The settings do not differ.")
        yield Text(f"\nScores on {SPLIT_OF_SIDE[comparison.side]} photos, 95 % intervals below, * best", style="bold")
        yield _scores_table(comparison, width)
        for remark in all_remarks(comparison):
            yield Padding(Text(f"Note: {one_line(remark)}"), (1, 0, 0, 0))


def all_remarks(comparison: Comparison) -> list[str]:
    """Return the remarks, and the caveats with the names of their runs."""
    limits = zip(comparison.names, comparison.caveats, strict=True)
    return [*comparison.remarks, *(f"{name}{MARK} {caveat}" for name, each in limits for caveat in each)]


def _expand(paths: Sequence[Path]) -> list[Path]:
    """Replace the folder of a sweep by the runs inside it, in the order of their numbers."""
    runs: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path} is not a folder: name the run folders that the run printed")
        jobs = [job for job in path.iterdir() if job.name.isdecimal() and (job / "config.yaml").is_file()]
        runs += [path] if (path / "config.yaml").is_file() or not jobs else sorted(jobs, key=lambda job: int(job.name))
    return runs


def distinct_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return the shortest trailing parts of the paths that are all different."""
    resolved = [path.resolve() for path in paths]
    for depth in range(1, max(len(path.parts) for path in resolved)):
        names = tuple(escape_name("/".join(path.parts[-depth:])) for path in resolved)
        if len(set(names)) == len(names):
            return names
    return tuple(f"{path} ({number})" for number, path in enumerate(resolved, start=1))


def _settings(run: RunResults) -> dict[str, str]:
    values = flatten({key: value for key, value in run.config.items() if key not in _PLACES})
    flat = {key: "null" if value is None else str(value) for key, value in values.items()}
    # Settings that name the run's own folder, or a file in it, differ always. A name such as 0 may be another thing.
    folders = {str(path) for path in (run.path, run.path.resolve()) if len(path.parts) > 1}
    own = re.compile(rf"(?<![^=,:\[\s'\"])({'|'.join(map(re.escape, folders))})(?![^/\\\\,\]\s'\"])")
    kept = {key: value for key, value in flat.items() if not own.search(value)}
    commit = run.provenance.get("commit")
    return kept | ({"(commit)": str(commit)[:12]} if commit else {})


def _differing(settings: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    keys = dict.fromkeys(key for each in settings for key in each)
    rows = {key: tuple(each.get(key, _UNSET) for each in settings) for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _gain(first: Predictions | None, other: Predictions | None) -> tuple[float, float, float] | None:
    """Return the accuracy of ``other`` minus that of ``first`` on the photos both scored, with a 95 % interval.

    Paired percentile bootstrap (Efron and Tibshirani 1993): each photo's difference is -1, 0 or 1, so drawing photos
    with replacement is one multinomial draw over how often each occurs.
    """
    if first is None or other is None or set(first.ids) != set(other.ids):
        return None
    a, b = first.rows(np.argsort(first.ids)), other.rows(np.argsort(other.ids))
    change = (b.predicted == b.counts).astype(int) - (a.predicted == a.counts)
    values, number = np.unique(change, return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(change), number / len(change), 10_000) @ values / len(change)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(change.mean()), float(low), float(high)


def _remarks(runs: Sequence[RunResults], scored: Sequence[Predictions | None], side: str) -> tuple[str, ...]:
    remarks = []
    labels = [{name: count for name, (count, _) in run.split.items()} for run in runs]
    if any(each != labels[0] for each in labels[1:]):
        remarks.append("the photos or labels of these runs differ.")
    photos = [None if each is None else frozenset(each.ids.tolist()) for each in scored]
    if any(each != photos[0] for each in photos[1:]):
        where = SPLIT_OF_SIDE[side]
        remarks.append(f"they were scored on different {where} photos, so that scores differ for that reason too.")
    if side == "val" and any(run.metrics.get("test") for run in runs):
        remarks.append("not all runs have test scores, so validation scores are shown.")
    return tuple(remarks)


def _settings_table(comparison: Comparison, width: int) -> Table:
    rows = [("", *comparison.names), *((key, *values) for key, values in comparison.settings.items())]
    natural = [max(map(len, column)) for column in zip(*rows, strict=True)]
    longest = max(len(piece) for key in comparison.settings for piece in re.split(_BREAKS, key))
    # Keys get the width that values can spare, and values share the rest.
    room = width - _GAP - sum(min(each, _VALUE) + _GAP for each in natural[1:])
    first = min(natural[0], max(longest, room))
    share = (width - first - _GAP) // len(comparison.names) - _GAP
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    for _ in comparison.names:
        table.add_column(overflow="fold")
    fits = natural[0] + sum(natural[1:]) + _GAP * len(natural) <= width
    for key, *values in rows:
        table.add_row(Text(fold(key, first)), *(Text(value if fits else fold(value, share)) for value in values))
    return table


def fold(name: str, width: int, breaks: str = _BREAKS) -> str:
    """Break a name into lines of at most ``width`` characters, if possible, at matches of a pattern only."""
    lines = [""]
    for piece in re.split(breaks, name):
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def _scores_table(comparison: Comparison, width: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    table.add_column("", min_width=_LABEL)
    share = (width - _LABEL - _GAP) // len(comparison.names) - _GAP
    for name, caveats in zip(comparison.names, comparison.caveats, strict=True):
        title = fold(name + MARK if caveats else name, share)
        table.add_column(Text(title), justify="right", overflow="fold", max_width=share)
    table.add_row("photos", *(whole(scores.get("n")) for scores in comparison.scores))
    for score in SCORES:
        best = comparison.best(score)
        cells = [_cell(scores, score, run == best) for run, scores in enumerate(comparison.scores)]
        table.add_row(score_name(score, unit=True), *cells)
        if score == "accuracy" and any(comparison.gains):
            table.add_row("  against the first", *(_gain_cell(gain) for gain in comparison.gains))
        if score in BASELINES:
            key, baseline = BASELINES[score]
            values = (Text(format_score(score, scores.get(key)), style="dim") for scores in comparison.scores)
            table.add_row(Text(f"  {baseline} baseline", style="dim"), *values)
    return table


def _cell(scores: Mapping[str, Any], score: str, best: bool) -> Text:
    cell = Text(("* " if best else "") + format_score(score, scores.get(score)), style="bold" if best else "")
    if interval := scores.get("intervals", {}).get(score):
        cell.append(f"\n{format_interval(score, interval)}", style="not bold dim")
    return cell


def _gain_cell(gain: tuple[float, float, float] | None) -> Text:
    points, interval = format_gain(gain)
    return Text(points).append(f"\n{interval}", style="dim") if gain else Text("")


def format_gain(gain: tuple[float, float, float] | None) -> tuple[str, str]:
    """Format a difference in percentage points, and its interval, with a note if that includes 0."""
    if gain is None:
        return "", ""
    points, low, high = (f"{100 * value:+.1f}" for value in gain)
    verdict = "" if gain[1] > 0 or gain[2] < 0 else ", may be chance"
    return f"{points} points", f"{low} to {high}{verdict}"
