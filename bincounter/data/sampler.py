"""Resumable batch sampler and the dataset that serves whole batches."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from bincounter.data.feature_store import FeatureStore
from bincounter.data.photo_store import PhotoStore
from bincounter.data.records import BinRecord


class TrainingBatch(NamedTuple):
    """One training batch: its position in the run and its photos.

    Attributes:
        epoch: counted from 0.
        number: of the batch in its epoch, counted from 0.
        positions: in the training photos.
    """

    epoch: int
    number: int
    positions: list[int]


class ResumableBatchSampler(Sampler[TrainingBatch]):
    """Batches of positions in the training photos, resumable at any batch.

    The order of an epoch depends only on the seed and the epoch's number, and iteration can start at any batch of it: a
    resumed run sees the photos that an uninterrupted one would have seen next. Under DDP every rank takes its own part
    of each global batch, so that together they see the order of a single process.

    Args:
        photos: number of training photos.
        batch_size: photos per batch on each rank.
        seed: of the order.
        weights: ``float[photos]``; if given, photos are drawn with replacement, in proportion to them.
        same_order: use the order of the first epoch in every epoch.
        rank: this process.
        world_size: processes that share each global batch.
    """

    def __init__(
        self,
        photos: int,
        batch_size: int,
        *,
        seed: int,
        weights: np.ndarray | None = None,
        same_order: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._photos, self._batch_size, self._seed = photos, batch_size, seed
        self._weights = None if weights is None else weights / weights.sum()
        self._same_order = same_order
        self._rank, self._world_size = rank, world_size
        self.epoch = 0
        self._start = (0, 0)

    def __len__(self) -> int:
        """Batches in a whole epoch, independent of the first one.

        A last batch that is not full is dropped: batch normalisation is noisy on few photos and fails on one. A set
        smaller than one batch is one batch.
        """
        return max(self._photos // (self._batch_size * self._world_size), 1)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration (Lightning calls this before each one)."""
        self.epoch = epoch

    def start_at(self, epoch: int, batch: int) -> None:
        """Start epoch ``epoch`` at its batch number ``batch``; later epochs are whole."""
        self.epoch = epoch
        self._start = (epoch, batch)

    def order(self, epoch: int) -> np.ndarray:
        """Positions of all photos in the order of an epoch, ``int64[photos]``."""
        generator = np.random.Generator(np.random.PCG64([self._seed, 0 if self._same_order else epoch]))
        if self._weights is None:
            return generator.permutation(self._photos)
        return generator.choice(self._photos, size=self._photos, p=self._weights)

    def __iter__(self) -> Iterator[TrainingBatch]:
        """Yield this rank's part of each global batch."""
        order = self.order(self.epoch)
        first = self._start[1] if self.epoch == self._start[0] else 0
        stride = self._batch_size * self._world_size
        for batch in range(first, len(self)):
            positions = order[batch * stride : (batch + 1) * stride][self._rank :: self._world_size]
            yield TrainingBatch(self.epoch, batch, positions.tolist())


class EvaluationSampler(Sampler[list[int]]):
    """Batches for scoring: every photo on exactly one rank, in order.

    Ranks must make the same number of steps, so the shorter ones are padded with -1; the data set returns a count of -1
    for padding, which metrics ignore.

    Args:
        photos: number of photos.
        batch_size: photos per batch on each rank.
        rank: this process.
        world_size: processes that share the photos.
    """

    def __init__(self, photos: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        per_rank = -(-photos // world_size)
        positions = np.full(per_rank * world_size, -1, dtype=np.int64)
        positions[:photos] = np.arange(photos)
        self._mine = positions[rank::world_size]
        self._batch_size = batch_size

    def __len__(self) -> int:
        """Batches on each rank."""
        return (len(self._mine) + self._batch_size - 1) // self._batch_size

    def __iter__(self) -> Iterator[list[int]]:
        """Yield positions, -1 for padding."""
        for start in range(0, len(self._mine), self._batch_size):
            yield self._mine[start : start + self._batch_size].tolist()


class BatchDataset(Dataset):
    """Dataset of whole batches: pixels or features from a store, with counts and ids.

    Args:
        key: of the pixels or features in a batch.
        store: of the pixels or features.
        records: of all photos in the store.
        positions: ``int[N]`` in ``records``, of the photos to serve.
        largest: count of the photos with more items.
    """

    def __init__(
        self,
        key: str,
        store: PhotoStore | FeatureStore,
        records: Sequence[BinRecord],
        positions: np.ndarray,
        largest: int,
    ) -> None:
        self._key, self._store, self._positions = key, store, positions
        self._counts = np.array([min(records[i].count, largest) for i in positions], dtype=np.int64)
        self._ids = [records[i].id for i in positions]

    def __getitem__(self, drawn: TrainingBatch | list[int]) -> dict[str, Any]:
        """Read one batch; a position of -1 is padding, which has the count -1."""
        rows = np.array(drawn.positions if isinstance(drawn, TrainingBatch) else drawn)
        padding = rows < 0
        rows = np.where(padding, 0, rows)
        batch = {
            self._key: self._store.batch(self._positions[rows]),
            "count": torch.from_numpy(np.where(padding, -1, self._counts[rows])),
            "id": [self._ids[row] for row in rows],
        }
        return {**batch, "drawn": drawn} if isinstance(drawn, TrainingBatch) else batch
