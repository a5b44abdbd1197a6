"""A finished run to serve, and a checkpoint without a run."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from bins import COUNTS, square_bins
from commands import REPOSITORY, environment, warm
from warm_python import WarmPython

from bincounter.model.build import build_counter, checkpoint_metadata
from bincounter.serving.packing import parity

_CNN = {"_target_": "bincounter.model.backbones.cnn", "width": 8, "blocks": 3}
_OBJECTIVE = {"_target_": "bincounter.model.objectives.Classification"}


@pytest.fixture(scope="session")
def served_run(python: WarmPython, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that learnt to count squares."""
    root = tmp_path_factory.mktemp("served")
    square_bins(root / "bins", photos=160)
    settings = {
        "data": "folders",
        "data.source": root / "bins",
        "data.image_size": 32,
        "data.batch_size": 16,
        "model": "cnn",
        "model.backbone.width": 8,
        "model.optimizer.lr": 0.01,
        "trainer": "cpu",
        "trainer.max_epochs": 3,
        "callbacks": "[none]",
        "+trainer.enable_progress_bar": "false",
        "paths.data_dir": root / "data",
        "paths.log_dir": root / "logs",
        "paths.output_dir": root / "logs/run",
    }
    overrides = (f"{key}={value}" for key, value in settings.items())
    done = python.run(("train.py", *overrides), REPOSITORY, environment())
    assert done.returncode == 0, done.stderr
    return root / "logs/run"


@pytest.fixture(scope="session")
def checkpoint(served_run: Path) -> Path:
    """The best checkpoint of that run."""
    return served_run / "checkpoints/best.ckpt"


@pytest.fixture
def warm_archives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives answer in a process that has imported torch already."""
    monkeypatch.setattr(parity, "archive_answers", partial(parity.archive_answers, python=warm().executable))


def checkpoint_alone(
    folder: Path,
    *,
    seed: int = 0,
    backbone: Mapping[str, Any] = _CNN,
    objective: Mapping[str, Any] = _OBJECTIVE,
    **model: Any,
) -> Path:
    """A checkpoint as training writes it, with random weights and no run around it."""
    torch.manual_seed(seed)
    model = {"backbone": dict(backbone), "weights": None, "head": {"layers": 0}, **model}
    counter = build_counter(model, objective, COUNTS)
    description = checkpoint_metadata(
        model,
        objective,
        COUNTS,
        image_size=32,
        train_counts=dict.fromkeys(COUNTS, 2),
        train_ids=[str(number) for number in range(8)],
        train_content=torch.arange(8),
    )
    folder.mkdir(parents=True, exist_ok=True)
    description["temperature"] = 1.7
    torch.save({"state_dict": counter.state_dict(), "bincounter": description}, folder / "alone.ckpt")
    return folder / "alone.ckpt"
