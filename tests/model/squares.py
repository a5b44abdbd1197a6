from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

COUNTS = [0, 1, 2, 3]


class Squares(Dataset):
    """Photos of 32 pixels with 0-3 bright squares in distinct places, of random size and brightness."""

    def __init__(self, photos: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.count = torch.arange(photos) % len(COUNTS)
        self.image = 0.2 * torch.randn(photos, 3, 32, 32, generator=generator)
        for image, count in zip(self.image, self.count.tolist(), strict=True):
            for place in torch.randperm(16, generator=generator)[:count].tolist():
                size = int(torch.randint(4, 7, (1,), generator=generator))
                top, left = place // 4 * 8, place % 4 * 8
                image[:, top : top + size, left : left + size] += 1 + torch.rand(1, generator=generator)

    def __len__(self) -> int:
        return len(self.count)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.image[index], "count": int(self.count[index]), "id": f"{index}.png"}


def squares(photos: int = 32, seed: int = 0, batch_size: int = 8) -> DataLoader:
    return DataLoader(Squares(photos, seed), batch_size=batch_size)


@pytest.fixture
def loader() -> DataLoader:
    """Four batches of eight photos with 0-3 squares."""
    return squares()


@pytest.fixture
def big_loader() -> DataLoader:
    return squares(512, seed=1, batch_size=32)


@pytest.fixture
def model_cfg() -> dict[str, Any]:
    """The ``model`` node of a small CNN with three stages."""
    return {
        "backbone": {"_target_": "bincounter.model.backbones.cnn", "width": 8, "blocks": 3},
        "weights": None,
        "trained": "all",
        "stages": 1,
        "unfreeze_every": 1,
        "head": {"layers": 0, "width": 16, "dropout": 0.0},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-2, "weight_decay": 0.05},
        "schedule": {"name": "cosine", "warmup_epochs": 0.5, "final_factor": 0.01},
        "channels_last": True,
        "class_weights": None,
    }


@pytest.fixture
def objective_cfg() -> dict[str, Any]:
    return {"_target_": "bincounter.model.objectives.Classification"}
