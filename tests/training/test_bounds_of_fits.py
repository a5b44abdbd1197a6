"""Fits that could not be finished, chosen from, or loaded are refused before they begin; the others are resumed."""

from pathlib import Path

import pytest
import torch
from bins import square_bins
from commands import SMALL_RUN

import bincounter
from bincounter.errors import ConfigError, ResourceError

SMALL = [*SMALL_RUN, "data.batch_size=8", "+trainer.enable_progress_bar=false"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("bins")
    paths = [f"paths.{name}_dir={folder / name}" for name in ("data", "cache", "log")]
    return [*SMALL, f"data.source={square_bins(folder / 'bins')}", *paths]


@pytest.fixture(scope="module")
def trained(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> bincounter.Run:
    return bincounter.train([*small, f"paths.output_dir={tmp_path_factory.mktemp('trained') / 'run'}"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["+trainer.max_steps=17", "trainer.max_epochs=9"],
            "max_steps=17 ends the fit between .*, which come every 9 steps: set trainer.max_steps=9 or 18$",
        ),
        (
            ["trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2"],
            "max_epochs=3 ends .* come every 2 epochs: set trainer.max_epochs=2 or 4$",
        ),
        (
            ["+trainer.max_steps=9", "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2"],
            "max_steps=9 ends .* come every 18 steps: set trainer.max_steps=18$",
        ),
        (
            ["+trainer.overfit_batches=0.05"],
            "overfit_batches=0.05 of 9 batches .*: set trainer.overfit_batches=1,",
        ),
        (["callbacks=[ema]", "callbacks.ema.update_every_n_steps=9"], "leaves the average at the first of 9 steps"),
        (["model.backbone.width=12000", "model.backbone.blocks=1"], r"from its checkpoints \(a number above 10,000\)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_fit_is_refused_before_it_begins(overrides: list[str], said: str, small: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        bincounter.train([*small, *overrides, f"paths.output_dir={tmp_path / 'run'}"])
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_a_run_is_resumed_without_the_weights_it_began_with(
    trained: bincounter.Run, small: list[str], tmp_path: Path
) -> None:
    weights, folder = tmp_path / "weights.ckpt", tmp_path / "run"
    weights.write_bytes(trained.checkpoint.read_bytes())
    place = f"paths.output_dir={folder}"
    with pytest.raises(ResourceError, match=r"trainer\.max_time is up"):
        bincounter.train([*small, f"model.weights={weights}", "trainer.max_time=00:00:00:00", place])
    weights.unlink()
    with pytest.raises(ConfigError, match=r"with bincounter train .*model\.weights=\S*/run/checkpoints/last\.ckpt"):
        bincounter.train(["ckpt_path=last", place, "model.optimizer.lr=0.5"])
    resumed = bincounter.train(["ckpt_path=last", place, "trainer.max_time=null"])
    first, last = (torch.load(run.checkpoint, weights_only=True)["bincounter"] for run in (trained, resumed))
    assert last["earlier_ids"] == first["train_ids"] != []
    assert torch.equal(last["earlier_content"], first["train_content"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.image_size=16", "the backbone cannot take photos of 16 pixels .*: use larger ones"),
        ("data.counts=[7,8]", r"data\.counts=\[7, 8\], but the checkpoint knows 0, 1, 2, 3: name some"),
    ],
)
def test_what_a_checkpoint_cannot_score_is_refused(
    override: str, said: str, trained: bincounter.Run, small: list[str], tmp_path: Path
) -> None:
    scored = [each for each in small if not each.startswith(("model", "data.image_size"))]
    with pytest.raises(ConfigError, match=said):
        bincounter.train(
            [*scored, "train=false", f"ckpt_path={trained.folder}", override, f"paths.output_dir={tmp_path / 'run'}"]
        )
