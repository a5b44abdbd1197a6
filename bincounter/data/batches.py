"""What a DataLoader deals out: whole batches, by the positions that a sampler draws."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from bincounter.data.feature_store import FeatureStore
from bincounter.data.records import BinRecord
from bincounter.data.sampler import TrainingBatch
from bincounter.data.store import PhotoStore


class Batches(Dataset):
    """Batches of what a store holds of photos, their pixels or features.

    Args:
        key: of the pixels or features in a batch.
        store: holds them.
        records: of all photos in the store.
        positions: ``int[N]`` in ``records``, of the photos that are dealt out.
    """

    def __init__(
        self, key: str, store: PhotoStore | FeatureStore, records: Sequence[BinRecord], positions: np.ndarray
    ) -> None:
        self._key, self._store, self._positions = key, store, positions
        self._counts = np.array([records[i].count for i in positions], dtype=np.int64)
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
