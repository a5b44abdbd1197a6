"""``compare.html``: a comparison of runs on one page, with the numbers of ``bincounter compare``."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bincounter.names import one_line
from bincounter.number_format import decimals, format_interval, percent, whole
from bincounter.report.compare import MARK, Comparison, all_remarks, format_gain
from bincounter.report.page import write_page
from bincounter.report.per_count_section import format_row, per_count_rows
from bincounter.report.report import confusion, score_rows
from bincounter.training.per_count_table import CountRow
from bincounter.training.results import SPLIT_OF_SIDE


def write_comparison(path: Path, comparison: Comparison) -> Path:
    """Write the page of a comparison.

    Args:
        path: of the page; links to the runs' reports are relative to it.
        comparison: of the runs.

    Returns:
        ``path``.
    """
    side = SPLIT_OF_SIDE[comparison.side]
    content: dict[str, object] = {
        "title": f"{len(comparison.names)} runs",
        "kicker": f"bincounter comparison · {len(comparison.names)} runs",
        "headline": _headline(comparison, side),
        "lead": _lead(comparison, side),
        "side": side,
        "caveats": [one_line(remark) for remark in all_remarks(comparison)],
        "runs": _runs(comparison, path),
        "scores": _scores(comparison),
        "settings": comparison.settings,
        "per_count": _per_count(comparison),
        "footer": "Made by bincounter. This file needs no network.",
    }
    return write_page(path, "compare.html", content)


def _headline(comparison: Comparison, side: str) -> str:
    best = comparison.best("accuracy")
    if best is None:
        return f"No run is ahead on {side} photos"
    scores = comparison.scores[best]
    return f"{comparison.names[best]} is best: {percent(scores['accuracy'])} of {whole(scores['n'])} {side} bins"


def _lead(comparison: Comparison, side: str) -> str:
    """Describe the clear differences from the first run."""
    first, *others = comparison.names
    gains = [(name, gain) for name, gain in zip(others, comparison.gains[1:], strict=True) if gain]
    clear = [f"{name} by {format_gain(gain)[0]}" for name, gain in gains if gain[1] > 0 or gain[2] < 0]
    measured = f"Accuracy on the same {side} photos is compared with that of {first}, photo by photo."
    if not gains:
        return f"No run was scored on the same {side} photos as {first}, so that no difference has an interval."
    return f"{measured} It differs clearly for {', '.join(clear)}." if clear else f"{measured} No difference is clear."


def _runs(comparison: Comparison, page: Path) -> list[dict[str, Any]]:
    """Return the entry of each run: link, accuracy, difference and confusion matrix."""
    runs = []
    for number, (run, scores) in enumerate(zip(comparison.runs, comparison.scores, strict=True)):
        accuracy = scores.get("accuracy") or 0.0
        low, high = scores.get("intervals", {}).get("accuracy") or (accuracy, accuracy)
        runs.append(
            {
                "name": comparison.names[number],
                "mark": MARK if comparison.caveats[number] else "",
                "report": _report(run.path, page),
                "accuracy": percent(scores.get("accuracy")),
                "range": format_interval("accuracy", [low, high]),
                "at": [round(100 * each, 2) for each in (accuracy, low, high)],
                "baseline": scores.get("majority_accuracy"),
                "gain": format_gain(comparison.gains[number]),
                "confusion": confusion(scores),
            }
        )
    return runs


def _report(run: Path, page: Path) -> str:
    report = run / "report.html"
    return quote(os.fsencode(os.path.relpath(report, page.parent))) if report.is_file() else ""


def _scores(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the rows of all scores with the best run of each, and the differences below the accuracy."""
    rows = []
    for row in score_rows(comparison.scores):
        rows.append({**row, "best": comparison.best(row["score"]) if row["score"] else None})
        if row["score"] == "accuracy" and any(comparison.gains):
            cells = [format_gain(gain) for gain in comparison.gains]
            rows.append({"name": "against the first", "cells": cells, "best": None, "baseline": False})
    return rows


def _per_count(comparison: Comparison) -> list[tuple[int, list[Mapping[str, str]]]]:
    """Return accuracy, loss and RMSE of each run for each count."""
    split = SPLIT_OF_SIDE[comparison.side]
    rows = [per_count_rows(run) for run in comparison.runs]
    rmse = [{row["count"]: row.get("rmse") for row in scores.get("per_count", ())} for scores in comparison.scores]
    counts = sorted({count for each in rows for count, of in each if of == split})
    return [
        (
            count,
            [
                {**format_row(each.get((count, split), CountRow(scored=0))), "rmse": decimals(errors.get(count), 2)}
                for each, errors in zip(rows, rmse, strict=True)
            ],
        )
        for count in counts
    ]
