"""Training of a head on cached features of a frozen backbone.

The features of a photo without augmentation are the same in every epoch, run and trial. They are cached automatically;
``data.cache=false`` switches it off.
"""

import hashlib
import inspect
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from hydra.utils import get_object
from lightning.pytorch.callbacks import BaseFinetuning, StochasticWeightAveraging
from torch import Tensor, nn

from bincounter.data.datamodule import BinDataModule
from bincounter.data.feature_store import FeatureStore
from bincounter.data.photo_store import code_digest, decoder_digest
from bincounter.data.preprocessing import Normalize
from bincounter.model import counter
from bincounter.model.counter import BinCounter
from bincounter.parallel import map_ordered
from bincounter.progress import track
from bincounter.training.caveats import QUICK_LOOKS
from bincounter.training.checkpoint import read_checkpoint
from bincounter.training.scoring import fabric_for

log = logging.getLogger(__name__)

_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # the others convert the backbone's weights
# Photos of 224 pixels per batch, more of smaller ones; on 2 CPU cores a ResNet50 is no faster with more.
_CPU_BATCH, _GPU_BATCH = 32, 256
_LARGEST_BATCH = 256


class CachedFeatures:
    """Features of a data set's photos, computed by the frozen backbone of a run.

    Args:
        model: model with the backbone.
        data: prepared data module, which serves the added features.
        fabric: device and precision.
        described: everything the features depend on, see :func:`identity`.
        cache_dir: folder of the stored features.
    """

    def __init__(
        self, model: BinCounter, data: BinDataModule, fabric: L.Fabric, described: Mapping[str, Any], cache_dir: Path
    ) -> None:
        self._model, self._data, self._fabric = model, data, fabric
        self._described, self._cache_dir = described, cache_dir
        self._normalize = fabric.to_device(Normalize())
        usual = _CPU_BATCH if fabric.device.type == "cpu" else _GPU_BATCH
        self._batch = max(min(usual * 224**2 // data.image_size**2, _LARGEST_BATCH), 1)
        self._store: FeatureStore | None = None
        self._computed, self._seconds = 0, 0.0

    def add(self, positions: np.ndarray) -> bool:
        """Make the data module serve features of the photos at ``positions`` of ``manifest.records``.

        Returns:
            True; False if the disk is full, or a photo's features depend on more than the photo.
        """
        self._computed, self._seconds = 0, 0.0
        first = positions[:1]
        alone = self._features(self._data.store.batch(first))
        if alone.ndim != 2 or not alone.is_floating_point():
            return False
        store = self._store = self._store or self._open(alone)
        if not store.fill(positions, self._compute):
            return False
        if not _close(store.batch(first), alone):
            # The digest lacks code that the backbone calls in other modules; one photo computed again shows a change.
            log.warning("The features in %s are not those of this backbone: computing them again.", store.folder)
            store.clear()
            if not store.fill(positions, self._compute):
                return False
        if not _close(store.batch(first), alone):
            log.warning("The backbone's features of a photo depend on more than the photo: they are not stored.")
            return False
        self._data.use_features(store)
        return True

    def origin(self, photos: int) -> str:
        """Describe the origin of the features of ``photos`` photos, for the log."""
        assert self._store is not None
        if not self._computed:
            return f"{photos:,} photos, stored in {self._store.folder}"
        share = "" if self._computed == photos else f"{self._computed:,} of them "
        return f"{photos:,} photos, {share}computed in {self._seconds:.1f} s and stored in {self._store.folder}"

    def _open(self, example: Tensor) -> FeatureStore:
        rows, size = len(self._data.manifest.records), example.shape[1]
        return FeatureStore(self._cache_dir, self._described, rows=rows, size=size, dtype=example.dtype)

    def _compute(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield features of batches padded to one size, so that they do not depend on the number of missing ones."""
        started = time.monotonic()
        blocks = [rows[start : start + self._batch] for start in range(0, len(rows), self._batch)]
        photos = map_ordered(self._data.store.batch, blocks, workers=1)  # read ahead while the device computes
        for block, read in track(
            zip(blocks, photos, strict=True), "Computing features of the frozen backbone, in batches", len(blocks)
        ):
            padding = np.arange(self._batch) % len(read)
            yield block, self._features(read[padding] if len(read) < self._batch else read)[: len(block)]
        self._computed, self._seconds = len(rows), time.monotonic() - started

    @torch.inference_mode()
    def _features(self, photos: Tensor) -> Tensor:
        model: BinCounter = self._fabric.to_device(self._model).eval()  # type: ignore[assignment]
        with self._fabric.autocast():
            return model.features(self._normalize(self._fabric.to_device(photos))).cpu()


def cached_features(
    plain: Mapping[str, Any], trainer: L.Trainer, model: BinCounter, data: BinDataModule, resume_from: str | None
) -> CachedFeatures | None:
    """Make a run train on features instead of photos, if that changes only its time.

    Args:
        plain: the run's configuration as plain containers.
        trainer: the run's trainer.
        model: model before the fit.
        data: prepared data module.
        resume_from: checkpoint to resume from, if any.

    Returns:
        The features; ``None`` if the run trains on photos.
    """
    if not plain["data"]["cache"] or not _has_constant_features(plain, trainer, model):
        return None
    changes = {name: value for name, value in plain["data"]["augmentation"].items() if value}
    zeros = ",".join(f"{name}:{'false' if value is True else 0}" for name, value in changes.items())
    prevent = [f"'data.augmentation={{{zeros}}}'"] if changes else []
    prevent += ["model.average_flips=false"] if plain["model"]["average_flips"] else []
    if prevent:
        log.info(
            "Hint: the backbone is frozen; with %s its features would be computed once, and epochs would take seconds.",
            " ".join(prevent),
        )
        return None
    if resume_from is not None:  # the file of pretrained weights may have changed since
        _restore_backbone(model, resume_from)
    fabric = fabric_for(plain["trainer"])
    backbone, precision = plain["model"]["backbone"], str(trainer.precision)
    described = identity(model, data, backbone=backbone, precision=precision, device=fabric.device)
    features = CachedFeatures(model, data, fabric, described, Path(plain["paths"]["cache_dir"]))
    positions = np.concatenate([data.training, data.side("validation")])
    used = features.add(positions)
    model.train()
    if not used:
        return None
    log.info("Training on cached features of the frozen backbone: %s", features.origin(len(positions)))
    return features


def _has_constant_features(plain: Mapping[str, Any], trainer: L.Trainer, model: BinCounter) -> bool:
    """Return True if a photo's features are constant during the run, and the run uses all of its photos."""
    return (
        model.trained == "frozen"
        and not model.objective.spatial
        and trainer.world_size == 1
        and trainer.precision in _PRECISIONS
        and not any(plain["trainer"].get(key) for key in QUICK_LOOKS)
        and all(_keeps_backbone(node["_target_"]) for node in (plain["callbacks"] or {}).values() if node)
    )


def _keeps_backbone(callback: str) -> bool:
    """Return True if a callback, by its dotted name, neither changes the backbone nor reads photos."""
    if callback.partition(".")[0] not in ("lightning", "bincounter"):
        return False  # unknown for a user's own
    found = get_object(callback)
    return isinstance(found, type) and not issubclass(found, (BaseFinetuning, StochasticWeightAveraging))


def _restore_backbone(model: BinCounter, checkpoint: str) -> None:
    stored = read_checkpoint(checkpoint, "state_dict")
    # EMA stores the trained weights apart from the averaged ones, whose frozen part differs by rounding.
    state = stored.get("current_model_state", stored["state_dict"])
    backbone = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    model.backbone.load_state_dict(backbone)


def _close(stored: Tensor, computed: Tensor) -> bool:
    """Return True if features are equal up to the rounding error of another batch size."""
    tolerance = 1e-3 if computed.dtype == torch.float32 else 3e-2
    stored, computed = stored.float(), computed.float()
    return bool((stored - computed).norm() <= tolerance * computed.norm())


def identity(
    model: BinCounter, data: BinDataModule, *, backbone: Mapping[str, Any], precision: str, device: torch.device
) -> dict[str, str | int]:
    """Describe everything that features depend on, before they are computed.

    Args:
        model: model with the backbone.
        data: prepared data module.
        backbone: the ``model.backbone`` node of the configuration.
        precision: precision by Lightning's name.
        device: device of the computation.
    """
    gpu = device.type == "cuda"
    return {
        "backbone": _digest(json.dumps(backbone, sort_keys=True, default=str).encode(), repr(model.backbone).encode()),
        "weights": _digest_of_tensors(model.backbone),
        "code": _digest_of_code(model.backbone),
        "image_size": data.image_size,
        "preprocessing": decoder_digest(),
        "photos": _digest(data.manifest.content.tobytes()),
        "precision": f"{precision}, float32 matrices {torch.get_float32_matmul_precision()}",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision")),
        # On a CPU its vector instructions, by which torch chooses kernels.
        "device": torch.cuda.get_device_name(device)
        if gpu
        else f"{device.type} {torch.backends.cpu.get_cpu_capability()}",
    }


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]


def _digest_of_tensors(module: nn.Module) -> str:
    """Digest of all parameters and buffers, including those missing from checkpoints."""
    digest = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _digest_of_code(backbone: nn.Module) -> str:
    """Digest of the files that define the backbone's modules, and of the model's, which calls them."""
    modules = {type(module).__module__ for module in backbone.modules()} | {counter.__name__}
    files = {inspect.getsourcefile(sys.modules[name]) for name in modules if name in sys.modules}
    return code_digest(*(Path(file) for file in sorted(filter(None, files))))
