"""Parts of the benchmarks that need neither hours nor the machine they are for."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import REPOSITORY
from PIL import Image


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import training_loops

    return training_loops


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for side in ("train", "test"):
        for number in range(4):
            path = tmp_path / side / str(1 + number % 2) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32)).save(path)
    return tmp_path


def learn(folder: Path, batch_size: int) -> dict[str, Any]:
    options = {"model": "resnet18", "size": 32, "epochs": 1, "lr": 1e-3, "bf16": False, "seed": 0}
    return options | {"loop": "learn", "folder": str(folder), "batch_size": batch_size}


def test_photos_and_counts_are_on_the_device_of_the_network(
    loops: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "device", lambda: torch.device("meta"))  # computes nothing, and mixes with no other
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # has none for it
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # the scores, at the end
        loops._learn(learn(folder, 2))
