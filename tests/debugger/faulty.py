"""Little trainings with one thing wrong with them, and their twins with nothing wrong."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import OmegaConf
from squares import COUNTS, Squares, squares
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from bincounter.config.debugger_schema import TensorsConfig, check_debugger
from bincounter.debugger.recorder import TensorRecorder
from bincounter.debugger.rule_runner import RuleWatch, Verdicts
from bincounter.debugger.tensor_records import read_records
from bincounter.model.backbones import cnn
from bincounter.model.counter import BinCounter
from bincounter.model.objectives import Classification
from bincounter.training.checkpoint import RunCheckpoint
from bincounter.training.trainer import silence_lightning


class Dense(nn.Module):
    """Fully connected layers without normalisation, whose start is what it is given."""

    feature_size = 32

    def __init__(self, layers: int, function: type[nn.Module], *, gain: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        sizes = [3 * 32 * 32] + [self.feature_size] * layers
        self.layers = nn.Sequential()
        for inputs, outputs in pairwise(sizes):
            linear = nn.Linear(inputs, outputs)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu" if function is nn.ReLU else "tanh")
            linear.weight.data *= gain
            nn.init.constant_(linear.bias, bias)
            self.layers.extend([linear, function()])

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image.flatten(1))


def settings(*overrides: str) -> dict[str, Any]:
    """``debugger`` with overrides such as ``rules.overfit.patience=2``."""
    node = OmegaConf.merge(OmegaConf.structured(TensorsConfig), OmegaConf.from_dotlist(list(overrides)))
    plain: dict[str, Any] = OmegaConf.to_container(node)  # type: ignore[assignment]
    check_debugger(plain)
    return plain


def imbalanced(often: int, rarely: int) -> DataLoader:
    """Photos of counts 0-2 ``often`` times each, and of count 3 ``rarely``."""
    photos = Squares(4 * often, seed=0)
    kept = [index for index in range(len(photos)) if index % len(COUNTS) < 3 or index // len(COUNTS) < rarely]
    return DataLoader(Subset(photos, kept), batch_size=8)


def fit(
    folder: Path,
    *overrides: str,
    backbone: Callable[[], nn.Module] = lambda: cnn(8, 3),
    train: DataLoader | None = None,
    lr: float = 3e-3,
    epochs: int = 4,
    optimizer: Any = torch.optim.AdamW,
    callbacks: Sequence[L.Callback] = (),
    **trainer: Any,
) -> dict[str, Any]:
    """Train a counter of squares and watch it; what its rules say in the end."""
    torch.manual_seed(0)
    model = BinCounter(backbone(), Classification(COUNTS), lambda parameters: optimizer(parameters, lr=lr))
    model._schedule["name"] = "constant"
    watched = settings("every_n_train_steps=1", *overrides)
    watch = RuleWatch(folder / "debugger", watched["rules"])
    recorder = TensorRecorder(folder / "debugger", watched, watch)
    checkpoint = RunCheckpoint(folder, monitor="val/accuracy", mode="max", every_n_train_steps=10**6)
    silence_lightning()
    fitting = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[*callbacks, recorder, checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        num_sanity_val_steps=0,
        **trainer,
    )
    fitting.fit(model, train or squares(64), squares(48, seed=5, batch_size=16))
    told = watch._verdicts.states()
    again = Verdicts(watched["rules"])
    again.judge_all(read_records(folder / "debugger"))
    assert again.states() == told  # afterwards as under way
    return told
