"""Comparison of runs: settings that differ, scores, and their differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bincounter.errors import UserError
from bincounter.names import escape_name, one_line
from bincounter.report.page import decimals, percent, whole
from bincounter.training.results import SPLIT_OF_SIDE, Predictions, RunResults, read_results
from bincounter.training.resume import flatten

SCORES = {
    "accuracy": ("accuracy", percent, 1),
    "within_one": ("within one", percent, 1),
    "rmse": ("RMSE", decimals, -1),
    "mae": ("MAE", decimals, -1),
    "macro_f1": ("macro F1", decimals, 1),
    "cross_entropy": ("cross entropy", decimals, -1),
    "ece": ("calibration error", percent, -1),
}
"""Name on screen, number format, and 1 if higher is better, else -1."""

_PLACES = ("paths", "hydra", "ckpt_path", "logger")  # where a run is stored or resumed from, which changes no score
_UNSET = "(not set)"
_MARK = " †"  # of runs whose scores have a caveat


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
        remarks: sentences on what limits the comparison.
        caveats: sentences on what limits each run's scores ``[R]``.
    """

    names: tuple[str, ...]
    settings: Mapping[str, tuple[str, ...]]
    side: str
    scores: tuple[Mapping[str, Any], ...]
    gains: tuple[tuple[float, float, float] | None, ...]
    remarks: tuple[str, ...]
    caveats: tuple[tuple[str, ...], ...]

    def best(self, score: str) -> int | None:
        """Index of the run with the best value of a score; ``None`` if no run is ahead."""
        values = [scores.get(score) for scores in self.scores]
        if None in values or len(set(values)) == 1:
            return None
        return int(np.argmax(SCORES[score][2] * np.array(values, dtype=float)))


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
    # The side that most runs were scored on; the test photos where it is as many.
    side = max(("test", "val"), key=lambda side: sum(bool(run.metrics.get(side)) for run in read))
    for run in (run for run in read if not run.metrics.get(side)):
        of = f"{'test' if side == 'test' else 'validation'} " if run.metrics else ""
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
    )


def format_comparison(comparison: Comparison) -> RenderableType:
    """Format a comparison for the terminal: settings that differ, then scores, best values marked."""
    parts: list[RenderableType] = []
    if comparison.settings:
        parts += [Text("Settings that differ", style="bold"), _settings_table(comparison)]
    else:
        parts.append(Text("The settings do not differ."))
    where = "test" if comparison.side == "test" else "validation"
    parts += [
        Text(f"\nScores on {where} photos, 95 % intervals below, * best", style="bold"),
        _scores_table(comparison),
    ]
    limits = zip(comparison.names, comparison.caveats, strict=True)
    remarks = [*comparison.remarks, *(f"{name}{_MARK} {caveat}" for name, each in limits for caveat in each)]
    parts += [Padding(Text(f"Note: {one_line(remark)}"), (1, 0, 0, 0)) for remark in remarks]
    return Group(*parts)


def _expand(paths: Sequence[Path]) -> list[Path]:
    """Replace the folder of a sweep by the runs inside it, in the order of their numbers."""
    runs: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path} is not a folder: name the run folders that train.py printed")
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
    folders = {str(run.path), str(run.path.resolve())}
    kept = {key: value for key, value in flat.items() if not any(folder in value for folder in folders)}
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
        where = "test" if side == "test" else "validation"
        remarks.append(f"they were scored on different {where} photos, so that scores differ for that reason too.")
    if side == "val" and any(run.metrics.get("test") for run in runs):
        remarks.append("not all runs have test scores, so validation scores are shown.")
    return tuple(remarks)


def _settings_table(comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("", overflow="fold")
    for name in comparison.names:
        table.add_column(Text(name), overflow="fold")
    for key, values in comparison.settings.items():
        table.add_row(Text(key), *(Text(value) for value in values))
    return table


def _scores_table(comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    for name, caveats in zip(comparison.names, comparison.caveats, strict=True):
        table.add_column(Text(name + _MARK if caveats else name), justify="right", overflow="fold")
    table.add_row("photos", *(whole(scores.get("n")) for scores in comparison.scores))
    for score, (name, write, _) in SCORES.items():
        best = comparison.best(score)
        cells = [_cell(scores, score, write, run == best) for run, scores in enumerate(comparison.scores)]
        table.add_row(name, *cells)
        if score == "accuracy" and any(comparison.gains):
            table.add_row("  against the first", *(_gain_cell(gain) for gain in comparison.gains))
        if score in {"accuracy", "rmse"}:
            key, baseline = {"accuracy": ("majority_accuracy", "majority"), "rmse": ("mean_rmse", "mean")}[score]
            values = (Text(write(scores.get(key)), style="dim") for scores in comparison.scores)
            table.add_row(Text(f"  {baseline} baseline", style="dim"), *values)
    return table


def _cell(scores: Mapping[str, Any], score: str, write: Any, best: bool) -> Text:
    cell = Text(("* " if best else "") + write(scores.get(score)), style="bold" if best else "")
    if interval := scores.get("intervals", {}).get(score):
        cell.append(f"\n{write(interval[0])} to {write(interval[1])}", style="not bold dim")
    return cell


def _gain_cell(gain: tuple[float, float, float] | None) -> Text:
    """Format a difference in percentage points, with a note if the interval includes 0."""
    if gain is None:
        return Text("")
    points, low, high = (f"{100 * value:+.1f}" for value in gain)
    verdict = "" if gain[1] > 0 or gain[2] < 0 else ", may be chance"
    return Text(f"{points} points").append(f"\n{low} to {high}{verdict}", style="dim")
