"""A frozen backbone's features are computed once, and training on them changes nothing but its time."""

import csv
import logging
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from commands import Run, Start
from outputs import read_rows
from PIL import Image
from test_resume import assert_same, kill_after
from torch import Tensor, nn

from bincounter.data.datamodule import BinDataModule
from bincounter.data.layouts.folders import Folders
from bincounter.model.backbones import PlainCNN
from bincounter.model.counter import BinCounter
from bincounter.model.objectives import Classification, Objective
from bincounter.training.cached_features import CachedFeatures, cached_features, identity

COUNTS = (0, 1, 2, 3)
NO_CHANGES = {
    "flip": False,
    **dict.fromkeys(("shift", "scale", "rotation", "brightness", "contrast", "saturation", "mixup", "cutmix"), 0),
}
RECIPE = [
    "data=folders",
    "data.image_size=32",
    "data.batch_size=8",
    "data.balanced=true",
    "data.augmentation={flip:false,shift:0,scale:0,rotation:0,brightness:0,contrast:0,saturation:0}",
    "model=cnn",
    "model.trained=frozen",
    "model.head.layers=1",
    "model.head.width=16",
    "model.head.dropout=0.3",
    "model.optimizer.lr=0.01",
    "callbacks=[early_stopping,ema]",
    "callbacks.early_stopping.patience=50",
    "trainer=cpu",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=1",
    "+trainer.enable_progress_bar=false",
    "checkpoint.every_n_train_steps=1",
    "logger=[csv]",
]
TOLD = "Training on cached features of the frozen backbone: "


def table(path: Path) -> tuple[list[list[str]], np.ndarray]:
    """The words of a CSV file, and its numbers."""
    with path.open(newline="") as file:
        cells = list(csv.reader(file))
    words = [[cell for cell in row if not is_number(cell)] for row in cells]
    return words, np.array([float(cell) for row in cells for cell in row if is_number(cell)])


def is_number(text: str) -> bool:
    return re.fullmatch(r"-?[\d.]+(e[-+]?\d+)?", text) is not None


def test_scores_are_those_of_photos(bins: Path, train: Run, tmp_path: Path) -> None:
    runs = "data.cache=true,false", "trainer.precision=32-true,bf16-mixed"
    done = train(*RECIPE, f"data.source={bins}", *runs, f"paths.output_dir={tmp_path / 'runs'}", "-m")
    assert done.stderr.count(TOLD) == 2
    assert done.stderr.count(f"{TOLD}87 photos, computed in ") == 2
    stored = tmp_path / "cache" / "features"
    computed = [int((np.fromfile(folder / "checks", np.uint32) != 0).sum()) for folder in stored.iterdir()]
    assert computed == [96, 96]  # test photos too, once they were scored
    for cached, uncached, tolerance in (("0", "2", 1e-4), ("1", "3", 2e-2)):
        ours, theirs = tmp_path / "runs" / cached, tmp_path / "runs" / uncached
        for name in ("logs/metrics.csv", "predictions.csv"):
            (words, numbers), (same_words, same_numbers) = table(ours / name), table(theirs / name)
            assert words == same_words
            np.testing.assert_allclose(numbers, same_numbers, rtol=tolerance, atol=tolerance)
        assert (ours / "report.html").read_text().count("<img") == (theirs / "report.html").read_text().count("<img")
        best, same = (torch.load(run / "checkpoints/best.ckpt", weights_only=True) for run in (ours, theirs))
        assert best["state_dict"].keys() == same["state_dict"].keys()
        assert all(torch.equal(v, same["state_dict"][k]) for k, v in best["state_dict"].items() if "backbone." in k)


@pytest.mark.long
def test_killed_and_without_its_cache_a_run_ends_with_the_same_bits(
    bins: Path, start: Start, train: Run, tmp_path: Path
) -> None:
    recipe = [*RECIPE, "test=false", f"data.source={bins}", f"paths.cache_dir={tmp_path / 'cache'}"]
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "run"
    assert TOLD in train(*recipe, f"paths.output_dir={undisturbed}").stderr
    assert kill_after(start, folder, 6, *recipe, f"paths.output_dir={folder}") == -signal.SIGKILL
    shutil.rmtree(tmp_path / "cache" / "features")
    done = train("ckpt_path=last", f"paths.output_dir={folder}")
    assert f"{TOLD}87 photos, computed in " in done.stderr
    (stored,) = (tmp_path / "cache" / "features").iterdir()
    assert (np.fromfile(stored / "checks", np.uint32) != 0).sum() == 87  # no test photo
    assert_same(folder, undisturbed)
    assert read_rows(folder / "predictions.csv") == read_rows(undisturbed / "predictions.csv")


Build = Callable[..., tuple[CachedFeatures, BinCounter, BinDataModule]]


@pytest.fixture
def build(bins: Path, tmp_path: Path) -> Build:
    """A model, its photos and their features, in one cache."""

    def build_(
        *,
        backbone: nn.Module | None = None,
        seed: int = 0,
        size: int = 32,
        source: Path = bins,
        precision: str = "32-true",
        split_seed: int = 0,
        objective: type[Objective] = Classification,
        trained: str = "frozen",
    ) -> tuple[CachedFeatures, BinCounter, BinDataModule]:
        torch.manual_seed(seed)
        model = BinCounter(backbone or PlainCNN(8, 3), objective(COUNTS), trained=trained)
        data = BinDataModule(
            str(source),
            Folders(),
            counts=None,
            image_size=size,
            batch_size=8,
            split={"method": "random", "fractions": [0.5, 0.25, 0.25], "seed": split_seed},
            augmentation=NO_CHANGES,
            data_dir=tmp_path,
            cache_dir=tmp_path / "cache",
        )
        data.prepare()
        fabric = L.Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
        described = identity(model, data, backbone={}, precision=precision, device=fabric.device)
        return CachedFeatures(model, data, fabric, described, tmp_path / "cache"), model, data

    return build_


class Places(Classification):
    """Reads maps."""

    spatial = True

    def head(self, in_features: int, **_: object) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_features, self.out_features))


def configuration(cache_dir: Path, changes: dict[str, object]) -> dict[str, dict]:
    plain: dict[str, dict] = {
        "data": {"cache": True, "augmentation": dict(NO_CHANGES)},
        "model": {"backbone": {}, "average_flips": False},
        "trainer": {"accelerator": "cpu", "precision": "32-true"},
        "callbacks": {"progress_bar": {"_target_": "lightning.pytorch.callbacks.RichProgressBar"}, "none": None},
        "paths": {"cache_dir": str(cache_dir)},
    }
    for key, value in changes.items():
        group, _, name = key.partition(".")
        plain[group][name] = value
    return plain


FINETUNING, AVERAGING, FOREIGN = (
    {"_target_": target}
    for target in (
        "lightning.pytorch.callbacks.BackboneFinetuning",
        "lightning.pytorch.callbacks.StochasticWeightAveraging",
        "my_package.WatchesPhotos",
    )
)


@pytest.mark.parametrize(
    ("changes", "options", "hint"),
    [
        ({"data.cache": False}, {}, None),
        ({"model.average_flips": True}, {}, "model.average_flips=false"),
        ({"data.augmentation": NO_CHANGES | {"flip": True}}, {}, "'data.augmentation={flip:false}'"),
        (
            {"data.augmentation": {**NO_CHANGES, "shift": 0.1, "mixup": 0.2}},
            {},
            "'data.augmentation={shift:0,mixup:0}'",
        ),
        ({"data.augmentation": NO_CHANGES | {"flip": True}}, {"trained": "all"}, None),
        ({}, {"trained": "all"}, None),
        ({}, {"trained": "last_stages"}, None),
        ({}, {"trained": "gradual"}, None),
        ({}, {"objective": Places}, None),
        ({"trainer.precision": "bf16-true"}, {}, None),
        ({"trainer.limit_train_batches": 2}, {}, None),
        ({"callbacks.finetuning": FINETUNING}, {}, None),
        ({"callbacks.averaging": AVERAGING}, {}, None),
        ({"callbacks.mine": FOREIGN}, {}, None),
    ],
)
def test_used_only_where_features_stay_the_same(
    build: Build,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, object],
    options: dict[str, Any],
    hint: str | None,
) -> None:
    caplog.set_level(logging.INFO)
    _, model, data = build(**options)
    plain = configuration(tmp_path / "cache", changes)
    trainer = L.Trainer(**plain["trainer"], logger=False, enable_checkpointing=False)
    assert cached_features(plain, trainer, model, data, None) is None
    assert not (tmp_path / "cache" / "features").exists()
    assert [record.getMessage() for record in caplog.records if "Hint" in record.getMessage()] == (
        []
        if hint is None
        else [
            f"Hint: the backbone is frozen; with {hint} its features would be computed once, and "
            "epochs would take seconds."
        ]
    )
    allowed = configuration(tmp_path / "cache", {})
    trainer = L.Trainer(**allowed["trainer"], logger=False, enable_checkpointing=False)
    assert (cached_features(allowed, trainer, model, data, None) is None) == bool(options)


def dealt(data: BinDataModule, positions: np.ndarray) -> Tensor:
    return torch.cat([batch["feature"] for batch in data.scoring_loader(positions)])


def computed(features: CachedFeatures, positions: np.ndarray) -> bool:
    """Add photos; returns whether any of them had to be computed."""
    assert features.add(positions)
    return "computed" in features.origin(len(positions))


def test_batches_hold_what_the_backbone_makes_of_the_photos(build: Build) -> None:
    features, model, data = build()
    training = data.side("training")
    assert features.add(training)
    photos = [data.on_after_batch_transfer(batch, 0) for batch in data.photo_loader(training)]
    with torch.no_grad():
        expected = torch.cat([model.features(batch["image"]) for batch in photos])
    torch.testing.assert_close(dealt(data, training), expected, rtol=1e-4, atol=1e-5)
    assert "image" in next(iter(data.scoring_loader(data.side("test"))))  # which nobody asked for


def test_features_do_not_depend_on_which_photos_were_missing(build: Build, tmp_path: Path) -> None:
    for precision in ("32-true", "bf16-mixed"):
        features, _, data = build(precision=precision)
        every = np.arange(len(data.manifest.records))
        assert features.add(every)
        at_once = dealt(data, every)
        shutil.rmtree(tmp_path / "cache" / "features")
        features, _, data = build(precision=precision)
        for positions in (every[5:40:3], every[:50], every):
            assert features.add(positions)
        assert torch.equal(dealt(data, every), at_once)


def test_another_split_takes_over_what_is_there(build: Build) -> None:
    features, _, data = build()
    assert computed(features, np.arange(96))
    features, _, data = build(split_seed=1)
    assert not computed(features, data.side("training"))


def test_features_are_keyed_by_weights_photos_size_and_precision(build: Build, bins: Path, tmp_path: Path) -> None:
    edited = shutil.copytree(bins, tmp_path / "edited")
    photo = min(edited.rglob("*.png"))
    Image.effect_noise((32, 32), 50).convert("RGB").save(photo)
    positions = np.arange(10)
    assert computed(build()[0], positions)
    others: list[dict] = [{"seed": 1}, {"size": 48}, {"source": edited}, {"precision": "bf16-mixed"}]
    for other in others:
        assert computed(build(**other)[0], positions)
    assert not computed(build()[0], positions)


def test_damaged_features_are_computed_again(build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features, _, data = build()
    every = np.arange(96)
    assert features.add(every)
    before = dealt(data, every)
    file = next((tmp_path / "cache" / "features").glob("*/features"))
    with file.open("r+b") as edited:
        edited.seek(1000)
        edited.write(b"\0" * 100)
    features, _, data = build()
    assert computed(features, every)
    assert "are corrupt: computing them again" in caplog.text
    assert torch.equal(dealt(data, every), before)


class Scaled(PlainCNN):
    """A backbone that depends on what no digest can see."""

    factor = 1.0

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) * Scaled.factor


def test_features_of_code_that_has_changed_are_not_used(
    build: Build, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    every = np.arange(96)
    made = []
    for factor in (1.0, 2.0):
        monkeypatch.setattr(Scaled, "factor", factor)
        torch.manual_seed(0)
        features, _, data = build(backbone=Scaled(8, 3))
        assert computed(features, every)
        made.append(dealt(data, every))
    assert "are not those of this backbone: computing them again" in caplog.text
    torch.testing.assert_close(made[1], 2 * made[0])


def test_features_that_depend_on_other_photos_are_not_kept(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    backbone = PlainCNN(8, 3)
    backbone.blocks.insert(0, nn.BatchNorm2d(3, track_running_stats=False))
    features, _, data = build(backbone=backbone)
    assert not features.add(np.arange(96))
    assert "depend on more than the photo" in caplog.text
    assert "image" in next(iter(data.scoring_loader(np.arange(8))))
