"""A run that is killed at any moment and gone on with ends as if nothing had happened."""

import copy
import random
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from commands import Process, Run, Start
from outputs import read_rows, tensors

from bincounter.cli.hydra_app import compose
from bincounter.errors import ConfigError
from bincounter.training import resume

# Everything that holds state or draws random numbers, at once.
RECIPE = [
    "data=folders",
    "data.image_size=32",
    "data.progressive.start_size=16",
    "data.batch_size=8",
    "data.num_workers=0",
    "data.balanced=true",
    "data.augmentation.mixup=0.2",
    "data.augmentation.cutmix=0.5",
    "model=cnn",
    "model.backbone.blocks=4",
    "model.head.layers=1",
    "model.head.width=16",
    "model.head.dropout=0.3",
    "callbacks=[early_stopping,ema]",
    "callbacks.early_stopping.patience=50",
    "callbacks.ema.decay=0.9",
    "trainer=cpu",
    "trainer.max_epochs=4",
    "trainer.accumulate_grad_batches=2",
    "trainer.log_every_n_steps=1",
    "+trainer.enable_progress_bar=false",
    "checkpoint.every_n_train_steps=1",
    "logger=[csv]",
    "test=false",
]


def last_checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same(first: Path, second: Path) -> None:
    """Weights, averages, optimizer and counters bit for bit; the log row for row; the best score."""
    ours, theirs = last_checkpoint(first), last_checkpoint(second)
    a, b = tensors(ours), tensors(theirs)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert (ours["epoch"], ours["global_step"]) == (theirs["epoch"], theirs["global_step"])
    for callback in ("RunCheckpoint", "EarlyStopping", "TrainingLog"):
        key = next(name for name in ours["callbacks"] if name.startswith(callback))
        assert str(ours["callbacks"][key]) == str(theirs["callbacks"][key])
    assert read_rows(first / "logs" / "metrics.csv") == read_rows(second / "logs" / "metrics.csv")
    best = [torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True) for folder in (first, second)]
    assert all(torch.equal(best[0]["state_dict"][name], best[1]["state_dict"][name]) for name in best[0]["state_dict"])


def kill_after(
    start: Callable[..., Process], folder: Path, writes: int, *overrides: str, how: signal.Signals = signal.SIGKILL
) -> int:
    """Start a run and kill it once ``last.ckpt`` was written so many times; returns its exit code."""
    process = start("train.py", *overrides)
    path, seen, stamp = folder / "checkpoints" / "last.ckpt", 0, None
    if path.exists():
        stamp = path.stat().st_mtime_ns
    while process.poll() is None and seen < writes:
        now = path.stat().st_mtime_ns if path.exists() else None
        if now != stamp:
            stamp, seen = now, seen + 1
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.3))  # anywhere in a step, a validation, a write
    process.send_signal(how)
    return process.wait(timeout=60)


@pytest.fixture(scope="module")
def recipe(bins: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*RECIPE, f"data.source={bins}", f"paths.cache_dir={tmp_path_factory.mktemp('cache')}"]


@pytest.fixture(scope="module")
def undisturbed(recipe: list[str], start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start("train.py", *recipe, f"paths.output_dir={folder}")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert last_checkpoint(folder)["bincounter"]["balanced"]  # how it was trained, for the audit
    return folder


@pytest.mark.parametrize("best_checkpoint", ["older", "missing"])
@pytest.mark.long
def test_files_that_are_older_than_the_checkpoint_do_no_harm(
    best_checkpoint: str, recipe: list[str], undisturbed: Path, start: Start, train: Run, tmp_path: Path
) -> None:
    """Storage that keeps a run's folder file by file, as SageMaker does, may bring them back in different states."""
    folder = tmp_path / "run"
    overrides = [*recipe, f"paths.output_dir={folder}"]
    assert kill_after(start, folder, 6, *overrides) == -signal.SIGKILL
    best = folder / "checkpoints" / "best.ckpt"
    older = best.read_bytes() if best.exists() and best_checkpoint == "older" else None
    kill_after(start, folder, 9, *overrides, "ckpt_path=last")
    (folder / "logs" / "metrics.csv").unlink()
    best.unlink(missing_ok=True)
    if older is not None:
        best.write_bytes(older)
    train("ckpt_path=last", f"paths.output_dir={folder}")
    assert_same(folder, undisturbed)


@pytest.mark.long
def test_killed_at_random_points_a_run_ends_with_the_same_bits(
    recipe: list[str], undisturbed: Path, start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    chance = random.Random(time.time_ns())  # other points in every run of the suite
    assert kill_after(start, folder, chance.randint(1, 6), *recipe, f"paths.output_dir={folder}") == -signal.SIGKILL
    for _ in range(2):
        # Only the folder: the run's own overrides are in it.
        kill_after(start, folder, chance.randint(1, 7), "ckpt_path=last", f"paths.output_dir={folder}")
    process = start("train.py", "ckpt_path=last", f"paths.output_dir={folder}")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert_same(folder, undisturbed)


@pytest.mark.long
def test_sigterm_leaves_a_checkpoint_and_exit_code_143(
    recipe: list[str], undisturbed: Path, start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert kill_after(start, folder, 3, *recipe, f"paths.output_dir={folder}", how=signal.SIGTERM) == 143
    process = start("train.py", *recipe, "ckpt_path=last", f"paths.output_dir={folder}")  # as it was
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert_same(folder, undisturbed)


def test_a_changed_configuration_is_refused(undisturbed: Path, run: Run) -> None:
    done = run("train.py", "ckpt_path=last", f"paths.output_dir={undisturbed}", "model.optimizer.lr=0.5", code=2)
    assert "model.optimizer.lr is 0.5 here and" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    # The line that starts a new run from its weights.
    line = shlex.split(done.stderr.strip().partition("with bincounter ")[2])
    cfg = yaml.safe_load(run("-m", "bincounter", *line, "--cfg", "job").stdout)
    assert cfg["model"]["weights"] == f"{undisturbed}/checkpoints/best.ckpt"
    assert cfg["model"]["optimizer"]["lr"] == 0.5
    assert cfg["ckpt_path"] is None


def test_settings_missing_in_an_older_config_have_their_defaults(undisturbed: Path, tmp_path: Path) -> None:
    now = yaml.safe_load((undisturbed / "config.yaml").read_text())
    before = copy.deepcopy(now)
    del before["data"]["progressive"]
    with pytest.raises(ConfigError, match=r"data\.progressive\.start_size is 16 here and None in"):
        resume.check_unchanged(before, now, tmp_path)
    now["data"]["progressive"]["start_size"] = None
    resume.check_unchanged(before, now, tmp_path)
    now["seed"] += 1
    with pytest.raises(ConfigError, match=r"or leave launcher\.checkpoint_uri out \(or name another\)") as refused:
        resume.check_unchanged(before, now, tmp_path, ["seed=1", "launcher=container", "ckpt_path=last"])
    assert "bincounter train" not in str(refused.value)  # the paths of a container exist nowhere else


@pytest.mark.parametrize(
    ("now", "dropped"),
    [
        ("logger=csv", {"logger", "logger.tensorboard.name", "logger.mlflow.tracking_uri"}),
        ("logger=[csv,tensorboard]", {"logger", "logger.mlflow.tracking_uri"}),
        ("seed=4", set()),
    ],
)
def test_settings_of_loggers_that_were_replaced_are_left_out(now: str, dropped: set[str], tmp_path: Path) -> None:
    stored = ["logger=[tensorboard,mlflow]", "logger.tensorboard.name=mine", "logger.mlflow.tracking_uri=http://a.b"]
    (tmp_path / "overrides.txt").write_text("\n".join(stored))
    place = f"paths.output_dir={tmp_path}"
    resumed = resume.expand_resume_overrides(["ckpt_path=last", place, now], compose)
    assert resumed == [each for each in stored if each.partition("=")[0] not in dropped] + [
        now,
        "ckpt_path=last",
        place,
    ]


def test_a_run_of_a_folder_of_options_is_resumed_with_it(tmp_path: Path, run: Run) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\ntask_name: mine\n")
    (tmp_path / "overrides.txt").write_text("experiment=mine\nseed=3\n")
    resumed = ["ckpt_path=last", f"paths.output_dir={tmp_path}"]
    options = ["--config-dir=~/conf", "--cfg", "job"]
    assert yaml.safe_load(run("train.py", *resumed, *options, HOME=str(tmp_path)).stdout)["task_name"] == "mine"
    assert "experiment=mine is not one of" in run("train.py", *resumed, code=2).stderr


def test_a_new_run_does_not_write_over_an_old_one(recipe: list[str], undisturbed: Path, run: Run) -> None:
    done = run("train.py", *recipe, f"paths.output_dir={undisturbed}", code=2)
    assert "already holds a run" in done.stderr
