"""Caveats on a run's scores: sentences shown beside the scores, as in ``report.html`` and ``compare``."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from bincounter.data.datamodule import BinDataModule
from bincounter.errors import ConfigError, UserError
from bincounter.files import checkpoint_file
from bincounter.model.backbones import is_file_name
from bincounter.model.build import read_model, training_photos
from bincounter.training.checkpoint import read_checkpoint
from bincounter.training.results import HELD_OUT

log = logging.getLogger(__name__)

QUICK_LOOKS = ("fast_dev_run", "overfit_batches", "limit_train_batches", "limit_val_batches")
"""Settings of the Trainer that leave photos out."""


@dataclass(frozen=True)
class Overlap:
    """Number of photos of one side that are training photos of a model, or near-copies of them.

    Attributes:
        photos: number of photos of the side.
        seen: number of them with the bytes of a training photo.
        near: number of the others in a near-copy group of a training photo of this data set.
        named: number of the rest with the id of a training photo, whose bytes are others.
    """

    photos: int
    seen: int
    near: int
    named: int


def training_overlap(data: BinDataModule, description: Mapping[str, Any]) -> dict[str, Overlap]:
    """Compare the photos to score with the training photos of a checkpoint, and of those that its weights come from.

    Args:
        data: prepared data module.
        description: metadata of the checkpoint, see :func:`bincounter.model.build.checkpoint_metadata`.

    Returns:
        Overlap by side (``val``, ``test``); sides without photos are missing.
    """
    ids, learnt = training_photos(description)
    names, records = set(ids), data.manifest.records
    known = np.isin(data.manifest.content.view(np.int64), learnt.numpy())
    groups = {record.group for record, each in zip(records, known.tolist(), strict=True) if each}
    overlaps = {}
    for side, name in HELD_OUT.items():
        positions = data.side(name)
        seen = known[positions]
        near = np.array([records[i].group in groups for i in positions], bool) & ~seen
        named = np.array([records[i].id in names for i in positions], bool) & ~seen & ~near
        if len(positions):
            overlaps[side] = Overlap(len(positions), *(int(each.sum()) for each in (seen, near, named)))
    return overlaps


def photos_behind_weights(weights: str | None, resume_from: str | None) -> tuple[list[str], Tensor]:
    """Ids and content hashes, ``int64[N]``, of what ``model.weights`` was trained on, if it names a checkpoint.

    Those of a resumed run are in its own checkpoint, except in those of earlier versions: the file of its initial
    weights may be gone.
    """
    described = {} if resume_from is None else read_checkpoint(resume_from, "bincounter")["bincounter"]
    if "earlier_ids" in described:
        return described["earlier_ids"], described["earlier_content"]
    if weights is not None and is_file_name(weights):
        with suppress(UserError):  # the backbone accepted it: a file of weights alone, or gone since
            return training_photos(read_model(checkpoint_file(Path(weights).expanduser()))["bincounter"])
    return [], torch.zeros(0, dtype=torch.int64)


def log_overlap(overlaps: Mapping[str, Overlap]) -> int:
    """Log and return the number of scored photos that the checkpoint was trained on."""
    photos, seen = (sum(getattr(each, name) for each in overlaps.values()) for name in ("photos", "seen"))
    log.info("The checkpoint was trained on %s of these %s photos.", f"{seen:,}", f"{photos:,}")
    return seen


def follow_checkpoint(cfg: DictConfig, description: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """Take over the checkpoint's model and counts, and its image size unless another is given.

    Args:
        cfg: of a run that scores the checkpoint; changed in place.
        description: metadata of the checkpoint, see :func:`bincounter.model.build.checkpoint_metadata`.
        overrides: of the command line.

    Returns:
        Caveats on the scores, which are logged, too.

    Raises:
        ConfigError: an override contradicts the checkpoint.
    """
    caveats = []
    given = {override.split("=")[0].lstrip("+") for override in overrides}
    asked = {key: OmegaConf.select(cfg, key) for key in given if key.startswith(("model.", "objective."))}
    size, known = description["image_size"], description["counts"]
    if "data.image_size" not in given:
        cfg.data.image_size = size
    elif cfg.data.image_size != size:
        caveats.append(f"The checkpoint was trained at data.image_size={size}, not {cfg.data.image_size}.")
    unknown = sorted(set(cfg.data.counts or known) - set(known))
    if unknown:
        caveats.append(f"The checkpoint does not know count {', '.join(map(str, unknown))}: its photos are excluded.")
    for caveat in caveats:
        log.warning("%s", caveat)
    wanted = [count for count in known if count in (cfg.data.counts or known)]
    if not wanted:
        raise ConfigError(
            f"data.counts={list(cfg.data.counts)}, but the checkpoint knows {', '.join(map(str, known))}: name some of "
            "these, or leave data.counts out"
        )
    cfg.data.counts = wanted
    # config.yaml and the report show the configuration of the scored model.
    with open_dict(cfg):
        cfg.objective = description["objective"]
        for key, value in {"answer": "mode", "average_flips": False, **description["model"]}.items():
            OmegaConf.update(cfg.model, key, value, merge=key != "backbone")
    for key, value in asked.items():
        if (trained := OmegaConf.select(cfg, key)) != value and key != "model.weights":
            raise ConfigError(f"{key}={value}, but the checkpoint has {trained}: leave {key} out to score it")
    return caveats


def list_caveats(plain: Mapping[str, Any], data: BinDataModule, overlaps: Mapping[str, Overlap]) -> list[str]:
    """List the limits of a run's scores, one sentence each.

    Args:
        plain: the run's configuration as plain containers.
        data: prepared data module.
        overlaps: overlap with the training photos, by scored side.
    """
    caveats = []
    for side, overlap in overlaps.items():
        these = f"of the {overlap.photos:,} {HELD_OUT[side]} photos"
        if overlap.seen:
            caveats.append(f"The model was trained on {overlap.seen:,} {these}: their scores are too good.")
        if overlap.near:
            method = f" (data.split.method={plain['data']['split']['method']})" if plain["train"] else ""
            caveats.append(
                f"{overlap.near:,} {these} are near-copies of training photos{method}: their scores are too good."
            )
        if overlap.named:
            caveats.append(
                f"{overlap.named:,} {these} have the name of a training photo, but other bytes: if they show the same "
                "bins, their scores are too good."
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
