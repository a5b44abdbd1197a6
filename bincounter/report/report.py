"""Report.html from one ``RunResults``."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from bincounter.debugger.rule import read_states
from bincounter.report import plots
from bincounter.report.page import decimals, percent, whole, write_page
from bincounter.report.per_count_section import per_count_section
from bincounter.report.profile_section import profile_section
from bincounter.report.report_photos import inline, inline_attention, look_closer, mistakes, sample
from bincounter.training.results import SIDES, Predictions, Run, read_run

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


def headline(scores: Mapping[str, Any], side: str) -> str:
    """Put the score of ``side`` (``val`` or ``test``) into one line."""
    if not scores:
        return "This run has not been scored"
    unseen = {"test": "test bins", "val": "validation bins"}[side]
    return f"{percent(scores['accuracy'])} of {whole(scores['n'])} {unseen} counted right"


def lead(run: Run, scores: Mapping[str, Any], side: str) -> str:
    """Say in plain words what was trained, and whether it beats always giving the same answer."""
    sentences = [_what_was_trained(run)]
    if not scores:
        return f"{sentences[0]} It ended before its scores were written, so this page shows what there is."
    majority = scores.get("majority_accuracy")
    if majority is not None:
        low, high = scores.get("intervals", {}).get("accuracy", (scores["accuracy"], scores["accuracy"]))
        verdict = "no better than" if low <= majority <= high else "better than" if low > majority else "worse than"
        strength = "" if low <= majority <= high else "clearly "
        sentences.append(f"That is {strength}{verdict} {constant_answer(run)}, right on {percent(majority)} of them.")
    if side == "val":
        sentences.append("There are no scores on test photos; checkpoints were chosen on these same validation photos.")
    return " ".join(sentences)


def _training(run: Run) -> dict[int, int]:
    """Photos per count that this run trained on; none where it only scored a checkpoint."""
    return run.photos("train") if run.config.get("train", True) else {}


def _what_was_trained(run: Run) -> str:
    model = run.config.get("model") or {}
    backbone = model.get("backbone") or {}
    name = str(backbone.get("name") or str(backbone.get("_target_", "A model")).rpartition(".")[2])
    training = _training(run)
    if not training:
        return f"{name}, scored without training in this run."
    epochs = (run.config.get("trainer") or {}).get("max_epochs")
    limit = f" for at most {epochs} epoch{'s' * (epochs != 1)}" if epochs else ""
    start = f"started from {model['weights']} weights" if model.get("weights") else "from scratch"
    return f"{name}, {start}, trained on {whole(sum(training.values()))} photos{limit}."


def constant_answer(run: Run) -> str:
    """Name the majority baseline: the most frequent count of the training photos."""
    training = _training(run)
    return f"always answering {max(training, key=lambda count: training[count])}" if training else "a constant answer"


def mean_answer(run: Run) -> str:
    """Name the mean baseline."""
    training = _training(run)
    if not training:
        return "a constant answer"
    mean = sum(count * photos for count, photos in training.items()) / sum(training.values())
    return f"always answering {mean:.2f}, the mean"


def footer(run: Run) -> str:
    """Say what made the page."""
    commit = str(run.provenance.get("commit") or "")[:12]
    return "Made by bincounter" + (f" at commit {commit}" if commit else "") + ". This file needs no network."
