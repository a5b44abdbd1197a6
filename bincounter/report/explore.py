"""``bincounter explore``: data.html, a data set on one page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bincounter.data.photos import read_photos
from bincounter.data.records import SPLITS, Manifest
from bincounter.errors import BinCounterError
from bincounter.names import escape_name
from bincounter.number_format import percent, whole
from bincounter.report import plots
from bincounter.report.page import write_page
from bincounter.report.report_photos import inline

# Photos and pixels: with these, even photos of pure noise keep the page under 8 MB.
COUNT_ROWS, PHOTOS_PER_COUNT = 16, 8
GROUPS, PHOTOS_PER_GROUP = 8, 4
SIDE = 184
QUARANTINE_ROWS = 300
_SIDES = ("training", "validation", "test")
GROUP_SIZES = ("1", "2", "3", "4", "5-9", "10+")
_GROUP_SIZE_EDGES = (2, 3, 4, 5, 10)


def write_data_report(
    path: Path,
    manifest: Manifest,
    keep: np.ndarray,
    assignment: np.ndarray,
    *,
    further: Sequence[int] | np.ndarray = (),
    source: str,
    settings: Mapping[str, object],
) -> Path:
    """Write the page of a data set: counts, sizes, near-copies, splits, sample photos, quarantine.

    Args:
        path: of the page.
        manifest: all photos of the data set, and rejected inputs.
        keep: int ``[N]``, indices into ``manifest.records`` of the photos within ``data.counts``.
        assignment: int ``[N]``, their splits: 0 training, 1 validation, 2 test.
        further: indices of the photos that ``data.learn_above`` adds to training.
        source: ``data.source``.
        settings: of the split (method, fractions, seed, fold) that were used.

    Returns:
        ``path``.
    """
    records = [manifest.records[i] for i in keep]
    counts = np.array([record.count for record in records], dtype=int)
    groups = np.array([record.group for record in records], dtype=int)
    refusals = [(escape_name(refusal.path), escape_name(refusal.reason)) for refusal in manifest.refusals]
    above = Counter(manifest.records[i].count for i in further)
    excluded = Counter(record.count for record in manifest.records) - Counter(counts.tolist()) - above
    content: dict[str, object] = {
        "title": f"Data of {source}",
        "kicker": f"bincounter data report · {source}",
        "headline": _headline(counts),
        "lead": _lead(counts, groups, len(further), sum(excluded.values()), len(refusals), manifest.corrected),
        "footer": f"Made by bincounter from data {manifest.digest}. This file needs no network.",
        "facts": {"source": source, "digest": manifest.digest, **{f"split {k}": v for k, v in settings.items()}},
        "photos": len(counts),
        "counts": _counts(counts, assignment),
        "above": sorted(above.items()),
        "excluded": sorted(excluded.items()),
        "sizes": _sizes(manifest.sizes[keep]),
        "near_copies": _near_copies(groups),
        "leak": leak(groups, assignment),
        "groups": _sample_groups(manifest, keep, groups, assignment),
        "samples": _samples(manifest, keep, counts, groups),
        "reasons": Counter(reason for _, reason in refusals).most_common(),
        "quarantine": refusals[:QUARANTINE_ROWS],
        "refused": len(refusals),
    }
    return write_page(path, "data.html", content)


def leak(groups: np.ndarray, assignment: np.ndarray) -> dict[str, float]:
    """Count test photos with a near-copy in training: in this split, and expected in a random one.

    Args:
        groups: int ``[N]``, near-copy group of each photo.
        assignment: int ``[N]``, 0 training, 1 validation, 2 test.

    Returns:
        ``test``, the number of test photos; ``now``, those with a near-copy in training; ``expected``, the mean number
        of these in a random split of the same sizes (hypergeometric).
    """
    photos, training = len(groups), int((assignment == 0).sum())
    test = groups[assignment == 2]
    _, inverse, size = np.unique(groups, return_inverse=True, return_counts=True)
    # A photo of a group of g escapes when its g - 1 mates are all drawn from the photos outside training.
    mates = np.arange(size.max(initial=1) - 1)
    outside = np.clip((photos - 1 - training - mates) / np.maximum(photos - 1 - mates, 1), 0, 1)
    escapes = np.concatenate([[1.0], np.cumprod(outside)])
    return {
        "test": len(test),
        "now": int(np.isin(test, groups[assignment == 0]).sum()),
        "expected": float(len(test) * (1 - escapes[size[inverse] - 1]).mean()) if photos else 0.0,
    }


def _headline(counts: np.ndarray) -> str:
    present = np.unique(counts)
    span = f"{present[0]} to {present[-1]}" if len(present) > 1 else "".join(map(str, present))
    return f"{whole(len(counts))} photos of bins with {span} items"


def _lead(
    counts: np.ndarray, groups: np.ndarray, further: int, excluded: int, refused: int, corrected: int | None
) -> str:
    values, photos = np.unique(counts, return_counts=True)
    commonest = values[photos.argmax()]
    _, inverse, size = np.unique(groups, return_inverse=True, return_counts=True)
    sentences = [
        f"Always predicting {commonest} would be right on {percent(photos.max() / len(counts))} of them.",
        f"{percent((size[inverse] > 1).mean(), 0)} have a near-copy among the others.",
    ]
    if further:
        sentences.append(f"{whole(further)} more with other counts are in training alone, by data.learn_above.")
    if excluded:
        sentences.append(f"{whole(excluded)} more are outside of data.counts.")
    if corrected is not None:
        sentences.append(f"{whole(corrected)} of the source have another count by data.corrections.")
    verb = "input was" if refused == 1 else "inputs were"
    sentences.append(f"{whole(refused)} {verb} rejected." if refused else "No input was rejected.")
    return " ".join(sentences)


def _counts(counts: np.ndarray, assignment: np.ndarray) -> dict[str, Any]:
    values = np.unique(counts).tolist()
    by_split = {
        name: [int(((counts == value) & (assignment == split)).sum()) for value in values]
        for split, name in enumerate(SPLITS)
    }
    rows = [
        (value, [photos[i] for photos in by_split.values()], sum(photos[i] for photos in by_split.values()))
        for i, value in enumerate(values)
    ]
    totals = [sum(photos) for photos in by_split.values()]
    plot = plots.stacked_bars(values, by_split, xlabel="Items in the bin", label="Photos per count and split")
    return {"plot": plot, "rows": rows, "totals": [*totals, sum(totals)]}


def _sizes(pixels: np.ndarray) -> dict[str, Any]:
    middle = np.median(pixels, axis=0).astype(int)
    distinct = np.unique(pixels, axis=0)
    return {
        "plot": plots.sizes(pixels, label="Photo heights against widths") if len(distinct) > 1 else None,
        "median": middle.tolist(),
        "range": [f"{low} to {high}" for low, high in zip(pixels.min(0), pixels.max(0), strict=True)],
    }


def _near_copies(groups: np.ndarray) -> dict[str, Any]:
    _, size = np.unique(groups, return_counts=True)
    binned = np.bincount(np.digitize(size, _GROUP_SIZE_EDGES), weights=size, minlength=len(GROUP_SIZES)).astype(int)
    plot = plots.stacked_bars(
        GROUP_SIZES, {"photos": binned.tolist()}, xlabel="Photos in the group", label="Photos by size of their group"
    )
    return {"plot": plot, "groups": len(size), "several": int((size > 1).sum()), "largest": int(size.max())}


def _sample_groups(
    manifest: Manifest, keep: np.ndarray, groups: np.ndarray, assignment: np.ndarray
) -> list[dict[str, Any]]:
    """Return groups of two to four photos, drawn at random, and the largest group."""
    names, size = np.unique(groups, return_counts=True)
    small = names[(size > 1) & (size <= PHOTOS_PER_GROUP)]
    drawn = np.random.default_rng(0).choice(small, min(GROUPS - 1, len(small)), replace=False)
    largest = names[size.argmax()]
    chosen = [*drawn.tolist(), *([int(largest)] if size.max() > PHOTOS_PER_GROUP else [])]
    shown = []
    for group in chosen:
        members = np.flatnonzero(groups == group)
        photos = [_photo(manifest, keep[i]) for i in members[:PHOTOS_PER_GROUP]]
        sides = sorted({_SIDES[assignment[i]] for i in members})
        shown.append({"size": len(members), "photos": photos, "splits": " and ".join(sides)})
    return shown


def _samples(manifest: Manifest, keep: np.ndarray, counts: np.ndarray, groups: np.ndarray) -> list[dict[str, Any]]:
    """Return photos of each count, drawn at random, no two of one near-copy group."""
    rng = np.random.default_rng(0)
    samples = []
    for count in np.unique(counts)[:COUNT_ROWS]:
        members = rng.permutation(np.flatnonzero(counts == count))
        _, first = np.unique(groups[members], return_index=True)
        chosen = members[np.sort(first)][:PHOTOS_PER_COUNT]
        photos = [_photo(manifest, keep[i]) for i in chosen]
        samples.append({"count": int(count), "of": len(members), "photos": photos})
    return samples


def _photo(manifest: Manifest, index: int) -> dict[str, Any]:
    record = manifest.records[index]
    try:
        image = inline(read_photos([record.file])[0], SIDE)
    except (OSError, BinCounterError):
        image = None
    return {"id": escape_name(record.id), "count": record.count, "image": image}
