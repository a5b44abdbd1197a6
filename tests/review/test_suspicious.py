"""``bincounter explore --suspicious``: the labels most likely wrong, by predictions for photos that were held out."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from commands import Run
from made_photos import abid_bin, bin_folders
from reviews import reviewed

from bincounter.review.suspicious import wrong_label_posterior


def write_run(
    folder: Path, rows: Mapping[str, tuple[str, int, list[float]]], counts: tuple[int, ...] = (0, 1, 2)
) -> Path:
    """A run's folder with predictions alone: (split, label, distribution) by photo."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("task_name: made\n")
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "split", "count", "predicted", "expected_count", *(f"p_{k}" for k in counts)])
        for id_, (split, count, shares) in rows.items():
            mean = sum(k * share for k, share in zip(counts, shares, strict=True))
            writer.writerow([id_, split, count, counts[int(np.argmax(shares))], mean, *shares])
    return folder


def sure(count: int) -> list[float]:
    return [0.9 if k == count else 0.05 for k in range(3)]


@pytest.mark.parametrize("seed", range(3))
def test_wrong_labels_come_first(seed: int) -> None:
    generator = np.random.default_rng(seed)
    photos, size, spread = 3000, 6, 0.33
    true = generator.integers(0, size, photos)
    labels, wrong = true.copy(), generator.random(photos) < 0.05
    labels[wrong] = np.where(true == 0, 1, true - 1)[wrong]
    seen = true + generator.normal(0, spread, photos)
    probabilities = np.exp(-((seen[:, None] - np.arange(size)) ** 2) / (2 * spread**2))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    posterior = wrong_label_posterior(labels, probabilities)
    np.testing.assert_allclose(posterior.sum(axis=1), 1)
    order = np.argsort(posterior[np.arange(photos), labels])
    assert wrong[order[: photos // 10]].sum() >= 0.85 * wrong.sum()
    first = order[: wrong.sum() // 2]
    assert wrong[first].mean() > 0.85
    assert (posterior[first].argmax(axis=1) == true[first]).mean() > 0.8


def test_counts_without_photos_and_right_labels_are_left_in_peace() -> None:
    labels = np.array([0, 0, 2, 2])
    posterior = wrong_label_posterior(labels, np.array([sure(0), sure(0), sure(2), sure(2)]))
    assert (posterior.argmax(axis=1) == labels).all()
    assert np.isfinite(posterior).all()


def test_runs_are_joined_and_the_table_is_ready_for_review(tmp_path: Path, run: Run) -> None:
    source = bin_folders(tmp_path / "of the bins", photos=30)
    rows = {f"{n % 3}/{n}.jpg": ("validation" if n % 2 else "test", n % 3, sure(n % 3)) for n in range(24)}
    rows["0/3.jpg"] = ("validation", 0, sure(2))
    one = write_run(tmp_path / "one", {**rows, "1/28.jpg": ("train", 1, sure(0))})
    other = write_run(tmp_path / "other", {"0/3.jpg": ("test", 0, [0.1, 0.0, 0.9]), "0/24.jpg": ("test", 0, sure(0))})
    table = tmp_path / "suspicious.csv"
    done = run(
        *("-m", "bincounter", "explore", f"data.source={source}", f"paths.cache_dir={tmp_path / 'cache'}"),
        *("--output", str(table), "--suspicious", str(one), str(other / "predictions.csv")),
    )
    assert f"25 of 30 photos were held out by the runs: {table}" in done.stdout
    assert f"bincounter review {table} --photos '{source}'\n" in done.stderr
    with table.open(newline="") as file:
        written = list(csv.DictReader(file))
    first = written[0]
    assert (first["photo"], first["expected"], first["predicted"], first["direction"]) == ("0/3.jpg", "0", "2", "extra")
    assert float(first["p_2"]) == pytest.approx(0.9)
    assert float(first["p_0"]) == pytest.approx(0.075)
    assert [row["reason"] for row in written] == [""] * 25 + ["held out by no run"] * 5
    wrong = [float(row["record_wrong"]) for row in written[:25]]
    assert wrong == sorted(wrong, reverse=True)
    with reviewed(table, "--photos", str(source)) as server:
        shown = server.next("anna")
        assert (shown["photo"], shown["expected"]) == ("0/3.jpg", 0)
        assert server.ask("GET", f"/photo/{shown['id']}").status == 200


def explore(run: Run, tmp_path: Path, made: Path, *options: str) -> tuple[list[dict[str, str]], str]:
    """List suspicious labels; the table, and what was printed on stderr."""
    table = tmp_path / "table.csv"
    cache = f"paths.cache_dir={tmp_path / 'cache'}"
    done = run("-m", "bincounter", "explore", *options, cache, "--output", str(table), "--suspicious", str(made))
    with table.open(newline="") as file:
        return list(csv.DictReader(file)), done.stderr


def test_photos_of_abid_are_named_by_their_files(tmp_path: Path, run: Run) -> None:
    for n in range(6):
        abid_bin(tmp_path / "abid", f"{n:05}", n % 3)
    made = write_run(tmp_path / "run", {f"{n:05}": ("test", n % 3, sure(n % 3)) for n in range(6)})
    rows, _ = explore(run, tmp_path, made, "data=abid", f"data.source={tmp_path / 'abid'}")
    assert sorted(row["photo"] for row in rows) == [f"bin-images/{n:05}.jpg" for n in range(6)]


def test_no_review_is_advised_of_photos_that_it_cannot_show(tmp_path: Path, run: Run) -> None:
    source = bin_folders(tmp_path / "bins", photos=30)
    run("-m", "bincounter", "prepare", str(tmp_path / "shards"), f"data.source={source}", "--as", "shards")
    made = write_run(tmp_path / "run", {"0/0.jpg": ("test", 0, sure(0))})
    rows, printed = explore(
        run, tmp_path, made, "data=shards", f"data.source={tmp_path / 'shards'}", "data.counts=[0,1]"
    )
    assert len(rows) == 20
    assert "bincounter review cannot show photos in shards or in a bucket: to check these, set data.source" in printed
    assert "Check them" not in printed
    assert "10 photos excluded, their counts are outside [0, 1]" in printed


def test_runs_that_do_not_serve_are_refused(tmp_path: Path, run: Run) -> None:
    source = bin_folders(tmp_path / "bins", photos=6)
    made = write_run(tmp_path / "run", {"0/0.jpg": ("test", 0, sure(0))})
    seen = write_run(tmp_path / "seen", {"0/0.jpg": ("test", 0, sure(0))})
    (seen / "metrics.json").write_text('{"seen_in_training": {"test": 3}}')
    foreign = write_run(tmp_path / "foreign", {"elsewhere.jpg": ("test", 0, sure(0))})
    fewer = write_run(tmp_path / "fewer", {"0/0.jpg": ("test", 0, [0.5, 0.5])}, counts=(0, 1))
    mixed = write_run(tmp_path / "mixed", {"0/0.jpg": ("test", 0, sure(0))})
    (mixed / "config.yaml").write_text("data: {split: {method: random}}\n")
    bare = write_run(tmp_path / "bare", {})
    (bare / "predictions.csv").unlink()
    for runs, sentence in [
        ([seen], "was trained on 3 of the photos it scored: name another run"),
        ([mixed], "may have trained on near-copies of the photos that it held out: name runs with data.split.method"),
        ([made, fewer], "knows other counts than the first run"),
        ([bare], "has no predictions.csv"),
        ([foreign], "none of the 6 photos was held out by these runs"),
        ([tmp_path / "no"], "is not a run's folder"),
    ]:
        refused = run(
            *("-m", "bincounter", "explore", f"data.source={source}", f"paths.cache_dir={tmp_path / 'cache'}"),
            *("--output", str(tmp_path / "table.csv"), "--suspicious", *map(str, runs)),
            code=2,
        )
        assert sentence in refused.stderr
    assert not (tmp_path / "table.csv").exists()
