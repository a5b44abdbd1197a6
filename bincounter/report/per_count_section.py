"""Section of the report with photos and loss of each count, and their rank correlation."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from math import factorial
from typing import Any

import numpy as np

from bincounter.number_format import decimals, percent, whole
from bincounter.report import plots
from bincounter.training.per_count_table import CountRow
from bincounter.training.results import SPLIT_OF_SIDE, RunResults

_SPLITS = {"train": "Training", "validation": "Validation", "test": "Test"}
_FEW = 10  # photos below which a count's scores are uncertain
_LISTED = 8  # counts that a sentence lists one by one
_EVEN = 1.1  # ratio of photos up to which counts are about equal
_CHANCE = 0.05  # share of orders as strong, below which a correlation is reported

Rows = Mapping[tuple[int, str], CountRow]


def per_count_section(run: RunResults, side: str) -> dict[str, Any] | None:
    """Return the values of the template ``per_count.html``.

    Args:
        run: the results.
        side: ``test`` or ``val``, the headline side.

    Returns:
        ``None`` if that side was not scored.
    """
    scores = (run.metrics.get(side) or {}).get("per_count")
    if not scores:
        return None
    rows = per_count_rows(run)
    counts = sorted({count for count, _ in rows})
    splits = [split for split in _SPLITS if any(_there(rows, count, split) for count in counts)]
    rmse = {row["count"]: row["rmse"] for row in scores}
    return {
        "splits": [_SPLITS[split] for split in splits],
        "rows": [(count, [format_row(rows[count, split]) for split in splits], rmse.get(count)) for count in counts],
        "rmse_of": _SPLITS[SPLIT_OF_SIDE[side]],
        "plot": _plot(rows, counts, splits),
        "keys_of_plot": _keys(rows, counts, splits),
        "even_guess": math.log(len(counts)),
        "notes": _notes(run, rows, counts, SPLIT_OF_SIDE[side]),
        "file": bool(run.per_count),
        "findings": _findings(rows, counts, SPLIT_OF_SIDE[side]),
    }


def _there(rows: Rows, count: int, split: str) -> bool:
    return bool((count, split) in rows and (rows[count, split].photos or rows[count, split].scored))


def per_count_rows(run: RunResults) -> Rows:
    """Return the rows of ``per_count.csv``, or those of ``metrics.json`` for runs of versions without it."""
    return run.per_count or _rows_of_metrics(run)


def _rows_of_metrics(run: RunResults) -> dict[tuple[int, str], CountRow]:
    """Read rows from ``metrics.json``, for runs of versions without ``per_count.csv``."""
    rows = {}
    for side, split in SPLIT_OF_SIDE.items():
        scored = {row["count"]: row for row in (run.metrics.get(side) or {}).get("per_count", ())}
        photos = run.photos(split)
        for key in run.metrics:
            for row in run.metrics[key].get("per_count", ()):
                count, score = row["count"], scored.get(row["count"], {})
                there = row["train_n"] if split == "train" else photos.get(count, score.get("n", 0))
                rows[count, split] = CountRow(
                    photos=there,
                    scored=score.get("n", 0),
                    accuracy=score.get("accuracy"),
                    loss=score.get("cross_entropy"),
                )
    return rows


def format_row(row: CountRow) -> dict[str, str]:
    """Format one split of one count."""
    return {
        "photos": whole(row.photos),
        "scored": f"{whole(row.scored)} scored" if 0 < row.scored != row.photos else "",
        "loss": decimals(row.loss, 2),
        "loss_range": _range(row.loss_interval, lambda value: f"{value:.2f}"),
        "accuracy": percent(row.accuracy),
        "accuracy_range": _range(row.accuracy_interval, lambda value: f"{100 * value:.1f}", " %"),
    }


def _range(interval: tuple[float, float] | None, written: Callable[[float], str], unit: str = "") -> str:
    return "" if interval is None else f"{written(interval[0])} to {written(interval[1])}{unit}"


def _with_loss(rows: Rows, counts: Sequence[int], split: str) -> list[int]:
    return [count for count in counts if (count, split) in rows and rows[count, split].loss is not None]


def _plot(rows: Rows, counts: Sequence[int], splits: Sequence[str]) -> Any:
    photos = {split: [rows[count, split].photos or 0 for count in counts] for split in splits}
    losses = {
        split: [(rows[count, split].loss, rows[count, split].loss_interval) for count in counts]
        for split in splits
        if _with_loss(rows, counts, split)
    }
    return plots.photos_and_losses(counts, photos, losses, label="Photos, training and test loss of each count")


def _keys(rows: Rows, counts: Sequence[int], splits: Sequence[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    bars = [(f"block {split}", _SPLITS[split].lower()) for split in splits]
    lines = [(split, _SPLITS[split].lower()) for split in splits if _with_loss(rows, counts, split)]
    return [("Photos", bars), ("Loss", lines)]


def _notes(run: RunResults, rows: Rows, counts: Sequence[int], split: str) -> list[str]:
    """Notes on the origin of the numbers and their limits."""
    side = _SPLITS[split].lower()
    notes = []
    scored, photos = (
        sum(getattr(rows[count, "train"], name) or 0 for count in counts) for name in ("scored", "photos")
    )
    if scored:
        notes.append(f"A wide gap between training and {side} loss is overfitting.")
    if not scored and photos:
        notes.append("This run did not train: its training photos are those of the checkpoint, unscored.")
    elif scored < photos:
        notes.append(
            f"Training losses are of {whole(scored)} of {whole(photos)} photos, drawn at random within each count."
        )
    if none := [count for count in counts if not rows[count, split].scored]:
        notes.append(f"No {side} photo has {_listed(none, len(counts))}.")
    if few := [count for count in counts if 0 < rows[count, split].scored < _FEW]:
        notes.append(f"Fewer than {_FEW} {side} photos have {_listed(few, len(counts))}: their scores are uncertain.")
    if (run.config.get("data") or {}).get("balanced") and scored:
        notes.append("Training drew every count equally often (data.balanced=true), however many photos it has.")
    return notes


def _findings(rows: Rows, counts: Sequence[int], split: str) -> list[str]:
    """Sentences on the correlation of photos and loss over the counts, and its limits."""
    side = _SPLITS[split].lower()
    scored = _with_loss(rows, counts, split)
    photos = [rows[count, "train"].photos for count in scored]
    if None in photos:
        return ["The number of training photos of each count is unknown."]
    if len(scored) < FEWEST:
        return [f"Fewer than {FEWEST} counts have a {side} loss: too few for a correlation with photos."]
    losses = [float(rows[count, split].loss or 0) for count in scored]
    by_count = rank_correlation([float(count) for count in scored], losses)
    findings = [_finding_of_photos([float(number or 0) for number in photos], losses, side)]
    if by_count:
        findings.append(_finding(by_count, len(scored), "Larger counts", "the count itself", side))
    findings.append(
        "Neither is a cause: counts differ in difficulty as well as in photos, and each count weighs the same here, "
        "however few its photos. Only runs with more or fewer photos of the same count show their effect."
    )
    return findings


def _finding_of_photos(photos: Sequence[float], losses: Sequence[float], side: str) -> str:
    if max(photos) <= _EVEN * min(photos):  # ranks would exaggerate a difference of few photos
        return (
            f"All counts have about as many training photos ({whole(int(min(photos)))} to {whole(int(max(photos)))}): "
            "this run cannot show the effect of their number."
        )
    correlation = rank_correlation(photos, losses)
    if correlation is None:
        return f"Every count has the same {side} loss: a correlation is undefined."
    return _finding(correlation, len(photos), "Counts with more training photos", "training photos", side)


def _finding(correlation: tuple[float, float], counts: int, more: str, subject: str, side: str) -> str:
    strength, share = correlation
    chance = "under 0.1 %" if share < 0.001 else percent(share)
    orders = f"rank correlation {strength:+.2f} over {counts} counts; {chance} of all orders give one as strong"
    if share <= _CHANCE:
        return f"{more} have {'higher' if strength > 0 else 'lower'} {side} loss ({orders})."
    return f"No clear correlation of {subject} and {side} loss ({orders})."


def _listed(some: Sequence[int], of: int) -> str:
    if len(some) > _LISTED:
        return f"{len(some)} of the {of} counts"
    return "count " + " or ".join(filter(None, (", ".join(map(str, some[:-1])), str(some[-1]))))


FEWEST = 4
"""Rows below which even a perfect order often arises by chance."""

_EXACT = 8  # rows up to which all orders are enumerated
_DRAWN = 9999


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float] | None:
    """Spearman's rank correlation, with a permutation test.

    Spearman 1904, https://doi.org/10.2307/1412159; the test is exact up to 8 rows, with 9,999 random orders
    beyond.

    Args:
        x: ``float[N]``, finite.
        y: ``float[N]``, finite.

    Returns:
        The correlation, -1 to 1, and the share of all orders of ``y`` whose correlation is as strong or stronger, 0-1;
        ``None`` with fewer than :data:`FEWEST` rows, or if a column is constant.
    """
    from scipy.stats import rankdata

    if len(x) < FEWEST or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    a, b = (_standardised(rankdata(values)) for values in (x, y))
    found = float(a @ b)
    strong = int((np.abs(b[_orders(len(b))] @ a) >= abs(found) - 1e-9).sum())
    share = strong / factorial(len(b)) if len(b) <= _EXACT else (strong + 1) / (_DRAWN + 1)
    return found, share


def _standardised(ranks: np.ndarray) -> np.ndarray:
    centred = ranks - ranks.mean()
    return centred / np.linalg.norm(centred)


def _orders(rows: int) -> np.ndarray:
    """Return orders of ``rows`` rows, ``int[M, rows]``: all of them, or random ones from a fixed seed."""
    if rows <= _EXACT:
        return np.array(list(permutations(range(rows))))
    return np.random.default_rng(0).permuted(np.tile(np.arange(rows), (_DRAWN, 1)), axis=1)
