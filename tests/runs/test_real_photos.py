"""The Amazon Bin Image Dataset through the commands, in its own layout and arranged as bin folders."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
from commands import Run
from outputs import read_rows

pytestmark = pytest.mark.photos

COUNTS = "data.counts=[1,2,3,4,5]"
QUICK = [
    "model=cnn",
    "model.backbone.width=8",
    "data.image_size=32",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "callbacks=[none]",
    "+trainer.enable_progress_bar=false",
]


def test_abid_is_trained_on_without_a_leak_and_arranged(
    train: Run, run: Run, abid_photos: Path, tmp_path: Path
) -> None:
    source = ["data=abid", f"data.source={abid_photos}", COUNTS]
    train(*source, *QUICK, f"paths.output_dir={tmp_path / 'run'}")
    split = read_rows(tmp_path / "run" / "split.csv")
    assert len(split) == 6664
    sides = defaultdict(set)
    for row in split:
        sides[row["group"]].add(row["split"])
    assert all(len(of_group) == 1 for of_group in sides.values())
    assert 4000 < len(sides) < 4500
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test"]["majority_accuracy"] == pytest.approx(0.267, abs=0.01)
    assert metrics["val"]["accuracy"] > metrics["val"]["majority_accuracy"] - 0.05

    # A list of ids chooses photos; an id without one is listed, not lost.
    wanted = [row["id"] for row in split[:40]]
    (tmp_path / "ids.txt").write_text("\n".join([*wanted, "none-such"]))
    ids = f"data.layout.ids={tmp_path / 'ids.txt'}"
    cache = f"paths.cache_dir={tmp_path / 'cache'}"
    run("-m", "bincounter", "arrange", str(tmp_path / "bins"), *source, ids, cache)
    arranged = {path.stem: path.parent.name for path in (tmp_path / "bins").glob("*/*.jpg")}
    assert arranged == {row["id"]: row["count"] for row in split[:40]}
    run("-m", "bincounter", "explore", *source, ids, cache, "--output", str(tmp_path / "data.html"))
    assert "none-such" in (tmp_path / "data.html").read_text()
