"""Caveats on a run's scores: counted, worded, and shown by the report, compare and the log."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from bins import square_bins
from made_runs import make_run, write_run_report
from rich.console import Console
from test_features import NO_CHANGES

from bincounter.data.datamodule import BinDataModule
from bincounter.data.layouts.folders import Folders
from bincounter.report.compare import ComparisonTables, compare
from bincounter.training.caveats import list_caveats, training_overlap


def prepared(source: Path, method: str, cache: Path) -> BinDataModule:
    data = BinDataModule(
        str(source),
        Folders(),
        counts=[0, 1, 2, 3, 9],
        image_size=32,
        batch_size=8,
        split={"method": method, "fractions": [0.6, 0.2, 0.2], "seed": 0},
        augmentation=NO_CHANGES,
        data_dir=cache,
        cache_dir=cache,
    )
    data.prepare()
    return data


@pytest.mark.parametrize("method", ["random", "grouped"])
def test_copies_on_both_sides_and_the_rest_of_what_limits_scores(method: str, tmp_path: Path) -> None:
    bins = square_bins(tmp_path / "bins", photos=40)
    for number, path in enumerate(sorted(bins.glob("*/*.png"))):
        again = path.with_stem(f"{path.stem}-again")
        shutil.copy(path, again)
        if number % 2:  # the same picture in other bytes
            again.write_bytes(path.read_bytes() + b"\0")
    (bins / "0" / "torn.png").write_bytes(b"\x89PNG")
    data = prepared(bins, method, tmp_path / "cache")
    records, content = data.manifest.records, data.manifest.content
    training = data.side("training")
    description = {
        "train_content": torch.from_numpy(content[training].view("int64")),
        "train_ids": [records[i].id for i in training],
    }
    overlaps = training_overlap(data, description)
    groups = {records[i].group for i in training}
    for side, name in (("val", "validation"), ("test", "test")):
        seen = sum(content[i] in content[training] for i in data.side(name))
        near = sum(records[i].group in groups for i in data.side(name)) - seen
        assert (overlaps[side].seen, overlaps[side].near, overlaps[side].named) == (seen, near, 0)
        assert (seen > 0) == (near > 0) == (method == "random")
    # The photos that the initial weights have learnt count, too.
    none = {"train_content": torch.zeros(0, dtype=torch.int64), "train_ids": []}
    earlier = {"earlier_content": description["train_content"], "earlier_ids": description["train_ids"]}
    assert training_overlap(data, {**none, **earlier}) == overlaps
    # A name alone may be chance.
    named = {"train_content": torch.zeros(len(records), dtype=torch.int64), "train_ids": [r.id for r in records]}
    chance = training_overlap(data, named)["test"]
    assert (chance.seen, chance.near, chance.named) == (0, 0, chance.photos)
    plain = {"train": True, "trainer": {"fast_dev_run": True}, "data": {"split": {"method": method}}}
    caveats = " ".join(list_caveats(plain, data, overlaps))
    assert ("of the 16 test photos: their scores are too good" in caveats) == (method == "random")
    assert "A quick look" in caveats and "trainer.fast_dev_run=True" in caveats
    whole = {**plain, "trainer": {"limit_train_batches": 1.0, "limit_val_batches": 1}}
    assert "(trainer.limit_val_batches=1)" in " ".join(list_caveats(whole, data, overlaps))
    assert "No training photo has count 9: the model never predicts it." in caveats
    assert "1 input of the source could not be used, see quarantine.csv." in caveats
    near = overlaps["test"].near
    copies = f"{near} of the 16 test photos are near-copies of training photos"
    assert (f"{copies} (data.split.method=random): their" in caveats) == (method == "random")
    scored = " ".join(list_caveats({**plain, "train": False}, data, overlaps))
    assert (f"{copies}: their scores are too good." in scored) == (method == "random")
    assert "16 of the 16 test photos have the name of a training photo, but other bytes" in " ".join(
        list_caveats(plain, data, {"test": chance})
    )


def test_caveats_are_shown_wherever_the_scores_are(tmp_path: Path) -> None:
    plain, limited, old = (make_run(tmp_path / name, photos=200) for name in ("plain", "limited", "old"))
    metrics = json.loads((limited / "metrics.json").read_text())
    metrics |= {"caveats": ["The model was trained on 7 of them."], "seen_in_training": {"test": metrics["test"]["n"]}}
    (limited / "metrics.json").write_text(json.dumps(metrics))
    (old / "provenance.json").write_text('{"photos_seen_in_training": 3}')
    page = write_run_report(limited).read_text(encoding="utf-8")
    assert "counted right, all of them seen in training</h1>" in page
    assert "<li>The model was trained on 7 of them.</li>" in page
    assert "seen in training" not in write_run_report(plain).read_text(encoding="utf-8")
    console = Console(width=200)
    with console.capture() as capture:
        console.print(ComparisonTables(compare([plain, limited, old])))
    screen = capture.get()
    assert "limited †" in screen and "old †" in screen and "plain †" not in screen
    assert "Note: limited † The model was trained on 7 of them." in screen
    assert "The model was trained on 3 of these photos" in screen
