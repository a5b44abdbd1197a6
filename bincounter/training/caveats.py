"""Caveats on a run's scores: sentences shown beside the scores, as in ``report.html`` and ``compare``."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bincounter.data.datamodule import BinDataModule
from bincounter.training.scoring import SIDES

log = logging.getLogger(__name__)

QUICK_LOOKS = ("fast_dev_run", "overfit_batches", "limit_train_batches", "limit_val_batches")
"""Settings of the Trainer that leave photos out."""


@dataclass(frozen=True)
class Overlap:
    """Number of photos of one side that are training photos of a model, or near-copies of them.

    Attributes:
        photos: number of photos of the side.
        same_bytes: number of them with the bytes of a training photo.
        same_id: number of them with the id of a training photo.
        seen: number of them with the bytes or the id.
        near: number of the others in a near-copy group of a training photo of this data set.
    """

    photos: int
    same_bytes: int
    same_id: int
    seen: int
    near: int


def training_overlap(data: BinDataModule, description: Mapping[str, Any], *, fitted: bool) -> dict[str, Overlap]:
    """Compare the photos to score with the training photos of a checkpoint.

    Args:
        data: prepared data module.
        description: metadata of the checkpoint, see :func:`bincounter.model.build.checkpoint_metadata`.
        fitted: the checkpoint was trained on the training photos of ``data``.

    Returns:
        Overlap by side (``val``, ``test``); sides without photos are missing.
    """
    content, ids = set(description["train_content"].tolist()), set(description["train_ids"])
    records = data.manifest.records
    groups = {records[i].group for i in data.training} if fitted else set()
    overlaps = {}
    for side, name in SIDES.items():
        positions = data.side(name)
        same_bytes = np.array([int(data.manifest.content[i].view(np.int64)) in content for i in positions], bool)
        same_id = np.array([records[i].id in ids for i in positions], bool)
        near = np.array([records[i].group in groups for i in positions], bool)
        seen = same_bytes | same_id
        if len(positions):
            counted = (int(each.sum()) for each in (same_bytes, same_id, seen, near & ~seen))
            overlaps[side] = Overlap(len(positions), *counted)
    return overlaps


def log_overlap(overlaps: Mapping[str, Overlap]) -> int:
    """Log and return the number of scored photos that the checkpoint was trained on."""
    photos, same_bytes, same_id, seen = (
        sum(getattr(each, name) for each in overlaps.values()) for name in ("photos", "same_bytes", "same_id", "seen")
    )
    detail = f" ({same_bytes:,} by their bytes, {same_id:,} by their id)" if seen else ""
    log.info("The checkpoint was trained on %s of these %s photos%s.", f"{seen:,}", f"{photos:,}", detail)
    return seen


def list_caveats(plain: Mapping[str, Any], data: BinDataModule, overlaps: Mapping[str, Overlap]) -> list[str]:
    """List the limits of a run's scores, one sentence each.

    Args:
        plain: the run's configuration as plain containers.
        data: prepared data module.
        overlaps: overlap with the training photos, by scored side.
    """
    caveats = []
    for side, overlap in overlaps.items():
        these = f"of the {overlap.photos:,} {SIDES[side]} photos"
        if overlap.seen:
            caveats.append(f"The model was trained on {overlap.seen:,} {these}: their scores are too good.")
        if overlap.near:
            caveats.append(
                f"{overlap.near:,} {these} are near-copies of training photos "
                f"(data.split.method={plain['data']['split']['method']}): their scores are too good."
            )
    given = {key: plain["trainer"].get(key) for key in QUICK_LOOKS}
    # 1 is one batch, 1.0 is all of them.
    quick = [f"trainer.{key}={value}" for key, value in given.items() if value and repr(value) != "1.0"]
    if quick and plain["train"]:
        caveats.append(f"A quick look: the model was trained or chosen on a part of the photos ({', '.join(quick)}).")
    if plain["train"]:
        photos = data.count_of(data.training)
        absent = [str(count) for count in data.counts if not photos[count]]
        if absent:
            caveats.append(f"No training photo has count {', '.join(absent)}: the model never predicts it.")
    refused = len(data.manifest.refusals)
    if refused:
        caveats.append(f"{refused:,} input{'s' * (refused > 1)} of the source could not be used, see quarantine.csv.")
    return caveats
