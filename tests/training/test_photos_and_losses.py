"""``per_count.csv``: photos and losses of each count, on training photos beside unseen ones."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from bins import square_bins
from commands import Run
from outputs import read_rows
from test_features import NO_CHANGES, RECIPE, TOLD

from bincounter.data.datamodule import BinDataModule
from bincounter.data.layouts.folders import Folders
from bincounter.training import scoring

SPLITS = ("train", "validation", "test")
NUMBERS = ("accuracy", "accuracy_low", "accuracy_high", "cross_entropy", "cross_entropy_low", "cross_entropy_high")


def test_photos_and_losses_of_a_frozen_backbone_then_of_its_checkpoint(bins: Path, train: Run, tmp_path: Path) -> None:
    folder, again = tmp_path / "run", tmp_path / "again"
    source = [f"data.source={bins}", "data.counts=[0,1,2,3,4]"]  # there are no photos with 4
    assert TOLD in train(*RECIPE, *source, f"paths.output_dir={folder}").stderr
    photos = Counter((int(row["count"]), row["split"]) for row in read_rows(folder / "split.csv"))
    found = {(int(row["count"]), row["split"]): row for row in read_rows(folder / "per_count.csv")}
    assert list(found) == [(count, split) for count in range(5) for split in SPLITS]
    for key, row in found.items():
        assert int(row["photos"]) == int(row["scored"]) == photos[key]
        assert all((row[name] == "") == (photos[key] == 0) for name in NUMBERS[:4])
    metrics = json.loads((folder / "metrics.json").read_text())
    for side, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        for row in metrics[side]["per_count"][:4]:
            ours = found[row["count"], split]
            assert float(ours["accuracy"]) == pytest.approx(row["accuracy"])
            assert float(ours["cross_entropy"]) == pytest.approx(row["cross_entropy"], rel=1e-5)
    assert {row["split"] for row in read_rows(folder / "predictions.csv")} == {"validation", "test"}

    # Scored again, from photos instead of features: the same, and nothing on training photos.
    checkpoint = f"ckpt_path={folder / 'checkpoints' / 'best.ckpt'}"
    train("train=false", checkpoint, "data=folders", *source, "trainer=cpu", f"paths.output_dir={again}")
    for row in read_rows(again / "per_count.csv"):
        before = found[int(row["count"]), row["split"]]
        assert row["photos"] == before["photos"]
        if row["split"] == "train":
            assert row["scored"] == "0" and not any(row[name] for name in NUMBERS)
        elif before["scored"] != "0":
            assert float(row["cross_entropy"]) == pytest.approx(float(before["cross_entropy"]), abs=1e-3)
    assert "scored without training" in (again / "report.html").read_text()


def test_the_sample_of_training_photos_is_fair_and_holds_every_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = square_bins(tmp_path / "bins", photos=200)
    for path in sorted((source / "3").iterdir())[3:]:
        path.unlink()
    data = BinDataModule(
        str(source),
        Folders(),
        counts=None,
        image_size=32,
        batch_size=8,
        split={"method": "random", "fractions": [0.8, 0.1, 0.1], "seed": 0},
        augmentation=NO_CHANGES,
        data_dir=tmp_path,
        cache_dir=tmp_path / "cache",
    )
    data.prepare()
    training = data.side("training")
    everything, fair = scoring.training_sample(data)
    assert np.array_equal(everything, training) and fair.all()
    monkeypatch.setattr(scoring, "TRAINING_SAMPLE", 30)
    monkeypatch.setattr(scoring, "EACH_COUNT", 12)
    positions, fair = scoring.training_sample(data)
    assert fair.sum() == 30
    assert np.isin(positions, training).all() and (np.diff(positions) > 0).all()
    scored, there = data.count_of(positions), data.count_of(training)
    assert all(scored[count] >= min(there[count], 12) for count in there)
    assert 0 < there[3] < 12 and scored[3] == there[3]
    assert len(positions) <= 30 + 4 * 12
    again, fair_again = scoring.training_sample(data)
    assert np.array_equal(positions, again) and fair_again.equal(fair)
