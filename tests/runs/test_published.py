"""The published experiments, from their command to an answer; ResNet50 starts from a file of torchvision's weights."""

import csv
import json
from pathlib import Path

import pytest
import torch
from commands import Run
from made_photos import abid_bin
from torchvision import models

FROM_WEIGHTS = {"capstone_80_10_10", "capstone_80_5_15"}


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in the layout of ABID, 20 of each count from 1 to 5, each of an item of its own."""
    root = tmp_path_factory.mktemp("bins")
    for number in range(100):
        abid_bin(root, f"{number:05}", number % 5 + 1, f"B{number:09}")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(models.resnet50().state_dict(), path)
    return path


@pytest.mark.parametrize("experiment", [*sorted(FROM_WEIGHTS), "capstone_cnn", "abid_moderate"])
def test_a_published_experiment_trains_scores_and_answers(
    experiment: str, bins: Path, weights: Path, train: Run, run: Run, tmp_path: Path
) -> None:
    folder, table = tmp_path / "run", tmp_path / "answers.csv"
    given = [f"model.weights={weights}"] if experiment in FROM_WEIGHTS else []
    small = ["data.image_size=64", "trainer.max_epochs=1", "trainer=cpu"]
    done = train(f"experiment={experiment}", f"data.source={bins}", *given, *small, f"paths.output_dir={folder}")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test"]["n"] > 0 and metrics["test"]["majority_accuracy"] > 0
    if given:
        assert f"Backbone starts from weights {weights}" in done.stderr
        trained = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        given_weights = torch.load(weights, weights_only=True)
        frozen = {name.removeprefix("backbone."): value for name, value in trained.items() if "backbone." in name}
        assert frozen and all(torch.equal(value, given_weights[name]) for name, value in frozen.items())
    photo = bins / "bin-images" / "00000.jpg"
    run("-m", "bincounter", "predict", str(photo), f"--ckpt-path={folder}", "--csv", str(table))
    with table.open(newline="") as file:
        (answer,) = csv.DictReader(file)
    assert int(answer["predicted"]) in range(6) and "p_5" in answer
