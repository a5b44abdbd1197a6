"""``report.html``: one run's scores, errors and settings on one page that opens anywhere."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from bincounter.inspect import plots
from bincounter.inspect.choices import look_closer, mistakes, sample
from bincounter.inspect.page import decimals, percent, whole, write_page
from bincounter.inspect.per_count import per_count_section
from bincounter.inspect.photos import inline, inline_attention
from bincounter.inspect.profile.section import profile_section
from bincounter.inspect.rules.states import read_states
from bincounter.inspect.run_folder import SIDES, Predictions, Run, read_run
from bincounter.inspect.wording import constant_answer, footer, headline, lead, mean_answer

# Pixels and photos: with these, even photos of pure noise keep the page below 8 MB.
GRID_PHOTOS, GRID_SIDE = 24, 232
MISTAKES, MISTAKE_SIDE = 8, 800
LOOKED_SIDE = 320
QUARANTINE_ROWS = 300
READABLE_COUNTS = 12  # with more, figures in cells and over bars would not fit

LABELS = {"test": "Test", "val": "Validation", "train": "Training sample"}
SCORES: dict[str, tuple[str, Callable[[float | None], str]]] = {
    "accuracy": ("Accuracy", percent),
    "within_one": ("Within one", percent),
    "rmse": ("RMSE", decimals),
    "mae": ("MAE", decimals),
    "macro_f1": ("Macro F1", decimals),
    "cross_entropy": ("Cross entropy", decimals),
    "ece": ("Calibration error", percent),
}
BASELINES = {"accuracy": "majority_accuracy", "rmse": "mean_rmse"}

Photo = Callable[[str], bytes | None]


def write_report(run: Path, *, photo: Photo, cams: Mapping[str, np.ndarray] | None = None) -> Path:
    """Write ``report.html`` into a run's folder, from the files it finds there.

    Pieces that are missing (no test photos, no log, a killed run) are answered by a sentence in their place.

    Args:
        run: the run's folder.
        photo: gives the bytes of a photo's file by its id, or ``None`` where it is gone.
        cams: where the model looked, ``{id: float[H, W] in 0..1}``, best for the ids that :func:`photos_to_explain`
            names.

    Returns:
        Path of the page.

    Raises:
        UserError: the folder is no run's, or one of its files is damaged.
    """
    read = read_run(run)
    side = _headline_side(read)
    scores = read.metrics.get(side, {})
    scored = _scored(read)
    content: dict[str, object] = {
        "title": _name(read),
        "kicker": f"bincounter run report · {_name(read)}",
        "headline": headline(scores, side),
        "lead": lead(read, scores, side),
        "footer": footer(read),
        "side": LABELS[side].lower(),
        "cards": _cards(read, scores),
        "table": _table(read),
        "curves": _curves(read),
        "rules": read_states(run),
        "profile": profile_section(run, read.config),
        "confusion": _confusion(scores),
        "per_count": per_count_section(read, side),
        "calibration": scores if scores.get("reliability") else None,
        "reliability": plots.reliability(scores["reliability"], label="Accuracy against confidence")
        if scores.get("reliability")
        else None,
        "grid": [_tile(each, photo) for each in _each(sample(scored, GRID_PHOTOS))] if scored else [],
        "mistakes": [_mistake(each, photo) for each in _each(mistakes(scored, MISTAKES))] if scored else [],
        "looked": [_look(each, photo, cams) for each in _each(look_closer(scored))] if scored and cams else [],
        "quarantine": None if read.quarantine is None else read.quarantine[:QUARANTINE_ROWS],
        "refused": len(read.quarantine or ()),
        "overrides": read.overrides,
        "config": yaml.safe_dump(dict(read.config), sort_keys=False, allow_unicode=True),
        "provenance": _flat(read.provenance),
        "splits": _splits(read),
    }
    return write_page(run / "report.html", "report.html", content)


def photos_to_explain(run: Path) -> list[str]:
    """Name the photos whose attention the report has room for: the worst mistakes and the surest right answers."""
    scored = _scored(read_run(run))
    return [] if scored is None else look_closer(scored).ids.tolist()


def _headline_side(run: Run) -> str:
    return "test" if run.metrics.get("test") else "val"


def _scored(run: Run) -> Predictions | None:
    """The predictions the page shows: of the test photos where there are any, else of the validation photos."""
    if run.predictions is None:
        return None
    shown = run.predictions.of(SIDES[_headline_side(run)])
    return shown if len(shown.ids) else None


def _name(run: Run) -> str:
    task = run.config.get("task_name")
    folder = run.path.resolve().name
    return f"{task} · {folder}" if task and task != folder else folder


def _cards(run: Run, scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Headline scores, each with its interval and, where one exists, its baseline on a common scale."""
    cards = []
    for key in ("accuracy", "within_one", "rmse", "mae"):
        if scores.get(key) is None:
            continue
        name, written = SCORES[key]
        value, baseline = scores[key], scores.get(BASELINES.get(key, ""))
        low, high = scores.get("intervals", {}).get(key) or (value, value)
        top = 1.0 if written is percent else max(high, baseline or 0) * 1.15 or 1.0
        against = mean_answer(run) if key == "rmse" else constant_answer(run)
        cards.append(
            {
                "name": name,
                "better": "lower is better" if key in {"rmse", "mae"} else "",
                "value": written(value),
                "range": f"{written(low)} to {written(high)}",
                "at": [round(100 * min(each / top, 1), 2) for each in (value, low, high)],
                "baseline": None if baseline is None else round(100 * baseline / top, 2),
                "against": None if baseline is None else f"{written(baseline)} by {against}",
            }
        )
    return cards


def _table(run: Run) -> dict[str, Any] | None:
    """Every score of every side, baselines beneath the scores they belong to."""
    sides = [side for side in LABELS if run.metrics.get(side)]
    if not sides:
        return None
    rows = [{"name": "Photos", "cells": [(whole(run.metrics[side]["n"]), "") for side in sides], "baseline": False}]
    for key, (name, written) in SCORES.items():
        cells = []
        for side in sides:
            interval = run.metrics[side].get("intervals", {}).get(key)
            spread = f"{written(interval[0])} to {written(interval[1])}" if interval else ""
            cells.append((written(run.metrics[side].get(key)), spread))
        rows.append({"name": name, "cells": cells, "baseline": False})
        if key in BASELINES:
            label = "of the majority baseline" if key == "accuracy" else "of the mean baseline"
            cells = [(written(run.metrics[side].get(BASELINES[key])), "") for side in sides]
            rows.append({"name": label, "cells": cells, "baseline": True})
    return {"sides": [LABELS[side] for side in sides], "rows": rows}


def _curves(run: Run) -> list[tuple[str, Markup, list[tuple[str, str]]]]:
    """The curves of the log: title, plot, and its key as ``(class, name)``."""
    by_epoch = {
        name: [(epoch + 1, value) for epoch, _, value in run.log[name]]
        for name in ("train/loss_epoch", "val/loss", "val/accuracy")
        if name in run.log
    }
    curves = []
    losses: dict[str, plots.Points] = {
        name: by_epoch[name] for name in ("train/loss_epoch", "val/loss") if name in by_epoch
    }
    if losses:
        names = {"train/loss_epoch": ("other", "training"), "val/loss": ("", "validation")}
        key = [names[name] if len(losses) > 1 else ("", names[name][1]) for name in losses]
        curves.append(("Loss", plots.lines(losses, xlabel="Epoch", label="Loss by epoch"), key))
    if "val/accuracy" in by_epoch:
        baseline = (run.metrics.get("val") or {}).get("majority_accuracy")
        shown = {"validation": by_epoch["val/accuracy"]}
        plot = plots.lines(shown, xlabel="Epoch", label="Accuracy by epoch", percent=True, baseline=baseline)
        key = [("", "validation")] + ([("level", constant_answer(run))] if baseline is not None else [])
        curves.append(("Accuracy", plot, key))
    rates = run.log.get("lr")
    if rates:
        points = {"rate": [(step, value) for _, step, value in rates]}
        plot = plots.lines(points, xlabel="Optimizer step", label="Learning rate by step")
        curves.append(("Learning rate", plot, []))
    return curves


def _confusion(scores: Mapping[str, Any]) -> dict[str, Any] | None:
    if not scores.get("confusion"):
        return None
    rows = []
    for count, row in zip(scores["counts"], scores["confusion"], strict=True):
        total = sum(row)
        rows.append((count, total, [(number, number / total if total else 0.0) for number in row]))
    return {"counts": scores["counts"], "rows": rows, "dense": len(rows) > READABLE_COUNTS}


def _each(predictions: Predictions) -> list[dict[str, Any]]:
    columns = zip(predictions.ids, predictions.counts, predictions.predicted, predictions.probabilities, strict=True)
    return [
        {"id": str(name), "count": int(count), "predicted": int(predicted), "support": predictions.support, "p": p}
        for name, count, predicted, p in columns
    ]


def _tile(each: dict[str, Any], photo: Photo) -> dict[str, Any]:
    return {**each, "image": inline(photo(each["id"]), GRID_SIDE)}


def _mistake(each: dict[str, Any], photo: Photo) -> dict[str, Any]:
    bars = [(count, float(p)) for count, p in zip(each["support"], each["p"], strict=True)]
    return {
        **each,
        "image": inline(photo(each["id"]), MISTAKE_SIDE),
        "bars": bars,
        "labelled": len(bars) <= READABLE_COUNTS,
    }


def _look(each: dict[str, Any], photo: Photo, cams: Mapping[str, np.ndarray]) -> dict[str, Any]:
    data, heat = photo(each["id"]), cams.get(each["id"])
    attention = None if heat is None else inline_attention(data, heat, LOOKED_SIDE)
    return {**each, "image": inline(data, LOOKED_SIDE), "attention": attention}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        rows += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, _written(value))]
    return rows


def _written(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _splits(run: Run) -> dict[str, Any] | None:
    by_split = {split: run.photos(split) for split in ("train", "validation", "test")}
    counts = sorted({count for photos in by_split.values() for count in photos})
    if not counts:
        return None
    rows = [(count, [by_split[split].get(count, 0) for split in by_split]) for count in counts]
    return {"rows": rows, "totals": [sum(photos.values()) for photos in by_split.values()]}
