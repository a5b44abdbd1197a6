"""Counts that are learnt and never answered, and answers averaged over mirror images."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bins import square_bins
from commands import Run
from PIL import Image

import bincounter
from bincounter.cli.hydra_app import compose
from bincounter.cli.main import main
from bincounter.config.validate import validate
from bincounter.data.preprocessing import decode
from bincounter.errors import ConfigError
from bincounter.model.build import load_counter
from bincounter.serving.application.served_model import ServedModel
from bincounter.serving.packing.tarball import unpack

SMALL = [
    *("data=folders", "data.image_size=32", "data.batch_size=16", "model=cnn", "model.backbone.width=8"),
    *("trainer=cpu", "trainer.max_epochs=2", "callbacks=[none]", "+trainer.enable_progress_bar=false"),
]


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of 0 to 3 squares; one of three is a copy of one of two, which has a square more."""
    root = square_bins(tmp_path_factory.mktemp("bins"), photos=160)
    copied, copy = sorted((root / "2").iterdir())[0], sorted((root / "3").iterdir())[0]
    copy.write_bytes(copied.read_bytes())
    return root


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_photos_above_are_in_training_alone(mixup: float, bins: Path, tmp_path: Path) -> None:
    def made(above: int) -> bincounter.BinDataModule:
        data = bincounter.BinDataModule(
            bins,
            counts=[0, 1],
            learn_above=above,
            image_size=32,
            batch_size=16,
            augmentation={"mixup": mixup},
            data_dir=tmp_path,
        )
        data.prepare()
        return data

    alone, both = made(0), made(1)
    for side in ("training", "validation", "test"):
        assert np.array_equal(alone.side(side), both.side(side))
    assert both.learnt == [0, 1, 2] and both.counts == alone.counts == [0, 1]
    further = set(both.training.tolist()) - set(alone.training.tolist())
    assert {both.manifest.records[i].count for i in further} == {2, 3} and len(further) == 80
    assert both.count_of(both.training) == {**alone.count_of(alone.training), 2: 80}
    batches = [both.on_after_batch_transfer(batch, 0) for batch in both.train_dataloader()]
    assert {count for batch in batches for count in batch["count"].tolist()} == {0, 1, 2}
    assert all(batch["target"].shape == (16, 3) for batch in batches if mixup)


def test_explore_lists_them_apart_from_photos_that_are_not_used(bins: Path, tmp_path: Path) -> None:
    page = tmp_path / "data.html"
    settings = ["data.counts=[1,2]", "data.learn_above=1", "data.split.fold=1", f"paths.data_dir={tmp_path}"]
    assert main(["explore", *SMALL[:2], f"data.source={bins}", *settings, f"--output={page}"]) == 0
    text = page.read_text()
    (number,) = re.findall("([0-9]+) more with other counts are in training alone, by data.learn_above.", text)
    assert int(number) in (39, 40) and f"{40 + 40 - int(number)} more are outside of data.counts." in text
    assert f"{number} with 3." in text and "<dt>split fold</dt><dd>1</dd>" in text


def test_near_copies_of_scored_photos_are_not_learnt(bins: Path, tmp_path: Path) -> None:
    data = bincounter.BinDataModule(
        bins, counts=[0, 1, 2], learn_above=1, image_size=32, split={"fractions": (0.1, 0.45, 0.45)}, data_dir=tmp_path
    )
    data.prepare()
    records, scored = data.manifest.records, np.concatenate([data.side("validation"), data.side("test")])
    groups = {records[i].group for i in scored}
    copied = {r.group for r in records if r.count == 2} & {r.group for r in records if r.count == 3}
    assert len(copied) == 1 and copied < groups
    assert not groups & {records[i].group for i in data.training}


def test_a_model_answers_its_counts_alone_and_serves_as_it_was_scored(
    bins: Path, train: Run, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, archive = tmp_path / "run", tmp_path / "model.tar.gz"
    options = ["data.counts=[0,1,2]", "data.learn_above=3", "model.average_flips=true", "data.augmentation.mixup=0.2"]
    options += ["debugger=tensors", "model/optimizer=sam", "objective.squared_error=0.2", "model.answer=median"]
    train(*SMALL, *options, f"data.source={bins}", f"paths.output_dir={folder}")
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [name for name in rows[0] if name.startswith("p_")] == ["p_0", "p_1", "p_2"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test"]["counts"] == [0, 1, 2] and metrics["caveats"] == []
    test = [row for row in rows if row["split"] == "test"]
    below = np.array([[float(row["p_0"]), float(row["p_0"]) + float(row["p_1"])] for row in test])
    assert [int(row["predicted"]) for row in test] == (below < 0.5).sum(1).tolist()
    assert metrics["test"]["accuracy"] == np.mean([row["predicted"] == row["count"] for row in test])

    with (folder / "debugger" / "counts.csv").open(newline="") as file:
        assert [row["count"] for row in csv.DictReader(file)] == ["0", "1", "2"] * 2  # of each epoch

    model, description = load_counter(folder / "checkpoints/best.ckpt")
    # 40 photos of three squares are learnt, too, without the copy in case that one is scored.
    trained_on = len(description["train_ids"])
    further = f"{trained_on - sum(description['train_counts'].values())} of them with more items than are answered"
    assert f"trained on {trained_on} photos ({further}) for 2 epochs" in (folder / "report.html").read_text()
    assert main(["runs", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["photos"] == trained_on

    more = shutil.copytree(bins, tmp_path / "more")
    Image.effect_noise((40, 40), 90).save(more / "3" / "new.png")
    resumed = train("ckpt_path=last", f"paths.output_dir={folder}", f"data.source={more}", code=2)
    assert "1 of 136 training photos, 3/new.png first, are not byte for byte those" in resumed.stderr

    row = test[0]
    photo = bins / row["id"]
    answer = bincounter.load(folder, device="cpu").predict(photo)
    written = [float(row[f"p_{count}"]) for count in range(3)]
    assert list(answer.probabilities.values()) == pytest.approx(written, abs=0.02)  # bf16 in the run, where there is
    pixels = decode(photo.read_bytes(), 32)[None]
    image = (pixels.float() / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(model.probabilities(image), model.probabilities(image.flip(-1)), atol=1e-6)
        assert not torch.allclose(model.probabilities_of_view(image), model.probabilities(image), atol=1e-6)

    run("deploy.py", "action=package", f"ckpt_path={folder}", f"archive={archive}", "parity.photos=4")
    served = ServedModel.load(unpack(archive, tmp_path / "unpacked"))
    assert f"Trained on {trained_on} photos (" in (card := (tmp_path / "unpacked" / "README.md").read_text())
    assert further in card
    assert served.counts == (0, 1, 2) and served.answer == "median" == bincounter.load(folder).answer
    assert served.probabilities(pixels)[0].tolist() == pytest.approx(list(answer.probabilities.values()), abs=1e-4)

    # A frozen backbone's features are of photos, not of their mirror images.
    frozen = train(
        *SMALL, *options, "model.trained=frozen", f"data.source={bins}", f"paths.output_dir={tmp_path / 'frozen'}"
    )
    assert (
        "cached features" not in frozen.stderr and " model.average_flips=false its features would be" in frozen.stderr
    )


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data=demo", "data.learn_above=2"], "add data.counts"),
        (["data=demo", "data.counts=[0,1]", "data.learn_above=2", "data.sync.only=counts"], "remove one of the two"),
        (
            ["data=demo", "data.counts=[0,1]", "data.corrections=a.csv", "data.sync.only=counts"],
            "data.corrections may .*: remove one of the two",
        ),
        (["data=demo", "data.counts=[0,1]", "data.learn_above=-1"], "data.learn_above=-1 is out of range"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence.replace("[", r"\[")):
        validate(compose(overrides, config_name="train"))
