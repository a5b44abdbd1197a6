"""The commit tagged before-redesign trains the same weights, bit for bit, as the code here does, killed or not."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import REPOSITORY, Start, environment
from test_resume import kill_after

TAG = "before-redesign"
DEMO = [
    "experiment=demo",
    "model=cnn",
    "model.backbone.width=8",
    "model.backbone.blocks=3",
    "data.layout.photos=400",
    "data.layout.size=64",
    "data.image_size=32",
    "data.batch_size=16",
    "trainer=cpu",
    "trainer.precision=32-true",
    "trainer.max_epochs=3",
    "checkpoint.every_n_train_steps=5",
    "callbacks=[none]",
    "+trainer.enable_progress_bar=false",
]


@pytest.fixture
def tagged(tmp_path: Path) -> Iterator[Path]:
    """A checkout of the tag."""
    known = subprocess.run(["git", "rev-parse", "--verify", TAG], cwd=REPOSITORY, capture_output=True, check=False)
    if known.returncode:
        pytest.skip(f"this clone has no tag {TAG}: git fetch --tags")
    folder = tmp_path / "tagged"
    subprocess.run(["git", "worktree", "add", "--detach", str(folder), TAG], cwd=REPOSITORY, check=True)
    yield folder
    subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=REPOSITORY, check=True)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.long
def test_the_same_weights_as_before_the_redesign(tagged: Path, start: Start, tmp_path: Path) -> None:
    paths = [*DEMO, f"paths.data_dir={tmp_path}/data", f"paths.log_dir={tmp_path}/logs"]
    before, after, killed = (tmp_path / name for name in ("before", "after", "killed"))
    env = {**environment(), "PYTHONPATH": str(tagged), "PYTHONSAFEPATH": ""}
    command = [sys.executable, "train.py", *paths, f"paths.output_dir={before}"]
    subprocess.run(command, cwd=tagged, env=env, check=True, stdout=subprocess.DEVNULL, timeout=300)

    process = start("train.py", *paths, f"paths.output_dir={after}")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert kill_after(start, killed, 4, *paths, f"paths.output_dir={killed}") == -signal.SIGKILL
    process = start("train.py", "ckpt_path=last", f"paths.output_dir={killed}")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors

    expected = weights(before)
    for run in (after, killed):
        actual = weights(run)
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], expected[name]) for name in expected), run.name
