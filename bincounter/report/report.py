"""``report.html`` of a run, from values alone: no file of the run is read here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from bincounter.model.packaged_weights import name_weights
from bincounter.names import escape_name
from bincounter.number_format import (
    BASELINES,
    SCORES,
    duration,
    format_interval,
    format_score,
    is_fraction,
    percent,
    score_heading,
    whole,
)
from bincounter.profiler.profile_facts import Profile
from bincounter.report import plots
from bincounter.report.page import write_page
from bincounter.report.per_count_section import per_count_section
from bincounter.report.profile_section import profile_section
from bincounter.report.report_photos import PhotoSelection, ScoredPhoto, inline, inline_attention
from bincounter.training.results import RunResults
from bincounter.training.resume import flatten

GRID_SIDE, MISTAKE_SIDE, LOOKED_SIDE = 232, 800, 320  # pixels: even photos of pure noise keep the page below 8 MB
QUARANTINE_ROWS = 300
READABLE_COUNTS = 12  # with more, numbers above bars, and two in a cell, would not fit

LABELS = {"test": "Test", "val": "Validation", "train": "Training sample"}


def write_report(
    results: RunResults, verdicts: Sequence[Mapping[str, Any]], profile: Profile | None, photos: PhotoSelection
) -> Path:
    """Write ``report.html`` into a run's folder; nothing is read from there.

    Sections whose data is missing (no test photos, no log, a killed run) hold a sentence instead.

    Args:
        results: of the run.
        verdicts: of the debugger's rules, see :func:`bincounter.debugger.rule.read_verdicts`.
        profile: of the run; ``None`` if it was not measured.
        photos: to show, with their bytes and heat maps.

    Returns:
        Path of the page.
    """
    side = results.headline_side
    scores = results.metrics.get(side, {})
    reliability = scores.get("reliability")
    content: dict[str, object] = {
        "title": _name(results),
        "kicker": f"bincounter run report · {_name(results)}",
        "headline": _headline(results, scores, side),
        "lead": _lead(results, scores, side),
        "caveats": results.caveats,
        "footer": _footer(results),
        "side": LABELS[side].lower(),
        "cards": _cards(results, scores),
        "table": _table(results),
        "curves": _curves(results),
        "rules": verdicts,
        "profile": profile_section(profile),
        "confusion": confusion(scores),
        "per_count": per_count_section(results, side),
        "calibration": {"ece": scores.get("ece"), "temperature": results.temperature} if reliability else None,
        "reliability": plots.reliability(reliability, label="Accuracy against confidence") if reliability else None,
        "coverage": _coverage(scores.get("coverage")),
        "grid": [_tile(photo, photos, GRID_SIDE) for photo in photos.sample],
        "mistakes": [_mistake(photo, photos) for photo in photos.mistakes],
        "looked": [_look(photo, photos) for photo in photos.explained] if photos.heat else [],
        "quarantine": None
        if results.quarantine is None
        else [(escape_name(path), escape_name(reason)) for path, reason in results.quarantine[:QUARANTINE_ROWS]],
        "refused": len(results.quarantine or ()),
        "overrides": results.overrides,
        "config": yaml.safe_dump(dict(results.config), sort_keys=False, allow_unicode=True),
        "provenance": [_fact(name, value) for name, value in flatten(results.provenance).items()],
        "splits": _splits(results),
        "corrected": results.provenance.get("corrected_photos"),
    }
    return write_page(results.path / "report.html", "report.html", content)


def _coverage(rows: Sequence[Mapping[str, float]] | None) -> dict[str, Any] | None:
    if not rows:
        return None
    half = min(rows, key=lambda row: abs(row["coverage"] - 0.5))
    return {
        "figure": plots.kept_accuracy(rows, label="Accuracy of the photos kept, against their share"),
        "all": rows[-1]["accuracy"],
        "half": half["accuracy"],
        "confidence": half["confidence"],
    }


def _name(run: RunResults) -> str:
    task = run.config.get("task_name")
    folder = run.path.resolve().name
    return f"{task} · {folder}" if task and task != folder else folder


def _cards(run: RunResults, scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return headline scores, each with its interval and, if it has one, its baseline on a common scale."""
    cards = []
    for key in ("accuracy", "within_one", "rmse", "mae"):
        if scores.get(key) is None:
            continue
        value, baseline = scores[key], scores.get(BASELINES.get(key, ("", ""))[0])
        low, high = scores.get("intervals", {}).get(key) or (value, value)
        top = 1.0 if is_fraction(key) else max(high, baseline or 0) * 1.15 or 1.0
        against = _mean_baseline(run) if key == "rmse" else _majority_baseline(run)
        cards.append(
            {
                "name": score_heading(key),
                "better": "lower is better" if key in {"rmse", "mae"} else "",
                "value": format_score(key, value),
                "range": format_interval(key, [low, high]),
                "at": [round(100 * min(each / top, 1), 2) for each in (value, low, high)],
                "baseline": None if baseline is None else round(100 * baseline / top, 2),
                "against": None if baseline is None else f"{format_score(key, baseline)} by {against}",
            }
        )
    return cards


def _table(run: RunResults) -> dict[str, Any] | None:
    """Return all scores of all sides, baselines below their scores."""
    sides = [side for side in LABELS if run.metrics.get(side)]
    if not sides:
        return None
    return {"sides": [LABELS[side] for side in sides], "rows": score_rows([run.metrics[side] for side in sides])}


def score_rows(columns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a table of all scores; ``score`` is the key of a score, ``None`` in other rows.

    Args:
        columns: scores of one side of a run, a column each.
    """
    rows = [_score_row("Photos", [(whole(scores.get("n")), "") for scores in columns])]
    for score in SCORES:
        cells = [
            (format_score(score, scores.get(score)), format_interval(score, interval) if interval else "")
            for scores in columns
            for interval in [scores.get("intervals", {}).get(score)]
        ]
        rows.append(_score_row(score_heading(score), cells, score=score))
        if score in BASELINES:
            key, name = BASELINES[score]
            cells = [(format_score(score, scores.get(key)), "") for scores in columns]
            rows.append(_score_row(f"of the {name} baseline", cells, baseline=True))
    return rows


def _score_row(
    name: str, cells: list[tuple[str, str]], *, score: str | None = None, baseline: bool = False
) -> dict[str, Any]:
    return {"name": name, "cells": cells, "score": score, "baseline": baseline}


def _curves(run: RunResults) -> list[tuple[str, Markup, list[tuple[str, str]]]]:
    """Return the curves of the log: title, plot, and its key as ``(class, name)``."""
    by_epoch = {
        name: [(epoch + 1, value) for epoch, _, value in run.log[name]]
        for name in ("train/loss_epoch", "val/loss", "val/accuracy")
        if name in run.log
    }
    curves = []
    names = {"train/loss_epoch": ("train", "training"), "val/loss": ("validation", "validation")}
    losses: dict[str, plots.Points] = {names[name][0]: by_epoch[name] for name in names if name in by_epoch}
    if losses:
        key = [names[name] for name in names if name in by_epoch]
        curves.append(("Loss", plots.lines(losses, xlabel="Epoch", label="Loss by epoch"), key))
    if "val/accuracy" in by_epoch:
        baseline = (run.metrics.get("val") or {}).get("majority_accuracy")
        shown = {"validation": by_epoch["val/accuracy"]}
        plot = plots.lines(shown, xlabel="Epoch", label="Accuracy by epoch", percent=True, baseline=baseline)
        key = [("validation", "validation")] + ([("level", _majority_baseline(run))] if baseline is not None else [])
        curves.append(("Accuracy", plot, key))
    rates = run.log.get("lr")
    if rates:
        points = {"rate": [(step, value) for _, step, value in rates]}
        plot = plots.lines(points, xlabel="Optimizer step", label="Learning rate by step")
        curves.append(("Learning rate", plot, []))
    return curves


def confusion(scores: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the values of the macro ``confusion_table``; ``None`` if there is no matrix."""
    if not scores.get("confusion"):
        return None
    rows = []
    for count, row in zip(scores["counts"], scores["confusion"], strict=True):
        total = sum(row)
        rows.append((count, total, [(number, number / total if total else 0.0) for number in row]))
    return {"counts": scores["counts"], "rows": rows, "dense": len(rows) > READABLE_COUNTS}


def _tile(photo: ScoredPhoto, photos: PhotoSelection, side: int) -> dict[str, Any]:
    image = inline(photos.files.get(photo.id), side)
    return {"id": escape_name(photo.id), "count": photo.count, "predicted": photo.predicted, "image": image}


def _mistake(photo: ScoredPhoto, photos: PhotoSelection) -> dict[str, Any]:
    bars = list(photo.probabilities.items())
    return {**_tile(photo, photos, MISTAKE_SIDE), "bars": bars, "labelled": len(bars) <= READABLE_COUNTS}


def _look(photo: ScoredPhoto, photos: PhotoSelection) -> dict[str, Any]:
    heat = photos.heat.get(photo.id)
    lit = None if heat is None else inline_attention(photos.files.get(photo.id), heat, LOOKED_SIDE)
    return {**_tile(photo, photos, LOOKED_SIDE), "attention": lit}


def _splits(run: RunResults) -> dict[str, Any] | None:
    by_split = {split: run.photos(split) for split in ("train", "validation", "test")}
    counts = sorted({count for photos in by_split.values() for count in photos})
    if not counts:
        return None
    rows = [(count, [by_split[split].get(count, 0) for split in by_split]) for count in counts]
    return {"rows": rows, "totals": [sum(photos.values()) for photos in by_split.values()]}


def _headline(run: RunResults, scores: Mapping[str, Any], side: str) -> str:
    """Return the headline with the accuracy on ``side`` (``val`` or ``test``)."""
    if not scores:
        return "This run has not been scored"
    bins = {"test": "test bins", "val": "validation bins"}[side]
    seen = run.seen.get(side)
    known = f", {'all' if seen == scores['n'] else whole(seen)} of them seen in training" if seen else ""
    return f"{percent(scores['accuracy'])} of {whole(scores['n'])} {bins} counted right{known}"


def _lead(run: RunResults, scores: Mapping[str, Any], side: str) -> str:
    """Describe the trained model, and compare it with a constant prediction."""
    sentences = [_training_summary(run)]
    if not scores:
        return f"{sentences[0]} It ended before its scores were written, so this page is incomplete."
    majority = scores.get("majority_accuracy")
    if majority is not None:
        low, high = scores.get("intervals", {}).get("accuracy", (scores["accuracy"], scores["accuracy"]))
        verdict = "no better than" if low <= majority <= high else "better than" if low > majority else "worse than"
        strength = "" if low <= majority <= high else "clearly "
        sentences.append(
            f"That is {strength}{verdict} {_majority_baseline(run)}, right on {percent(majority)} of them."
        )
    if side == "val":
        sentences.append("There are no scores on test photos; checkpoints were chosen on these same validation photos.")
    return " ".join(sentences)


def _training(run: RunResults) -> dict[int, int]:
    """Return photos per count that this run trained on; none if it only scored a checkpoint."""
    return run.photos("train") if run.config.get("train", True) else {}


def _training_summary(run: RunResults) -> str:
    model = run.config.get("model") or {}
    if not run.learnt:
        return f"{run.model}, scored without training in this run."
    done, planned = run.epochs
    share = done if done == planned else f"{done} of {planned}"
    epochs = f" for {share} epoch{'s' * (planned != 1)}" if planned and done else ""
    further = run.provenance.get("learnt_above")
    above = f" ({whole(further)} of them with more items than are answered)" if further else ""
    start = f"started from {name_weights(model)}" if model.get("weights") else "from scratch"
    return f"{run.model}, {start}, trained on {whole(run.learnt)} photos{above}{epochs}{_duration(run)}."


def _duration(run: RunResults) -> str:
    """Write the wall time of a run, if it is known."""
    seconds = run.provenance.get("seconds")
    if seconds is None:
        return ""
    resumed = run.provenance.get("resumed_at_epoch")
    return f", in {duration(seconds)}" + (f" since it was resumed at epoch {resumed}" if resumed else "")


def _fact(name: str, value: Any) -> tuple[str, str]:
    """Write an entry of ``provenance.json``."""
    if name == "clean":
        return "uncommitted changes", {"True": "none", "False": "yes"}.get(str(value), "unknown")
    return name, " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _majority_baseline(run: RunResults) -> str:
    """Describe the majority baseline: the most frequent count of the training photos."""
    training = _training(run)
    return (
        f"always predicting {max(training, key=lambda count: training[count])}" if training else "a constant prediction"
    )


def _mean_baseline(run: RunResults) -> str:
    """Describe the mean baseline."""
    training = _training(run)
    if not training:
        return "a constant prediction"
    mean = sum(count * photos for count, photos in training.items()) / sum(training.values())
    return f"always predicting {mean:.2f}, the mean"


def _footer(run: RunResults) -> str:
    """Describe the origin of the page."""
    commit = str(run.provenance.get("commit") or "")[:12]
    return "Made by bincounter" + (f" at commit {commit}" if commit else "") + ". This file needs no network."
