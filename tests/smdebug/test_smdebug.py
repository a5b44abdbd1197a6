"""Tensors saved by SageMaker Debugger's hook: they are right, survive kills, and do not change the training.

It runs in an environment of its own: ``make test-smdebug`` builds that and runs this file.
"""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import REPOSITORY, environment
from test_resume import assert_same, kill_after
from torch import nn

pytest.importorskip("smdebug.pytorch", reason="smdebug's own environment is missing here: make test-smdebug")

from smdebug.pytorch import create_trial, modes

from bincounter.smdebug.hook import BatchHook, open_hook

RECIPE = [
    "data=demo",
    "data.layout.photos=96",
    "data.image_size=32",
    "data.batch_size=8",
    "data.num_workers=0",
    "model=cnn",
    "model.backbone.width=8",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "checkpoint.every_n_train_steps=1",
    "+trainer.enable_progress_bar=false",
    "logger=[csv]",
]
# What draws random numbers, or holds state beside the model's.
STATEFUL = [
    "data.augmentation.mixup=0.2",
    "model.head.layers=1",
    "model.head.width=16",
    "model.head.dropout=0.3",
    "callbacks=[early_stopping,ema]",
    "callbacks.ema.decay=0.9",
]
RATE = 0.05
FROZEN = [  # plain gradient descent of the head, on features that are computed once
    "callbacks=[none]",
    "model.trained=frozen",
    "model/optimizer=sgd",
    f"model.optimizer.lr={RATE}",
    "model.optimizer.momentum=0",
    "model.optimizer.weight_decay=0",
    "model.optimizer.nesterov=false",
    "model.schedule.name=constant",
    "model.schedule.warmup_epochs=0",
    "data.augmentation={flip:false,shift:0,scale:0,rotation:0,brightness:0,contrast:0,saturation:0}",
    "trainer.accumulate_grad_batches=2",
    "trainer.precision=32-true",
]
SAVED = [
    "debugger=smdebug",
    "debugger.save_interval.train=2",
    "debugger.save_interval.eval=1",
    "debugger.save_interval.predict=1",
    r"debugger.include_regex=['^head_output']",
]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def started(folder: Path, *overrides: str) -> Callable[[], Path]:
    """Start a run; returns what waits for it and answers its folder."""
    process = start("train.py", *overrides, f"paths.output_dir={folder}")

    def finished() -> Path:
        said, errors = process.communicate(timeout=300)
        assert process.returncode == 0, f"{said}\n{errors}"
        assert said.splitlines()[-1] == str(folder)
        return folder

    return finished


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("places")
    return [f"paths.{name}_dir={root / name}" for name in ("data", "cache", "log")]


@pytest.fixture(scope="module")
def runs(places: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[], Path]]:
    """Runs that take place at the same time; importing is what they take longest for."""
    overrides = {
        "recorded": [*STATEFUL, *SAVED],
        "plain": STATEFUL,
        "frozen": [*FROZEN, *SAVED, "debugger.save_interval.train=1"],
    }
    root = tmp_path_factory.mktemp("runs")
    return {name: cache(started(root / name, *RECIPE, *given, *places)) for name, given in overrides.items()}


@pytest.fixture(scope="module")
def recorded(runs: dict[str, Callable[[], Path]]) -> Path:
    return runs["recorded"]()


def trial_of(run: Path) -> Any:
    return create_trial(str(run / "debugger" / "smdebug"))


def column(path: Path, name: str) -> list[float]:
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def losses(trial: Any, mode: modes) -> list[float]:
    loss = trial.tensor("loss_output_0")
    return [float(loss.value(step, mode=mode)) for step in loss.steps(mode=mode)]


def test_tensors_of_all_modes_are_read_back(recorded: Path) -> None:
    trial = trial_of(recorded)
    logged = column(recorded / "logs" / "metrics.csv", "train/loss")
    assert trial.steps(mode=modes.TRAIN) == list(range(0, len(logged), 2))
    assert losses(trial, modes.TRAIN) == pytest.approx(logged[::2], rel=1e-6)

    split = [row["split"] for row in csv.DictReader((recorded / "split.csv").open(newline=""))]
    validated = column(recorded / "logs" / "metrics.csv", "val/loss")
    assert losses_of_epochs(losses(trial, modes.EVAL), split.count("validation"), len(validated)) == pytest.approx(
        validated
    )
    # Scores are of the calibrated distributions; the loss is of those before.
    temperature = json.loads((recorded / "metrics.json").read_text())["calibration"]["temperature"]
    with (recorded / "predictions.csv").open(newline="") as file:
        tested = [row for row in csv.DictReader(file) if row["split"] == "test"]
    names = [name for name in tested[0] if name.startswith("p_")]
    written = np.array([[float(row[name]) for name in names] for row in tested])
    before = written**temperature / (written**temperature).sum(1, keepdims=True)
    likelihood = before[np.arange(len(tested)), [names.index(f"p_{row['count']}") for row in tested]]
    assert losses_of_epochs(losses(trial, modes.PREDICT), split.count("test"), 1) == pytest.approx(
        [-np.log(likelihood).mean()], rel=1e-5
    )

    last = torch.load(recorded / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    weights = trial.tensor_names(collection="weights")
    gradients = trial.tensor_names(collection="gradients")
    assert {f"BinCounter_{name}" for name in last if name.endswith(".weight")} == set(weights)
    trained = {*weights, *trial.tensor_names(collection="biases")}
    assert {f"gradient/{name}" for name in trained} == set(gradients)
    for name in [*trained, *gradients]:
        tensor = trial.tensor(name)
        assert tensor.steps(mode=modes.TRAIN) == trial.steps(mode=modes.TRAIN)
        assert tensor.steps(mode=modes.EVAL) == tensor.steps(mode=modes.PREDICT) == []  # nothing changes them there
        assert tensor.value(0, mode=modes.TRAIN).shape == last[name.split("BinCounter_")[1]].shape

    # The test photos' outputs are those whose calibrated probabilities predictions.csv has.
    outputs = trial.tensor("head_output_0")
    made = np.concatenate([outputs.value(step, mode=modes.PREDICT) for step in outputs.steps(mode=modes.PREDICT)])
    calibrated = (torch.from_numpy(made) / temperature).softmax(1)
    np.testing.assert_allclose(calibrated, written, rtol=1e-4, atol=1e-6)


def losses_of_epochs(means: list[float], photos: int, epochs: int) -> list[float]:
    """Means over all photos, from means of batches of eight of which the last is smaller."""
    sizes = [min(8, photos - first) for first in range(0, photos, 8)]
    assert len(means) == len(sizes) * epochs
    return [np.average(means[at : at + len(sizes)], weights=sizes) for at in range(0, len(means), len(sizes))]


def test_killed_run_resumes_with_its_tensors_and_the_same_result(
    runs: dict[str, Callable[[], Path]], recorded: Path, places: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "killed"
    kill_after(start, run, 7, *RECIPE, *STATEFUL, *SAVED, *places, f"paths.output_dir={run}")
    assert not (run / "metrics.json").exists()
    started(run, "ckpt_path=last", *places)()
    ours, theirs = trial_of(run), trial_of(recorded)
    assert sorted(ours.tensor_names()) == sorted(theirs.tensor_names())
    for mode in (modes.TRAIN, modes.EVAL, modes.PREDICT, modes.GLOBAL):
        assert ours.steps(mode=mode) == theirs.steps(mode=mode)
    for name in theirs.tensor_names():
        for mode in (modes.TRAIN, modes.EVAL, modes.PREDICT):
            for step in theirs.tensor(name).steps(mode=mode):
                np.testing.assert_array_equal(
                    ours.tensor(name).value(step, mode=mode), theirs.tensor(name).value(step, mode=mode)
                )
    assert_same(recorded, run)
    assert_same(recorded, runs["plain"]())


def test_a_frozen_backbone_on_cached_features_with_accumulation(runs: dict[str, Callable[[], Path]]) -> None:
    run = runs["frozen"]()
    trial = trial_of(run)
    assert {name for name in trial.tensor_names() if name.startswith("gradient/")} == {
        "gradient/BinCounter_head.0.weight",
        "gradient/BinCounter_head.0.bias",
    }
    weight, gradient = (trial.tensor(f"{kind}BinCounter_head.0.weight") for kind in ("", "gradient/"))
    saved = weight.steps(mode=modes.TRAIN)
    batches = len(saved) // 2  # of an epoch
    before, after = (weight.value(step, mode=modes.TRAIN) for step in (0, 2))
    step = sum(gradient.value(batch, mode=modes.TRAIN) for batch in (0, 1))
    np.testing.assert_allclose(before - RATE * step, after, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(before, weight.value(1, mode=modes.TRAIN))
    logged = column(run / "logs" / "metrics.csv", "train/loss_epoch")
    of_epochs = np.mean(np.reshape(losses(trial, modes.TRAIN), (2, batches)), axis=1)
    assert of_epochs.tolist() == pytest.approx(logged, rel=1e-5)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 2), nn.Linear(2, 1)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(batch))


def test_gradients_of_what_is_unfrozen_later_and_values_in_bfloat16(tmp_path: Path) -> None:
    settings = {
        "collections": ["gradients"],
        "include_regex": ["body_output"],
        "save_interval": {"train": 1, "eval": 1, "predict": 1},
    }
    model = Model()
    model.body.requires_grad_(False)
    hook = open_hook(settings, tmp_path, None)
    hook.register(model, model.head)
    batch = torch.ones(4, 3)
    for frozen in (True, False):
        model.body.requires_grad_(not frozen)
        assert hook.begin(model, modes.TRAIN)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch).sum()
        loss.backward()
        hook.end(lambda loss=loss: loss)  # type: ignore[misc]
        model(batch).sum().backward()  # nothing between two steps is saved
    hook.close()
    model(batch).sum().backward()
    trial = trial_of(tmp_path)
    assert trial.tensor("gradient/Model_head.weight").steps() == [0, 1]
    assert trial.tensor("gradient/Model_body.weight").steps() == [1]
    assert trial.tensor("body_output_0").value(0).dtype == np.float32
    assert "body_output_1" not in trial.tensor_names()


def test_steps_saved_after_the_checkpoint_are_deleted_on_resume(tmp_path: Path) -> None:
    settings = {
        "collections": ["losses"],
        "include_regex": [],
        "save_interval": {"train": 1, "eval": 1, "predict": 1},
    }

    def steps(hook: BatchHook, mode: modes, values: list[float]) -> None:
        model = Model()
        hook.register(model, model.head)
        for value in values:
            hook.begin(model, mode)
            model(torch.ones(4, 3))
            hook.end(lambda value=value: torch.tensor(value))  # type: ignore[misc]

    hook = open_hook(settings, tmp_path, None)
    steps(hook, modes.TRAIN, [1, 2])
    steps(hook, modes.EVAL, [3])
    checkpoint = hook.state()
    steps(hook, modes.TRAIN, [8, 9])
    hook.close()

    hook = open_hook(settings, tmp_path, checkpoint)
    steps(hook, modes.TRAIN, [4])
    steps(hook, modes.EVAL, [5])
    hook.close()
    trial = trial_of(tmp_path)
    assert losses(trial, modes.TRAIN) == [1, 2, 4]
    assert losses(trial, modes.EVAL) == [3, 5]
    assert trial.steps() == [0, 1, 2, 3, 4]

    assert open_hook(settings, tmp_path, None).state()["step"] == -1  # a run that starts anew in its own folder
    assert list((tmp_path / "debugger" / "smdebug").rglob("*.tfevents")) == []
