import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from made_runs import make_run
from rich.console import Console
from test_report import Text

from bincounter.cli.main import main
from bincounter.errors import UserError
from bincounter.report.compare import Comparison, ComparisonTables, compare


def on_screen(comparison: Comparison, width: int = 140) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(ComparisonTables(comparison))
    return capture.get()


def test_only_settings_that_differ_are_shown(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", lr=0.001), make_run(tmp_path / "b", lr=0.003)]
    comparison = compare(runs)
    assert comparison.settings == {"model.optimizer.lr": ("0.001", "0.003")}
    screen = on_screen(comparison)
    assert "model.optimizer.lr" in screen
    assert "output_dir" not in screen
    assert "image_size" not in screen


KEYS = ["callbacks.early_stopping.min_delta_of_the_monitored_metric", "model.backbone._target_", "model.optimizer.lr"]


@pytest.mark.parametrize("number", [2, 5])
def test_keys_are_broken_between_words_at_80_columns(number: int, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"2026-11-20_10-00-0{n}", photos=120, seed=n) for n in range(number)]
    scores = compare(runs)
    comparison = replace(scores, settings=dict.fromkeys(KEYS, ("bincounter.model.backbones.cnn",) * number))
    screen = on_screen(comparison, 80)
    assert max(map(len, screen.splitlines())) <= 80
    settings = screen.split("Scores on")[0].splitlines()
    parts = [line.split(" ")[0] for line in settings]  # the first column
    assert "".join(parts).endswith("".join(KEYS))
    words = {part for key in KEYS for part in re.split(r"[._]", key)}
    assert {word for part in parts[1:] for word in re.split(r"[._]", part)} == words
    assert number == 5 or "model.optimizer.lr" in parts
    assert "calibration" in screen


def test_equal_settings_are_said_to_be(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", seed=1), make_run(tmp_path / "b", seed=2)]
    assert "settings do not differ" in on_screen(compare(runs))


def test_difference_is_paired_by_photo(tmp_path: Path) -> None:
    weak, strong = make_run(tmp_path / "weak", skill=0.3), make_run(tmp_path / "strong", skill=1.6, seed=1)
    _, gain = compare([weak, strong]).gains
    accuracies = [json.loads((run / "metrics.json").read_text())["test"]["accuracy"] for run in (weak, strong)]
    assert gain is not None
    difference, low, high = gain
    assert difference == pytest.approx(accuracies[1] - accuracies[0])
    assert 0 < low < difference < high
    assert f"{100 * difference:+.1f} points" in on_screen(compare([weak, strong]))


def test_run_with_the_same_answers_gains_nothing(tmp_path: Path) -> None:
    comparison = compare([make_run(tmp_path / "a"), make_run(tmp_path / "b")])
    assert comparison.gains == (None, (0.0, 0.0, 0.0))
    assert comparison.best("accuracy") is None
    assert "may be chance" in on_screen(comparison)


@pytest.mark.parametrize("folder", ["monday", "100 % #1", "caf\udce9"])
def test_page_has_the_numbers_of_the_terminal_and_links_the_reports(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run(tmp_path / folder / name, skill=skill, lr=skill) for name, skill in (("weak", 0.3), ("<b>", 1.6))]
    metrics = json.loads((runs[1] / "metrics.json").read_text())
    (runs[1] / "metrics.json").write_text(json.dumps(metrics | {"caveats": ["It has seen these photos."]}))
    (runs[1] / "report.html").touch()
    page = tmp_path / "pages" / "compare.html"
    assert main(["compare", *map(str, runs), "--output", str(page)]) == 0
    screen = capsys.readouterr().out
    assert screen.splitlines()[-1] == str(page)
    text = Text(page)
    words = " ".join(text.text.split())
    table = screen.split("Scores on test photos")[1].split("Note:")[0]
    numbers = re.findall(r"[+-]?[\d.]+(?: %| points| to )", table)
    assert len(numbers) > 20
    assert [number for number in numbers if number.strip() not in words] == []
    assert "<b> is best" in words and "may be chance" not in words
    assert "<b> † It has seen these photos." in words
    assert "model.optimizer.lr0.31.6" in words  # cells of a row
    links = {
        unquote(href, errors="surrogateescape") for href in re.findall(r'href="([^"#]*report.html)"', page.read_text())
    }
    assert {(page.parent / link).resolve() for link in links} == {runs[1] / "report.html"}
    accuracies = [row["accuracy"] for row in metrics["test"]["per_count"]]
    assert all(f"{100 * accuracy:.1f} %" in words for accuracy in accuracies)


def test_page_is_refused_before_anything_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path / "nowhere"), "--output", str(tmp_path)]) == 2
    assert "--output" in capsys.readouterr().err


def test_best_is_the_highest_accuracy_and_the_lowest_error(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, skill=skill, seed=1) for name, skill in (("a", 0.5), ("b", 2.5), ("c", 1.0))]
    comparison = compare(runs)
    assert {comparison.best(score) for score in ("accuracy", "within_one", "rmse", "mae")} == {1}
    shared = compare([*runs, make_run(tmp_path / "as-b", skill=2.5, seed=1)])
    assert shared.best("accuracy") is None  # no run is ahead


def test_settings_are_the_same_from_wherever_runs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, lr in (("0", 0.001), ("1", 0.3)):
        run = make_run(tmp_path / name, lr=lr)
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["data"]["corrections"] = str(run.resolve() / "table.csv")  # a place in the run itself
        config["model"]["weights"] = str(tmp_path / "10" / "best.ckpt")
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    there = compare([tmp_path / "0", tmp_path / "1"]).settings
    assert there == {"model.optimizer.lr": ("0.001", "0.3")}
    monkeypatch.chdir(tmp_path)
    assert compare([Path("0"), Path("1")]).settings == there
    monkeypatch.chdir(tmp_path / "0")
    assert compare([Path(), Path("../1")]).settings == there


def test_different_photos_are_remarked_on_and_not_paired(tmp_path: Path) -> None:
    comparison = compare([make_run(tmp_path / "a"), make_run(tmp_path / "b", prefix="other-")])
    assert comparison.gains == (None, None)
    screen = on_screen(comparison)
    assert "photos or labels of these runs differ" in screen
    assert "scored on different test photos" in screen


def test_same_data_split_otherwise_is_remarked_on(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    with (runs[1] / "predictions.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    with (runs[1] / "predictions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows[:-40])
    remarks = " ".join(compare(runs).remarks)
    assert "scored on different test photos" in remarks
    assert "labels" not in remarks


def test_sweep_folder_stands_for_its_runs_in_order(tmp_path: Path) -> None:
    for number in (0, 1, 2, 10):
        make_run(tmp_path / "sweep" / str(number), lr=0.001 * (number + 1), photos=120)
    (tmp_path / "sweep" / "optuna").mkdir()
    assert compare([tmp_path / "sweep"]).names == ("0", "1", "2", "10")


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "monday" / "0", photos=120), make_run(tmp_path / "tuesday" / "0", photos=120)]
    assert compare(runs).names == ("monday/0", "tuesday/0")
    assert len(set(compare([runs[0], runs[0]]).names)) == 2


def test_validation_scores_where_a_run_was_not_tested(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    metrics = json.loads((runs[1] / "metrics.json").read_text())
    del metrics["test"]
    (runs[1] / "metrics.json").write_text(json.dumps(metrics))
    comparison = compare(runs)
    assert comparison.side == "val"
    assert "not all runs have test scores" in " ".join(comparison.remarks)


def test_wrong_folders_are_answered_in_a_sentence(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", photos=120)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="at least two runs"):
        compare([run])
    with pytest.raises(UserError, match="empty is not a run's folder"):
        compare([run, tmp_path / "empty"])
    with pytest.raises(UserError, match="nowhere is not a folder"):
        compare([run, tmp_path / "nowhere"])
    unscored = make_run(tmp_path / "unscored", photos=120)
    (unscored / "metrics.json").unlink()
    with pytest.raises(UserError, match="unscored has no scores"):
        compare([run, unscored])


def test_a_run_without_scores_is_named_and_the_others_are_compared(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "sweep" / str(number), photos=120) for number in range(4)]
    (runs[1] / "metrics.json").unlink()
    (runs[2] / "metrics.json").write_text("{")
    comparison = compare([tmp_path / "sweep"])
    assert comparison.names == ("0", "3") and comparison.side == "test"
    remarks = [remark for remark in comparison.remarks if remark.startswith("left out")]
    assert len(remarks) == 2
    assert any(f"{runs[1]} has no scores" in remark for remark in remarks)
    assert any("2/metrics.json is corrupt" in remark for remark in remarks)
    assert "1 has no scores: score its checkpoint first" in on_screen(comparison)
