"""Split into train, validation and test: grouped, stratified and stored; reads and writes split.csv.

The grouped split is greedy, like scikit-learn's ``StratifiedGroupKFold`` but for shares of any size: groups go, from
the largest to the smallest, to the side that still lacks most of their counts (Sechidis et al., 2011, "On the
Stratification of Multi-Label Data"). On ABID counts 1-5 (6,664 photos in 4,178 groups) every side ends within one photo
of its share, and so does every count on every side (``pytest tests/data/test_splits.py -m photos``).
"""

import csv
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bincounter.data.records import SPLITS, BinRecord, Manifest
from bincounter.data.split_settings import METHODS
from bincounter.errors import ConfigError, DataError, check_choice
from bincounter.files import write_table
from bincounter.names import read_cell

log = logging.getLogger(__name__)

_HEADER = ["id", "count", "group", "split"]


@dataclass(frozen=True, slots=True)
class SplitRow:
    """One line of a ``split.csv``."""

    id: str
    count: int
    group: int
    split: str


def assign_splits(
    counts: np.ndarray,
    groups: np.ndarray,
    *,
    fractions: tuple[float, float, float],
    method: str,
    seed: int,
    given: Sequence[str | None],
    fold: int | None = None,
) -> np.ndarray:
    """Split photos into training, validation and test.

    Args:
        counts: ``int[N]``, the label of each photo; photos in an order that does not depend on the machine.
        groups: ``int[N]``, the near-copy group of each photo.
        fractions: shares of the photos for training, validation and test, adding up to 1; a share of 0 gets nothing.
        method: ``grouped`` keeps groups whole, and uses the layout's own sides instead of ``fractions`` and ``seed`` if
            those keep them whole too; ``given`` uses the layout's own sides as they are; ``random`` ignores groups.
        seed: decides between equally good splits.
        given: for each photo the side that its layout gives (one of :data:`SPLITS`), or ``None``.
        fold: of a cross-validation: the photos are split into as many equal parts as test shares make a whole, and this
            one, counted from 0, is the test side. The layout's own sides are not used.

    Returns:
        ``int8[N]``, positions in :data:`SPLITS`.

    Raises:
        ConfigError: an unknown method, or ``method="given"`` with a layout that gives no sides, or not for every photo.
        DataError: a side with a positive share gets no photo.
    """
    check_choice("data.split.method", method, METHODS)
    if fold is not None:
        assignment = _held_out(counts, np.arange(len(counts)) if method == "random" else groups, fractions, seed, fold)
    elif method == "given":
        assignment = _given_sides(given)
    elif method == "random":
        assignment = _divided(counts, np.arange(len(counts)), fractions, seed)
    elif _keeps_groups(groups, fractions, given):
        assignment = _given_sides(given)
    else:
        assignment = _divided(counts, groups, fractions, seed)
    _refuse_empty(assignment, groups, fractions)
    return assignment


def load_or_assign_splits(
    manifest: Manifest,
    keep: np.ndarray,
    *,
    fractions: tuple[float, float, float],
    method: str,
    seed: int,
    cache_dir: Path,
    fold: int | None = None,
) -> np.ndarray:
    """Return the split of a data set, computed once and stored in ``<cache_dir>/splits``.

    Args:
        manifest: all readable photos.
        keep: ``int[N]``, positions in ``manifest.records`` of the photos with wanted counts.
        fractions: as for :func:`assign_splits`.
        method: as for :func:`assign_splits`.
        seed: as for :func:`assign_splits`.
        cache_dir: the cache folder.
        fold: as for :func:`assign_splits`.

    Returns:
        ``int8[N]``, positions in :data:`SPLITS`.

    Raises:
        ConfigError: as :func:`assign_splits`.
        DataError: as :func:`assign_splits`.
    """
    positions = keep.tolist()
    records = [manifest.records[i] for i in positions]
    given = [manifest.given_splits[i] for i in positions]
    settings = [manifest.digest, positions, given, [float(share) for share in fractions], method, seed]
    settings += [] if fold is None else [fold]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    path = Path(cache_dir) / "splits" / f"{digest}.csv"
    assignment = _stored(path, records)
    if assignment is None:
        counts = np.array([record.count for record in records], np.int64)
        groups = np.array([record.group for record in records], np.int64)
        assignment = assign_splits(
            counts, groups, fractions=fractions, method=method, seed=seed, given=given, fold=fold
        )
        write_split(path, records, assignment)
    return assignment


def keep_sides(
    source: Manifest,
    corrected: Manifest,
    keep: np.ndarray,
    counts: Sequence[int] | None,
    split: Mapping[str, Any],
    cache_dir: Path,
) -> np.ndarray:
    """Return the split of a data set whose labels were corrected: photos stay on the sides that they had before.

    Else an earlier model would be compared with a new one on photos that it has learnt. Photos that only corrections
    bring into the support follow their near-copies, or are split by themselves. If they are most of the photos, all are
    split by the corrected counts.

    Args:
        source: all readable photos, with the counts of the source.
        corrected: the same with the corrected counts.
        keep: ``int[N]``, positions of the photos with wanted counts, by the corrected ones.
        counts: the support; ``None`` for all counts.
        split: ``method, fractions, seed, fold`` of :func:`assign_splits`.
        cache_dir: the cache folder.

    Returns:
        ``int8[N]``, positions in :data:`SPLITS`.

    Raises:
        ConfigError: as :func:`assign_splits`.
        DataError: as :func:`assign_splits`.
    """
    before = [i for i, record in enumerate(source.records) if counts is None or record.count in counts]
    if source is corrected or len(before) < len(keep) / 2:
        return load_or_assign_splits(corrected, keep, cache_dir=cache_dir, **split)
    sides = np.full(len(source.records), -1, np.int8)
    sides[before] = load_or_assign_splits(source, np.array(before, np.int64), cache_dir=cache_dir, **split)
    groups = np.array([record.group for record in source.records], np.int64)
    side_of = dict(zip(groups[before].tolist(), sides[before].tolist(), strict=True))
    for i in keep[sides[keep] < 0].tolist():
        given = source.given_splits[i] if split["method"] == "given" and split["fold"] is None else None
        sides[i] = side_of.get(groups[i], -1) if given is None else SPLITS.index(given)
    new = keep[sides[keep] < 0]
    if len(new):
        labels = np.array([corrected.records[i].count for i in new], np.int64)
        sides[new] = _divided(labels, groups[new], split["fractions"], split["seed"])
    _refuse_empty(sides[keep], groups[keep], split["fractions"])
    return sides[keep]


def photos_above(manifest: Manifest, count: int, scored: np.ndarray) -> np.ndarray:
    """Positions of the photos with more than ``count`` items and without a near-copy among those to be scored.

    Args:
        manifest: all readable photos.
        count: of items.
        scored: ``int[N]``, positions of the photos to be scored.

    Returns:
        ``int64[M]``, ascending.
    """
    groups = {manifest.records[i].group for i in scored}
    found = (i for i, record in enumerate(manifest.records) if record.count > count and record.group not in groups)
    return np.fromiter(found, np.int64)


def write_split(path: str | Path, records: Sequence[BinRecord], assignment: np.ndarray) -> None:
    """Write ``split.csv`` atomically: one line per photo, ``id,count,group,split``."""
    sides = zip(records, assignment.tolist(), strict=True)
    write_table(path, _HEADER, ((record.id, record.count, record.group, SPLITS[side]) for record, side in sides))


def read_split(path: str | Path) -> list[SplitRow]:
    """Read a table of :func:`write_split`.

    Raises:
        DataError: the file is missing or is not a split.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            if next(lines, None) != _HEADER:
                raise ValueError
            rows = [SplitRow(read_cell(name), int(count), int(group), split) for name, count, group, split in lines]
    except (FileNotFoundError, ValueError, csv.Error):
        rows = []
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): make it readable") from error
    if not rows or {row.split for row in rows} - set(SPLITS):
        raise DataError(f"{path} is not a split: it must be a table of {','.join(_HEADER)}")
    return rows


def _stored(path: Path, records: Sequence[BinRecord]) -> np.ndarray | None:
    """Read the stored sides; ``None`` if they are missing, corrupt or of other photos."""
    if not path.exists():
        return None
    try:
        rows = read_split(path)
    except DataError:
        rows = []
    if [(row.id, row.count, row.group) for row in rows] != [
        (record.id, record.count, record.group) for record in records
    ]:
        log.warning("The stored split %s is corrupt: computing it again", path)
        return None
    return np.array([SPLITS.index(row.split) for row in rows], np.int8)


def _given_sides(given: Sequence[str | None]) -> np.ndarray:
    missing = sum(side is None for side in given)
    if missing:
        inside = "no photo" if missing == len(given) else f"only {len(given) - missing:,} of {len(given):,} photos"
        raise ConfigError(
            f"data.split.method=given needs folders named train, valid and test, but {inside} is in one: "
            "set data.split.method=grouped"
        )
    return np.array([SPLITS.index(side) for side in given if side], np.int8)


def _keeps_groups(groups: np.ndarray, fractions: Sequence[float], given: Sequence[str | None]) -> bool:
    """Return True if the layout's own sides are those with a share and keep groups whole; logs the reason if not."""
    if not any(given):
        return False
    asked = {side for side, share in zip(SPLITS, fractions, strict=True) if share > 0}
    if set(given) != asked:
        if len(asked) > 1:
            log.warning(
                "The split folders are not %s for every photo: splitting by group instead",
                " and ".join(sorted(asked, key=SPLITS.index)),
            )
        return False
    sides = _given_sides(given).astype(np.int64)
    _, group = np.unique(groups, return_inverse=True)
    holds = np.zeros((group.max() + 1, len(SPLITS)), bool)
    holds[group, sides] = True
    straddling = int((holds.sum(axis=1) > 1)[group].sum())
    if straddling:
        log.warning(
            "%s of %s photos are near-copies of photos in another split folder: splitting by group instead "
            "(data.split.method=given keeps the folders' split)",
            f"{straddling:,}",
            f"{len(groups):,}",
        )
    else:
        log.info(
            "Using the train/valid/test folders of the source: data.split.fractions and data.split.seed are not used"
        )
    return not straddling


def _held_out(
    counts: np.ndarray, groups: np.ndarray, fractions: tuple[float, float, float], seed: int, fold: int
) -> np.ndarray:
    """Sides with one part of a cross-validation as the test side, see :func:`assign_splits`."""
    train, valid, test = fractions
    parts = round(1 / test)
    rest = np.flatnonzero(_divided(counts, groups, [1 / parts] * parts, seed) != fold)
    assignment = np.full(len(counts), SPLITS.index("test"), np.int8)
    assignment[rest] = _divided(counts[rest], groups[rest], [train / (train + valid), valid / (train + valid)], seed)
    return assignment


def _divided(counts: np.ndarray, groups: np.ndarray, fractions: Sequence[float], seed: int) -> np.ndarray:
    """Assign whole groups, the largest first, to the side where they reduce the weighted squared error most.

    With ``w`` wanted and ``h`` assigned photos of a count on a side, the error is ``(h - w)^2 / w``. The photos of all
    counts together weigh as much as the counts do, so that many rare counts cannot starve a small side.
    """
    sides = [side for side, share in enumerate(fractions) if share > 0]
    _, label = np.unique(counts, return_inverse=True)
    kinds = int(label.max()) + 1
    wanted = np.outer(np.array(fractions)[sides], [*np.bincount(label), len(counts)])
    held = np.zeros_like(wanted)
    weight = np.array([1.0] * kinds + [float(kinds)]) / wanted
    assignment = np.empty(len(counts), np.int8)
    for members in _largest_first(groups, seed):
        there, photos = np.unique(np.append(label[members], kinds), return_counts=True)
        photos[-1] = len(members)
        added = photos * (2 * (held[:, there] - wanted[:, there]) + photos) * weight[:, there]
        best = int(added.sum(axis=1).argmin())
        held[best, there] += photos
        assignment[members] = sides[best]
    return assignment


def _largest_first(groups: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Yield positions of the photos of each group; groups of equal size in an order drawn from ``seed``."""
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(sizes)[:-1])
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    for index in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        yield members[index]


def _refuse_empty(assignment: np.ndarray, groups: np.ndarray, fractions: Sequence[float]) -> None:
    held = np.bincount(assignment, minlength=len(SPLITS))
    for side, share, photos in zip(SPLITS, fractions, held, strict=True):
        if share > 0 and not photos:
            asked = ",".join(f"{float(fraction):g}" for fraction in fractions)
            raise DataError(
                f"data.split.fractions=[{asked}] leaves no photo for the {side} split, as there are "
                f"{len(assignment):,} photos in {len(np.unique(groups)):,} near-copy group(s): "
                "add photos or change data.split.fractions"
            )
