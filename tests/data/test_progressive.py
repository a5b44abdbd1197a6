"""Progressive resizing: sizes of training photos over a fit, and their pixels."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from bins import square_bins

import bincounter
from bincounter.data.augmentation import ProgressiveResizing
from bincounter.model.backbones import cnn
from bincounter.model.counter import BinCounter
from bincounter.model.objectives import Classification
from bincounter.training.trainer import set_schedule_length


class Sizes(L.Callback):
    """Record the sides of the photos of each epoch."""

    def __init__(self) -> None:
        self.training: list[set[int]] = []
        self.validation: set[int] = set()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.training.append(set())

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.training[-1].add(batch["image"].shape[-1])

    def on_validation_batch_start(self, *given: Any) -> None:
        self.validation.add(given[2]["image"].shape[-1])


@pytest.mark.parametrize(("epochs", "steps"), [(8, -1), (20, 15)])
def test_photos_grow_to_their_size_over_the_epochs(epochs: int, steps: int, tmp_path: Path) -> None:
    data = bincounter.BinDataModule(
        square_bins(tmp_path / "bins"),
        image_size=96,
        progressive={"start_size": 32, "until": 0.5},
        augmentation={"flip": True, "shift": 0.1},
        data_dir=tmp_path / "data",
    )
    data.prepare()
    model = BinCounter(
        cnn(width=4, blocks=2), Classification(data.counts), lambda groups: torch.optim.SGD(groups, 0.01)
    )
    sizes = Sizes()
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options |= {"accelerator": "cpu", "callbacks": [sizes], "num_sanity_val_steps": 0}
    trainer = L.Trainer(max_epochs=epochs, max_steps=steps, **options)
    set_schedule_length(model, trainer, data)
    trainer.fit(model, data)
    assert sizes.training == [{32}, {32}, {64}, {96}, {96}, {96}, {96}, {96}]  # 32, 48, 64, 80, in steps of 32
    assert sizes.validation == {96}


@pytest.mark.parametrize(("epochs", "until"), [(1, 0.75), (1, 1.0), (10, 0.0), (3, 1.0), (100, 0.37)])
def test_every_fit_ends_on_whole_photos_unless_they_grow_to_its_end(epochs: int, until: float) -> None:
    sizes = [ProgressiveResizing(start_size=48, until=until).size(100, epoch, epochs) for epoch in range(epochs)]
    assert sizes == sorted(sizes) and all(size in (48, 80, 100) for size in sizes)
    assert sizes[0] == (48 if until else 100)
    if until < 1 and epochs > 1:
        assert sizes[-1] == 100


def test_pixels_keep_their_mean_and_do_not_alias() -> None:
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 255
    small = ProgressiveResizing(start_size=32)(stripes, 0, 10)
    assert small.shape == (1, 3, 32, 32)
    assert small[..., 4:-4].sub(127.5).abs().max() < 1  # without a low-pass filter: 0 or 255
    assert torch.equal(ProgressiveResizing()(stripes, 0, 10), stripes)
