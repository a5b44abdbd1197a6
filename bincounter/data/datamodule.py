"""``BinDataModule``: one data set, from its source to batches on the device."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from bincounter.data.augmentation import Augmentation, Mixing, ProgressiveResizing
from bincounter.data.feature_store import FeatureStore
from bincounter.data.label_corrections import correct_labels
from bincounter.data.layouts import Detected
from bincounter.data.layouts.base import IndexedLayout, Layout
from bincounter.data.photo_store import PhotoStore
from bincounter.data.preprocessing import Normalize
from bincounter.data.records import SPLITS, BinRecord, Manifest
from bincounter.data.s3.ranges import loader_options
from bincounter.data.sampler import BatchDataset, EvaluationSampler, ResumableBatchSampler, TrainingBatch
from bincounter.data.source import find_photos
from bincounter.data.split_settings import check_counts, complete_split
from bincounter.data.splits import keep_sides, photos_above
from bincounter.errors import ConfigError, DataError
from bincounter.files import lock_folder
from bincounter.model.objectives import learnt_counts
from bincounter.names import one_line
from bincounter.parallel import count_cpus, workers_within_shared_memory

log = logging.getLogger(__name__)


class BinDataModule(L.LightningDataModule):
    """Photos of bins as batches ``{"image": float32[B, 3, S, S], "count": int64[B], "id": list[str]}``.

    After :meth:`use_features`, batches hold ``"feature": [B, D]`` instead of ``"image"``. Training batches of mixed
    photos also hold ``"target": float32[B, K]``, their label distributions. A count of -1 in a scoring batch is
    padding.

    Args:
        source: a folder or an ``s3://`` URI; ``None`` for a layout that renders its photos.
        layout: of the source; by default it is detected.
        counts: the counts to use; ``None`` for all in the data. Photos with other counts are excluded.
        learn_above: number of further counts, above the largest of ``counts``, of which photos are in training alone;
            the last one takes all larger ones.
        image_size: side of the photos in pixels.
        batch_size: photos per batch on each device.
        balanced: draw every count equally often in training.
        num_workers: processes that decode photos; ``None`` for none with a cache, else up to 8.
        cache: store decoded photos, and the features of a frozen backbone, on disk.
        corrections: table of counts that replace those of the source, see
            :func:`bincounter.data.label_corrections.correct_labels`.
        sync: ``only, deleted, connections`` of :func:`bincounter.data.s3.sync.fetch`, and ``stream``.
        split: ``method, fractions, seed, fold`` of :func:`bincounter.data.splits.assign_splits`; by default the grouped
            split with shares of 0.8, 0.1 and 0.1.
        augmentation: arguments of :class:`Augmentation` and :class:`Mixing` without the seed; those left out are off.
        progressive: arguments of :class:`ProgressiveResizing`; by default it is off.
        seed: of order and augmentation.
        data_dir: folder of rendered and fetched photos.
        cache_dir: folder of manifests, splits, decoded photos and features; ``data_dir/cache`` by default.
    """

    def __init__(
        self,
        source: str | Path | None,
        layout: Layout | IndexedLayout | Detected | None = None,
        *,
        counts: Sequence[int] | None = None,
        learn_above: int = 0,
        image_size: int = 224,
        batch_size: int = 32,
        split: Mapping[str, Any] | None = None,
        augmentation: Mapping[str, Any] | None = None,
        progressive: Mapping[str, Any] | None = None,
        data_dir: str | Path = "data",
        cache_dir: str | Path | None = None,
        seed: int = 0,
        balanced: bool = False,
        num_workers: int | None = None,
        cache: bool = True,
        corrections: str | Path | None = None,
        sync: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_counts(counts, training=False)
        if batch_size < 1:
            raise ConfigError(f"data.batch_size={batch_size} is out of range: it must be at least 1")
        self.image_size, self.batch_size = image_size, batch_size
        self._source, self._layout, self._wanted = None if source is None else str(source), layout or Detected(), counts
        self._split = complete_split(split, training=False)
        self._balanced, self._seed, self._cache, self._learn_above = balanced, seed, cache, learn_above
        self._corrections, self._sync = corrections, {"connections": 64, **(sync or {})}
        self._data_dir, self._cache_dir = Path(data_dir), Path(cache_dir or Path(data_dir) / "cache")
        self._decoders = count_cpus()
        self._num_workers = (0 if cache else min(8, max(self._decoders - 1, 1))) if num_workers is None else num_workers
        options = dict(augmentation or {})
        self._mixing = Mixing(mixup=options.pop("mixup", 0.0), cutmix=options.pop("cutmix", 0.0), seed=seed)
        self._augmentation = Augmentation(**options, seed=seed)
        self._progressive = ProgressiveResizing(**(progressive or {}))
        self._normalize, self._resume_at = Normalize(), (0, 0)
        self._same_order = self._prepared = False
        self._features: FeatureStore | None = None
        self.epochs: int | None = None  # of the fit, which trainer.max_steps may end; by default trainer.max_epochs

    # Set by prepare().
    manifest: Manifest
    counts: list[int]  # the support, ascending
    learnt: list[int]  # the support, and the further counts of learn_above
    kept: np.ndarray  # positions in manifest.records of the photos inside the support
    assignment: np.ndarray  # for each of them 0 training, 1 validation, 2 test
    training: np.ndarray  # positions of the photos to train on: the training side, and those of further counts
    store: PhotoStore

    def prepare(self) -> None:
        """Fetch or render the photos, open each of them once, and split them; does nothing when called again.

        Raises:
            DataError: there are no photos, or too few for the configured split.
            ResourceError: the network or the disk failed.
        """
        if self._prepared:
            return
        with lock_folder(self._cache_dir):
            self._find(self.image_size if self._cache else None)
            photos = (self._scanned, self.manifest, self.kept, self._wanted)
            self.assignment = keep_sides(*photos, self._split, self._cache_dir)
            self.training = self.side("training")
            if self._learn_above:
                scored = self.kept[self.assignment > 0]
                self.training = np.union1d(self.training, photos_above(self.manifest, self.counts[-1], scored))
            self.store = PhotoStore.open(
                self._scanned, self.image_size, self._cache_dir, cached=self._cache, workers=self._decoders
            )
        self._prepared = True
        self._log_summary()

    def find(self) -> list[BinRecord]:
        """Return the photos with counts in the support: fetched or rendered and scanned, but neither split nor stored.

        Raises:
            DataError: there are no photos.
            ResourceError: the network or the disk failed.
        """
        with lock_folder(self._cache_dir):
            self._find(None)
        return self.records

    def _find(self, stored_size: int | None) -> None:
        self._scanned = self.manifest = find_photos(
            self._source,
            self._layout,
            counts=self._wanted,
            sync=self._sync,
            data_dir=self._data_dir,
            cache_dir=self._cache_dir,
            stored_size=stored_size,
            workers=self._decoders,
        )
        if self._corrections is not None:  # of the store only pixels are used, which labels do not change
            self.manifest = correct_labels(self._scanned, Path(self._corrections))
        found = Counter(record.count for record in self.manifest.records)
        self.counts = sorted(self._wanted if self._wanted is not None else found)
        self.learnt = learnt_counts(self.counts, self._learn_above)
        wanted = set(self.counts)
        self.kept = np.array([i for i, r in enumerate(self.manifest.records) if r.count in wanted], dtype=np.int64)
        if not len(self.kept):
            raise DataError(
                f"No photo has a count in data.counts={self.counts}: the counts are {sorted(found)} in "
                f"{self._source or self.manifest.root}"
            )
        for count in sorted(wanted - set(found)):
            log.warning("No photo has count %d: the model will learn never to predict it.", count)

    def _log_summary(self) -> None:
        sizes = ", ".join(f"{(self.assignment == side).sum():,} {name}" for side, name in enumerate(SPLITS))
        groups = len({self.manifest.records[i].group for i in self.kept})
        log.info("%s photos of %s scenes: %s", f"{len(self.kept):,}", f"{groups:,}", sizes)
        self.log_left_out()

    def log_left_out(self) -> None:
        """Log the number of photos outside the support, and of rejected inputs by reason."""
        excluded = len(self.manifest.records) - len(self.kept)
        if self._prepared and self._learn_above:
            further = len(self.training) - len(self.side("training"))
            log.info("%s photos with more than %d items in training, too", f"{further:,}", self.counts[-1])
            excluded -= further
        if excluded:
            log.info("%s photos excluded, their counts are outside %s", f"{excluded:,}", self.counts)
        if self.manifest.refusals:
            reasons = Counter(refusal.reason for refusal in self.manifest.refusals).most_common(3)
            listed = ", ".join(f"{number:,} {one_line(reason)}" for reason, number in reasons)
            log.warning("%s inputs in quarantine: %s", f"{len(self.manifest.refusals):,}", listed)

    @property
    def records(self) -> list[BinRecord]:
        """The photos with counts in the support, in the order of :attr:`assignment`."""
        return [self.manifest.records[i] for i in self.kept]

    def side(self, name: str) -> np.ndarray:
        """Positions in ``manifest.records`` of the photos of ``training``, ``validation`` or ``test``."""
        return self.kept[self.assignment == ("training", "validation", "test").index(name)]

    def count_of(self, positions: np.ndarray) -> dict[int, int]:
        """Photos per learnt count among ``positions`` in ``manifest.records``."""
        found = Counter(min(self.manifest.records[i].count, self.learnt[-1]) for i in positions)
        return {count: found[count] for count in self.learnt}

    def repeat_order(self) -> None:
        """Use the same order of training photos in every epoch, to overfit a few batches."""
        self._same_order = True

    def use_features(self, store: FeatureStore) -> None:
        """Serve features instead of pixels for the photos that the store holds."""
        self._features = store

    def prepare_data(self) -> None:
        """Lightning hook, called on one process per machine: :meth:`prepare`."""
        self.prepare()

    def setup(self, stage: str) -> None:
        """Lightning hook, called on every process: :meth:`prepare`."""
        self.prepare()

    def train_dataloader(self) -> DataLoader:
        """Training batches of this rank, from the position of the resumed run."""
        positions = self.training
        weights = None
        if self._balanced:
            numbers = self.count_of(positions)
            weights = np.array([1 / numbers[min(self.manifest.records[i].count, self.learnt[-1])] for i in positions])
        sampler = ResumableBatchSampler(
            len(positions),
            self.batch_size,
            seed=self._seed,
            weights=weights,
            same_order=self._same_order,
            **self._rank(),
        )
        sampler.start_at(*self._resume_at)
        return self._loader(positions, sampler)

    def val_dataloader(self) -> DataLoader:
        """Validation photos, each on one rank."""
        positions = self.side("validation")
        return self._loader(positions, EvaluationSampler(len(positions), self.batch_size, **self._rank()))

    def scoring_loader(self, positions: np.ndarray) -> DataLoader:
        """Photos at ``positions`` of ``manifest.records``, all on this process, in order and unchanged."""
        return self._loader(positions, EvaluationSampler(len(positions), self.batch_size))

    def photo_loader(self, positions: np.ndarray) -> DataLoader:
        """Like :meth:`scoring_loader`, but with pixels even if features are stored."""
        return self._photos(positions, EvaluationSampler(len(positions), self.batch_size))

    def _rank(self) -> dict[str, int]:
        trainer = self.trainer
        return {"rank": trainer.global_rank, "world_size": trainer.world_size} if trainer else {}

    def _loader(self, positions: np.ndarray, sampler: ResumableBatchSampler | EvaluationSampler) -> DataLoader:
        if self._features is None or not self._features.holds(positions):
            return self._photos(positions, sampler)
        rows = BatchDataset("feature", self._features, self.manifest.records, positions, self.learnt[-1])
        # Without workers: handing a batch over would take longer than reading it.
        return DataLoader(rows, sampler=sampler, batch_size=None, collate_fn=_whole, pin_memory=self._pins())

    def _photos(self, positions: np.ndarray, sampler: ResumableBatchSampler | EvaluationSampler) -> DataLoader:
        return DataLoader(
            BatchDataset("image", self.store, self.manifest.records, positions, self.learnt[-1]),
            sampler=sampler,
            batch_size=None,  # an index of the sampler is a whole batch already
            collate_fn=_whole,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            pin_memory=self._pins(),
            **(loader_options(self._workers, self._sync["connections"]) if self.store.streams else {}),
        )

    @cached_property
    def _workers(self) -> int:
        # Once: the batches of the first loader take shared memory, too.
        processes = self.trainer.num_devices if self.trainer else 1
        batch = self.batch_size * 3 * self.image_size**2
        return workers_within_shared_memory(self._num_workers, batch, processes)

    def _pins(self) -> bool:
        # Not by torch.cuda.is_available(): with trainer=cpu a GPU stays untouched, another process may have filled it.
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Move a batch's tensors; Lightning's own search for them visits every id."""
        return {
            key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for key, value in batch.items()
        }

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Shrink, augment and mix training photos and normalise pixels, on the device; features stay unchanged."""
        drawn: TrainingBatch | None = batch.pop("drawn", None)
        if "feature" in batch:
            return batch
        image = batch["image"].float()
        if drawn is not None:
            epochs = self.epochs or (self.trainer.max_epochs if self.trainer else None) or 1
            image = self._progressive(image, drawn.epoch, epochs)
            image = self._augmentation(image, batch["id"], drawn.epoch)
            if self._mixing:
                support = torch.tensor(self.learnt, device=image.device)
                target = (batch["count"][:, None] == support).float()
                image, batch["target"] = self._mixing(image, target, drawn.epoch, drawn.number)
        return {**batch, "image": self._normalize.to(image.device)(image)}

    def state_dict(self) -> dict[str, int]:
        """Return the position in training: epoch, its completed batches, and the number of processes."""
        assert self.trainer is not None
        progress = batch_progress(self.trainer)
        batch = 0 if progress.is_last_batch else progress.current.ready
        epoch: int = self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        return {"epoch": epoch, "batch": batch, "processes": self.trainer.world_size}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resume from a position that :meth:`state_dict` returned.

        Raises:
            ConfigError: the run had another number of processes.
        """
        now = self.trainer.world_size if self.trainer else 1
        if state_dict["processes"] != now:
            raise ConfigError(
                f"The run had {state_dict['processes']} processes and would resume with {now}: use as many devices "
                "(trainer.devices, launcher.instance_type, launcher.instance_count) as before"
            )
        self._resume_at = (state_dict["epoch"], state_dict["batch"])


def _whole(batch: Any) -> Any:
    """Return a batch as its data set made it; the loader's own collation visits every id."""
    return batch


def batch_progress(trainer: L.Trainer) -> Any:
    """Lightning's progress in this epoch's training batches: ``current.ready`` are started; ``is_last_batch``."""
    return trainer.fit_loop.epoch_loop.batch_progress
