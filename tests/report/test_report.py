import base64
import io
import json
import os
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_runs import drawn_photo, make_run, write_run_report
from PIL import Image

from bincounter.data.preprocessing import decode
from bincounter.errors import UserError
from bincounter.number_format import SCORES, format_score, score_heading
from bincounter.profiler.profile_record import STEP, ProfileRecord, Row, Session, Usage
from bincounter.report import plots
from bincounter.report.report_photos import inline, select_photos
from bincounter.training.results import read_results
from bincounter.training.scoring import print_scores


class Text(HTMLParser):
    """The text of a page, and the names of its elements."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = ""
        self.elements: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_scores_stand_beside_their_intervals_and_baselines(run: Path) -> None:
    text = Text(write_run_report(run)).text
    metrics = json.loads((run / "metrics.json").read_text())
    for side in ("val", "test"):
        scores = metrics[side]
        low, high = scores["intervals"]["accuracy"]
        for fraction in (scores["accuracy"], scores["majority_accuracy"]):
            assert f"{100 * fraction:.1f} %" in text
        assert f"{100 * low:.1f} to {100 * high:.1f} %" in text
        assert f"{scores['rmse']:.3f}" in text
        assert f"{scores['mean_rmse']:.3f}" in text
    assert "clearly better than always predicting 3" in text


@pytest.mark.parametrize(
    ("metric", "value", "text", "heading"),
    [
        ("accuracy", 0.37512, "37.5 %", "Accuracy"),
        ("val/within_one", 1.0, "100.0 %", "Validation within one"),
        ("macro_f1", 0.2, "20.0 %", "Macro F1"),
        ("test/rmse", 0.8124, "0.812 items", "Test RMSE, items"),
        ("mae", 2, "2.000 items", "MAE, items"),
        ("val/cross_entropy", 1.60944, "1.609 nats", "Validation cross entropy, nats"),
        ("ece", None, "n/a", "Calibration error"),
        ("rmse", float("nan"), "n/a", "RMSE, items"),
        ("revenue", 1234.5678, "1234.6", "revenue"),
    ],
)
def test_scores_are_formatted_alike_everywhere(metric: str, value: float | None, text: str, heading: str) -> None:
    assert format_score(metric, value, unit=True) == text
    assert score_heading(metric) == heading


def test_the_scores_on_screen_are_those_of_the_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    print_scores({**metrics, "caveats": []})
    screen, page = capsys.readouterr().out, Text(write_run_report(run)).text
    for name in ("accuracy", "rmse", "cross_entropy"):
        text = format_score(name, metrics["test"][name])
        assert text in screen and text in page
    low, high = metrics["test"]["intervals"]["accuracy"]
    assert f"({100 * low:.1f} to {100 * high:.1f} %)" in " ".join(screen.split())


def test_one_epoch_has_one_tick() -> None:
    plot = plots.lines({"validation": [(1, 40.0)]}, xlabel="Epoch", label="Loss")
    ticks = [float(text) for text in re.findall(r">([0-9.]+)</text>", plot)]
    assert [tick for tick in ticks if tick < 10] == [1]


def test_dots_of_certain_predictions_are_whole() -> None:
    bins = [{"confidence": 1.0, "accuracy": 1.0, "n": 9}, {"confidence": 0.5, "accuracy": 0.0, "n": 3}]
    plot = plots.reliability(bins, label="Reliability")
    assert "fill: var(--accent)" in plot
    assert "<g clip-path" not in plot  # of the dots; lines are clipped one by one


def test_splits_have_one_order_and_one_palette_on_all_pages() -> None:
    """Training at the bottom, test on top."""
    parts = {"train": [60], "validation": [20], "test": [10]}
    losses: dict[str, plots.Losses] = {split: [(1.0, None)] for split in parts}
    for plot in (
        plots.stacked_bars(["1"], parts, xlabel="Items", label="data.html"),
        plots.photos_and_losses([1], parts, losses, label="report.html"),
    ):
        bars = re.findall(r'<path d="M [\d.]+ ([\d.]+) [^"]*z\s*" clip-path[^>]*style="fill: var\(--(\w+)\)"', plot)
        assert [colour for _, colour in bars] == ["muted", "accent", "ink"]
        bottoms = [float(bottom) for bottom, _ in bars]
        assert bottoms == sorted(bottoms, reverse=True)  # y of SVG goes down
    for names in (["train", "validation"], ["train"], ["validation"], ["validation", "test"]):
        curves = plots.lines({name: [(1, 0.5), (2, 0.4)] for name in names}, xlabel="Epoch", label="Loss")
        drawn = set(re.findall(r"stroke: var\(--(\w+)\); stroke-width: 1.6", curves))
        assert drawn == {{"train": "muted", "validation": "accent", "test": "ink"}[name] for name in names}


@pytest.mark.parametrize("side", [("val",), ("val", "test")])
def test_scores_on_a_terminal_of_80_columns_do_not_wrap(
    side: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    perfect = dict.fromkeys(SCORES, 1.0) | {"majority_accuracy": 1.0, "mean_rmse": 1.0, "n": 535_234}
    scores = {**perfect, "intervals": dict.fromkeys(SCORES, (1.0, 1.0))}
    monkeypatch.setenv("COLUMNS", "80")
    print_scores({**dict.fromkeys(side, scores), "caveats": []})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(SCORES) + 2
    assert lines[1].split("  ")[-1].strip() == "100.0 % (100.0 to 100.0 %)"
    assert max(map(len, lines)) <= 80


def test_a_guessing_model_is_not_called_better(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", skill=0.0)
    assert "clearly better" not in Text(write_run_report(run)).text


def test_same_run_makes_the_same_page(run: Path) -> None:
    first = write_run_report(run, explained=True).read_bytes()
    assert write_run_report(run, explained=True).read_bytes() == first


def test_text_from_data_stays_text(tmp_path: Path) -> None:
    hostile = "<script>document.title='owned'</script>\"'&"
    run = make_run(tmp_path / "run", prefix=hostile)
    (run / "quarantine.csv").write_text("path,reason\n<img src=x onerror=alert(1)>,<b>no</b>\n")
    (run / "overrides.txt").write_text("task_name=<script>alert(1)</script>\n")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("task_name: capstone", "task_name: <script>alert(2)</script>"))
    page = Text(write_run_report(run, explained=True))
    assert "script" not in page.elements
    assert page.elements.count("b") == 4  # the dots of the four cards, and none from the quarantine list
    assert "<b>no</b>" in page.text
    assert hostile in page.text
    assert "alert(2)" in page.text


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("metrics.json", "No scores: the run ended"),
        ("predictions.csv", "No predictions to show"),
        ("logs", "No curves"),
        ("split.csv", "The run has no split.csv"),
        ("quarantine.csv", "The run has no quarantine.csv"),
        ("provenance.json", "The run has no provenance.json"),
        ("overrides.txt", "None: all values are defaults"),
    ],
)
def test_missing_piece_is_answered_by_a_sentence(run: Path, missing: str, sentence: str) -> None:
    assert sentence not in Text(write_run_report(run)).text
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert sentence in Text(write_run_report(run)).text


def test_killed_run_that_left_only_its_configuration(run: Path) -> None:
    for path in run.iterdir():
        if path.name != "config.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "This run has not been scored" in Text(write_run_report(run)).text


def test_without_test_photos_validation_scores_lead(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["test"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    lines = (run / "predictions.csv").read_text().splitlines()
    (run / "predictions.csv").write_text("\n".join(line for line in lines if ",test," not in line))
    text = Text(write_run_report(run)).text
    assert f"{metrics['val']['n']} validation bins counted right" in text
    assert "There are no scores on test photos" in text
    assert "Validation photos drawn at random" in text


def test_log_cut_short_by_a_kill_keeps_its_whole_lines(run: Path) -> None:
    log = run / "logs" / "metrics.csv"
    log.write_text(log.read_text()[:-30] + "\n7,6")
    assert "Learning rate" in Text(write_run_report(run)).text


def test_photos_that_are_gone_or_broken_are_said_to_be(run: Path) -> None:
    assert "photo is missing" in Text(write_run_report(run, photo=None)).text
    assert "photo is missing" in Text(write_run_report(run, photo=lambda name: drawn_photo(name)[:200])).text


def test_large_noisy_photos_keep_the_page_below_8_megabytes(run: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1600, 2000, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=95)
    assert write_run_report(run, photo=lambda _: buffer.getvalue(), explained=True).stat().st_size < 8e6


def test_the_photos_to_explain_are_right_and_wrong_ones(run: Path) -> None:
    rows = {line.split(",")[0]: line.split(",") for line in (run / "predictions.csv").read_text().splitlines()[1:]}
    photos = select_photos(read_results(run))
    explained = [rows[photo.id] for photo in photos.explained]
    assert [row[1] for row in explained] == ["test"] * 6
    assert [row[2] == row[3] for row in explained] == [True] * 3 + [False] * 3
    assert len({row[2] for row in explained[:3]}) == 3  # of different counts
    truth = [float(row[4 + int(row[2])]) for row in explained[3:]]
    assert truth == sorted(truth) and [photo.id for photo in photos.mistakes[:3]] == [row[0] for row in explained[3:]]


def test_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a run\'s folder .*config\.yaml"):
        write_run_report(tmp_path)


@pytest.mark.parametrize("name", ["metrics.json", "predictions.csv", "config.yaml", "split.csv", "per_count.csv"])
def test_damaged_file_is_named(run: Path, name: str) -> None:
    path = run / name
    half = path.read_text()[: path.stat().st_size // 2]
    path.write_text(half.rpartition(",")[0] + '\n: "[{' if name.endswith("yaml") else half + "\nx,y")
    with pytest.raises(UserError, match=f"{name} is corrupt"):
        write_run_report(run)


@pytest.mark.parametrize("kind", ["16-bit grey", "transparent"])
def test_pages_show_the_pixels_that_the_model_sees(kind: str) -> None:
    ramp = np.tile(np.linspace(0, 65_535, 64).astype(np.uint16), (64, 1))
    photo = Image.fromarray(ramp) if kind == "16-bit grey" else Image.new("RGBA", (64, 64), (200, 10, 10, 0))
    photo.save(file := io.BytesIO(), "PNG")
    uri = inline(file.getvalue(), 64, quality=95)
    assert uri is not None
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), int)
    assert abs(shown - decode(file.getvalue(), 64).permute(1, 2, 0).numpy()).max() < 5


def test_each_file_of_the_run_is_opened_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()
    steps = [Row(0, 0, number, STEP, float(number), exact=True, wall_ms=10.0) for number in range(4)]
    for step in steps:
        session.add(step)
    ProfileRecord([session], steps, [Usage(0, 0.5, 50.0, 60.0, 700.0, 30.0)]).write(run / "profile")
    (run / "debugger").mkdir()
    (run / "debugger" / "rules.json").write_text('{"overfit": {"action": "warn", "state": "passed"}}')
    written = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    opened: Counter[str] = Counter()
    open_file = io.open

    def counting(file: object, *args: object, **options: object) -> object:
        path = Path(os.fspath(file)) if isinstance(file, str | os.PathLike) else None
        if path is not None and path.is_relative_to(run) and path.suffix != ".part":  # the page, before its name
            opened[str(path.relative_to(run))] += 1
        return open_file(file, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(io, "open", counting)  # what pathlib calls
    monkeypatch.setattr("builtins.open", counting)
    page = Text(write_run_report(run, explained=True)).text
    del opened["report.html"]  # this test's
    assert "Time by phase" in page and "Nothing found: overfit" in page
    assert opened == dict.fromkeys(written, 1)
