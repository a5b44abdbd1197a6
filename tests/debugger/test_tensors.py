"""Records of debugger=tensors: they are right, survive kills, and do not change the training."""

import csv
import json
import random
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from bins import square_bins
from commands import Run, Start
from outputs import tensors
from test_resume import RECIPE, kill_after, last_checkpoint
from torch import Tensor

from bincounter.debugger.tensor_records import FILES, EpochRecord, StepRecord, read_records
from bincounter.debugger.tensor_statistics import STATISTICS, Blocks, activation_statistics

DEBUGGER = ["debugger=tensors", "debugger.every_n_train_steps=2"]


def expected(tensor: Tensor) -> list[float]:
    values = tensor.double().flatten()
    finite = values.isfinite()
    return [
        values.mean().item(),
        values.std(correction=0).item(),
        values.min().item(),
        values.max().item(),
        values.norm().item(),
        values.abs().mean().item(),
        (values == 0).double().mean().item(),
        (~finite).double().mean().item(),
    ]


def some_tensors() -> list[Tensor]:
    torch.manual_seed(0)
    convolution = torch.randn(64, 32, 3, 3).to(memory_format=torch.channels_last)
    near_one = torch.ones(64) + 1e-4 * torch.randn(64)  # where differences of large sums would have no digits left
    return [
        convolution,
        near_one,
        torch.randn(5000).relu(),
        torch.zeros(4096),
        torch.tensor(3.0),
        torch.randn(4097) - 9,
    ]


def test_statistics_are_those_of_each_tensor_alone() -> None:
    made = some_tensors()
    blocks = Blocks(made)
    measured = blocks.statistics(blocks.matrix(made))
    assert measured.shape == (len(made), len(STATISTICS))
    np.testing.assert_allclose(measured.numpy(), [expected(each) for each in made], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(blocks.norms(blocks.matrix(made)).numpy(), [each.norm() for each in made], rtol=1e-6)


def test_nonfinite_values_are_counted_for_their_tensor_only() -> None:
    made = some_tensors()
    clean = Blocks(made)
    before = clean.statistics(clean.matrix(made))
    made[0][0, 0, 0, :2] = torch.tensor([torch.inf, torch.nan])
    made[2][7] = torch.nan
    after = clean.statistics(clean.matrix(made))
    np.testing.assert_array_equal(after[[1, 3, 4, 5]].numpy(), before[[1, 3, 4, 5]].numpy())
    np.testing.assert_allclose(after[[0, 2], 7].numpy(), [2 / made[0].numel(), 1 / 5000])
    np.testing.assert_allclose(after[2, 6].item(), (made[2] == 0).double().mean().item())


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_and_their_dead_units(layout: torch.memory_format, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    output = torch.randn(96, 8, 40, 40).relu().to(dtype).to(memory_format=layout)
    output[:, 3] = 0
    output[:, 5] = 0
    output[0, 5, 0, 0] = 1  # one value in 153,600
    measured = activation_statistics(output, None, 0.01).numpy()
    np.testing.assert_allclose(measured[:8], expected(output), rtol=1e-4)
    assert measured[8] == 2 / 8
    given = torch.randn(32, 10) * torch.tensor([100.0] * 4 + [1.0] * 6)
    measured = activation_statistics(given.tanh(), (given, -4.2, 4.2), 0.2).numpy()
    assert measured[8] == 4 / 10


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    bins = square_bins(tmp_path_factory.mktemp("bins"))
    # Mean average, accumulation and random numbers at once, as in the tests of resuming; bf16 besides.
    kept = ("paths.cache_dir", f"{tmp_path_factory.mktemp('cache')}")
    return [*RECIPE, "trainer.precision=bf16-mixed", f"data.source={bins}", "=".join(kept)]


@pytest.fixture(scope="module")
def undisturbed(recipe: list[str], start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start("train.py", *recipe, *DEBUGGER, f"paths.output_dir={folder}")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return folder


def test_recording_changes_nothing_of_what_is_computed(
    recipe: list[str], undisturbed: Path, train: Run, tmp_path: Path
) -> None:
    train(*recipe, f"paths.output_dir={tmp_path / 'plain'}")
    plain, watched = tensors(last_checkpoint(tmp_path / "plain")), tensors(last_checkpoint(undisturbed))
    assert plain.keys() == watched.keys()
    assert [name for name in plain if not torch.equal(plain[name], watched[name])] == []


def test_updates_of_sharpness_aware_steps_are_not_the_moves_between_its_gradients(
    recipe: list[str], train: Run, tmp_path: Path
) -> None:
    options = ["model/optimizer=sam", "model.optimizer.rho=1", "model.optimizer.lr=1e-6"]
    options += ["trainer.accumulate_grad_batches=1", "trainer.max_epochs=1", f"paths.output_dir={tmp_path / 'run'}"]
    train(*recipe, *DEBUGGER, *options)
    values = pandas.read_csv(tmp_path / "run" / "debugger" / "tensors.csv")
    moved = values[(values.kind == "weight") & (values.name == "backbone.blocks.2.0.weight")].update_ratio
    assert len(moved) and moved.between(0, 1e-3).all()


def test_records_are_whole_and_pandas_reads_them_in_a_line(undisturbed: Path) -> None:
    folder = undisturbed / "debugger"
    tables = {name: pandas.read_csv(folder / name) for name in FILES}
    assert all(list(table) == list(FILES[name]) for name, table in tables.items())
    losses, values = tables["losses.csv"], tables["tensors.csv"]
    steps = losses[losses.batch_loss.notna()].step.tolist()
    assert steps == list(range(0, losses.step.max() + 1, 2))
    assert losses.epoch_loss.notna().sum() == losses.val_loss.notna().sum() == 4
    every = {"backbone.blocks.0.0.weight", "backbone.blocks.3.1.bias", "head.0.weight", "head.3.bias"}
    for kind in ("gradient", "weight"):
        rows = values[values.kind == kind]
        assert every <= set(rows.name)
        assert (rows.groupby("name").size() == len(steps)).all()
        assert rows.update_ratio.notna().all() == (kind == "weight")
    activations = values[values.kind == "activation"]
    assert set(activations.module) == {"ReLU", "Linear"}
    assert activations[activations.module == "ReLU"].inactive.between(0, 1).all()
    assert (values.nonfinite == 0).all()
    moved = values[(values.kind == "weight") & (values.name == "backbone.blocks.2.0.weight")].update_ratio
    assert moved.between(1e-6, 1).all()
    # The records tell what the run's own log does.
    with (undisturbed / "logs" / "metrics.csv").open(newline="") as file:
        log = list(csv.DictReader(file))
    logged = [row for row in log if row["val/loss"] or row["train/loss_epoch"]]
    told = losses[losses.epoch_loss.notna()]
    np.testing.assert_allclose(told.val_loss, [float(row["val/loss"]) for row in logged if row["val/loss"]])
    means = [float(row["train/loss_epoch"]) for row in logged if row["train/loss_epoch"]]
    np.testing.assert_allclose(told.epoch_loss, means, rtol=1e-6)
    # A mean is of all steps since the last record, also over the end of an epoch, whose fifth step has one batch.
    by_step = {int(row["step"]): float(row["train/loss"]) for row in log if row["train/loss"]}
    recorded = losses[losses.batch_loss.notna()]
    pairs = [[step - 1, step] for step in steps[1:]]
    two = [np.average([by_step[s] for s in pair], weights=[8 if s % 5 == 4 else 16 for s in pair]) for pair in pairs]
    np.testing.assert_allclose(recorded.train_loss.iloc[1:], two, rtol=1e-5)
    counts = tables["counts.csv"]
    assert counts[counts.epoch == 3].trained.sum() == 4 * 8 * (77 // 8)  # drawn in whole batches


@pytest.mark.long
def test_killed_at_random_points_a_run_ends_with_the_same_records(
    recipe: list[str], undisturbed: Path, start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    chance = random.Random(time.time_ns())  # other points in every run of the suite
    begun = kill_after(start, folder, chance.randint(1, 8), *recipe, *DEBUGGER, f"paths.output_dir={folder}")
    assert begun == -signal.SIGKILL
    (folder / "debugger" / "tensors.csv").write_text("what storage that keeps a folder file by file brings back")
    kill_after(start, folder, chance.randint(1, 7), "ckpt_path=last", f"paths.output_dir={folder}")
    process = start("train.py", "ckpt_path=last", f"paths.output_dir={folder}")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    for name in (*FILES, "rules.json"):
        assert (folder / "debugger" / name).read_text() == (undisturbed / "debugger" / name).read_text(), name
    a, b = tensors(last_checkpoint(folder)), tensors(last_checkpoint(undisturbed))
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_chosen_layers_of_a_frozen_backbone_on_cached_features(recipe: list[str], train: Run, tmp_path: Path) -> None:
    changes = "data.augmentation={flip:false,shift:0,scale:0,rotation:0,brightness:0,contrast:0,saturation:0}"
    frozen = [
        "model.trained=frozen",
        "data.progressive.start_size=null",
        changes,
        "data.augmentation.mixup=0",
        "trainer.max_epochs=1",
    ]
    every = ["debugger=tensors", "debugger.layers=[blocks.4,head]", f"paths.output_dir={tmp_path / 'run'}"]
    done = train(*recipe, *frozen, "data.augmentation.cutmix=0", *every)
    assert "Training on cached features" in done.stderr
    step = next(each for each in read_records(tmp_path / "run" / "debugger") if isinstance(each, StepRecord))
    assert {name.partition(".")[0] for table in step.tables.values() for name in table.names} == {"head"}
    done = train(*recipe, "debugger=tensors", "debugger.layers=[layr4]", f"paths.output_dir={tmp_path / 'b'}", code=2)
    assert "debugger.layers=[layr4] matches no layer; layers are backbone, backbone.blocks," in done.stderr
    done = train(
        *recipe, "debugger=tensors", "debugger.layers=[objective]", f"paths.output_dir={tmp_path / 'c'}", code=2
    )
    assert "debugger.layers=[objective] matches no layer with weights or activations; layers are" in done.stderr


def test_two_processes_record_once(recipe: list[str], train: Run, tmp_path: Path) -> None:
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    stop = ["debugger.rules.overtraining.action=stop", "debugger.rules.overtraining.patience_validation=1"]
    train(
        *recipe,
        *ddp,
        *DEBUGGER,
        *stop,
        "debugger.rules.overtraining.patience_train=1",
        "debugger.rules.overtraining.delta=100",
        "trainer.max_epochs=4",
        f"paths.output_dir={tmp_path / 'run'}",
    )
    records = list(read_records(tmp_path / "run" / "debugger"))
    steps = Counter(each.step for each in records if isinstance(each, StepRecord))
    assert set(steps.values()) == {1}
    assert [each.epoch for each in records if isinstance(each, EpochRecord)] == [0, 1]  # stopped on both processes
    assert json.loads((tmp_path / "run" / "debugger" / "rules.json").read_text())["overtraining"]["epoch"] == 1
