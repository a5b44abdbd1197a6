"""The report's section on photos and losses of each count."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from made_runs import make_run, write_run_report
from scipy import stats
from test_report import Text

from bincounter.report.per_count_section import rank_correlation


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def words(run: Path) -> str:
    return " ".join(Text(write_run_report(run, photo=None)).text.split())


def change(run: Path, split: str, **columns: list[str]) -> None:
    """Put other values into one split's rows of per_count.csv, count by count."""
    with (run / "per_count.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name, values in columns.items():
        for row, value in zip((row for row in rows if row["split"] == split), values, strict=True):
            row[name] = value
    with (run / "per_count.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("rows", [4, 6, 20])
def test_rank_correlation_is_spearmans_with_a_permutation_p_value(rows: int) -> None:
    x, y = np.random.default_rng(rows).integers(0, 9, (2, rows)).astype(float)  # with ties
    found = rank_correlation(x.tolist(), y.tolist())
    assert found is not None
    assert found[0] == pytest.approx(stats.spearmanr(x, y).statistic)

    def statistic(order: np.ndarray) -> float:
        return abs(stats.spearmanr(x, order).statistic)

    theirs = stats.permutation_test(
        (y,), statistic, permutation_type="pairings", alternative="greater", n_resamples=720 if rows < 8 else 999
    )
    assert found[1] == pytest.approx(theirs.pvalue, abs=1e-9 if rows < 8 else 0.06)


@pytest.mark.parametrize(("x", "y"), [([1, 2, 3], [1, 2, 3]), ([5, 5, 5, 5], [1, 2, 3, 4]), ([1, 2, 3, 4], [0] * 4)])
def test_nothing_is_correlated_where_there_is_nothing_to_tell(x: list[float], y: list[float]) -> None:
    assert rank_correlation(x, y) is None


def test_losses_that_fall_with_photos_are_said_to_without_a_cause(run: Path) -> None:
    change(run, "train", photos=["9000", "700", "60", "50", "40"], scored=["900", "200", "60", "50", "40"])
    change(run, "test", cross_entropy=["0.1", "0.2", "0.3", "0.4", "0.5"], scored=["90", "50", "20", "9", "3"])
    page = words(run)
    assert "Counts with more training photos have lower test loss (rank correlation -1.00 over 5 counts; 1.7 %" in page
    assert "Larger counts have higher test loss (rank correlation +1.00" in page
    assert "Neither is a cause" in page
    assert "Training losses are of 1,250 of 9,850 photos" in page and "900 scored" in page
    assert "Fewer than 10 test photos have count 4 or 5: their scores are uncertain." in page


def test_losses_that_go_with_nothing_are_said_to(run: Path) -> None:
    page = words(run)
    assert "No clear correlation of training photos and test loss" in page
    with (run / "per_count.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert f"{float(row['cross_entropy']):.2f}" in page
            assert f"{float(row['cross_entropy_low']):.2f} to {float(row['cross_entropy_high']):.2f}" in page


def test_counts_with_about_as_many_photos_tell_nothing_of_photos(run: Path) -> None:
    change(run, "train", photos=["748", "747", "746", "746", "747"], scored=["9"] * 5)
    page = words(run)
    assert "All counts have about as many training photos (746 to 748)" in page
    assert "training photos have" not in page


def test_a_count_without_photos_and_a_run_that_trained_nothing(run: Path) -> None:
    columns = [name for name in (run / "per_count.csv").read_text().splitlines()[0].split(",") if "_" in name]
    for split, left in (("train", ""), ("validation", None), ("test", None)):
        for name in ("accuracy", "cross_entropy", *columns):
            change(run, split, **{name: [left or "", *([left] * 4 if left is not None else ["0.5"] * 4)]})
        change(run, split, scored=["0"] * 5 if left == "" else ["0", "9", "9", "9", "9"])
    change(run, "test", photos=["0", "9", "9", "9", "9"])
    change(run, "train", photos=["10", "20", "30", "40", "50"])
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "train": False}))
    page = words(run)
    assert "its training photos are those of the checkpoint, unscored" in page
    assert "No test photo has count 1." in page
    assert "Every count has the same test loss: a correlation is undefined" in page
    change(run, "train", photos=[""] * 5)
    assert "The number of training photos of each count is unknown" in words(run)


def test_a_run_of_an_older_version_shows_what_its_metrics_have(run: Path) -> None:
    (run / "per_count.csv").unlink()
    page = words(run)
    for side in ("train", "test"):
        for row in json.loads((run / "metrics.json").read_text())[side]["per_count"]:
            assert f"{row['cross_entropy']:.2f}" in page
    assert "Count by count" in page and "95 % intervals; the loss" not in page
