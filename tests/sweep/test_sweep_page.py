"""Results of a search: the printed summary, and sweep.html in a real browser."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from browser import chromium, visit
from made_studies import BATCH, LR, SPACE, command, made_study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from playwright.sync_api import Browser

from bincounter.sweep.search_results import Search, best_trials, print_results, short_names
from bincounter.sweep.sweep_report import write_page

METRICS = ["val/accuracy", "val/rmse", "val/mae"]


def search(metrics: int = 1) -> Search:
    return Search(METRICS[:metrics], command, "demo-12ab34cd")


def page_of(tmp_path: Path, study: optuna.Study, metrics: int = 1) -> str:
    write_page(tmp_path / "sweep.html", study, search(metrics))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["sweep.html"]
    return (tmp_path / "sweep.html").read_text()


def drawn(page: str) -> list[list[dict[str, Any]]]:
    """The traces of each figure of a page."""
    starts = re.finditer(r'Plotly\.newPlot\(\s*"[0-9a-f-]{36}",\s*', page)
    return [json.JSONDecoder().raw_decode(page, start.end())[0] for start in starts]


def test_the_best_trial_is_shown_with_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    study = made_study(12)
    best = max((trial for trial in study.trials if trial.values), key=lambda trial: trial.value or 0)
    print_results(study, search())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "demo-12ab34cd: 12 trials: 8 completed, 2 pruned, 2 failed"
    spared = sum(trial.user_attrs["saved_seconds"] for trial in study.trials if trial.state.name == "PRUNED")
    assert lines[1] == f"Pruning saved about {spared:.0f} s."
    assert lines[2] == f"Best trial: {best.number}"
    assert lines[3].split() == ["val/accuracy", f"{best.value:.5g}"]
    assert lines[-2:] == ["Train it with:", command(best.params)]


def test_the_front_of_several_objectives_is_shown_with_commands(capsys: pytest.CaptureFixture[str]) -> None:
    study = made_study(24, metrics=2)
    front = {trial.number: trial for trial in study.best_trials}  # as Optuna finds it
    print_results(study, search(2))
    out = capsys.readouterr().out
    shown = [int(number) for number in re.findall(r"# trial (\d+)", out)]
    assert set(shown) == set(front)
    assert all(f"# trial {number}\n{command(trial.params)}\n" in out for number, trial in front.items())
    accuracies = [front[number].values[0] for number in shown]
    assert accuracies == sorted(accuracies, reverse=True)


def test_a_study_without_completed_trials_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    print_results(made_study(2, failing=True), search())
    assert capsys.readouterr().out.splitlines() == [
        "demo-12ab34cd: 2 trials: 2 failed",
        "No trial has completed, so there is no best trial.",
    ]


def test_trials_of_earlier_searches_are_not_taken_for_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = optuna.create_study(direction="maximize")
    earlier = create_trial(value=1.0, params={LR: 0.01}, distributions={LR: SPACE[LR]}, user_attrs={"warm_start": "x"})
    study.add_trial(earlier)
    study.add_trial(create_trial(value=0.5, params={LR: 0.02}, distributions={LR: SPACE[LR]}))
    assert [trial.number for trial in best_trials(study)] == [1]
    print_results(study, search())
    assert "1 trial: 1 completed, and 1 trial of earlier searches" in capsys.readouterr().out
    assert "val/accuracy 0.5 by trial 1, the only completed trial" in page_of(tmp_path, study)


LONG = "model.a_rather_long_name_of_something.another_that_does_not_end"
ODD: dict[str, dict[str, BaseDistribution]] = {
    "one key": {LR: SPACE[LR]},
    "long names": {LONG: FloatDistribution(0.1, 1), f"{LONG}_either": CategoricalDistribution(["x" * 80, True, None])},
}


@pytest.mark.parametrize(
    ("study", "said"),
    [
        (lambda: made_study(0), "No trial has completed"),
        (lambda: made_study(1), "the only completed trial"),
        (lambda: made_study(2), "Importance needs 5 completed trials or more"),
        (lambda: made_study(8, failing=True), "the memory gave out"),
        (lambda: made_study(12, constant=True), "All trials have the same val/accuracy"),
        (lambda: made_study(12, space=ODD["one key"]), "Only one parameter was searched"),
        (lambda: made_study(12, space=ODD["long names"]), "another_t…does_not_end"),
        (lambda: made_study(12, metrics=3), "on the Pareto front"),
        (lambda: made_study(500), "the best of"),
    ],
    ids=["none", "one", "two", "failed", "constant", "one key", "long names", "three objectives", "five hundred"],
)
def test_odd_studies_have_pages_too(study: object, said: str, tmp_path: Path) -> None:
    assert callable(study)
    made = study()
    page = page_of(tmp_path, made, len(made.directions))
    assert said in page
    assert "Optuna could not draw" not in page
    assert page.count("<tr class=") == len(made.trials)


def test_a_running_trial_is_listed(tmp_path: Path) -> None:
    study = made_study(3)
    study.ask(SPACE)
    page = page_of(tmp_path, study)
    assert '<tr class="running">' in page
    assert "1 running" in page


def test_reports_are_linked_from_where_the_page_is(tmp_path: Path) -> None:
    study = made_study(2)
    elsewhere = tmp_path / "other runs" / "7"
    for folder in (tmp_path / "0", elsewhere):  # trial 0 has no folder attribute: its own is beside the page
        folder.mkdir(parents=True)
        (folder / "report.html").write_text("")
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"folder": str(elsewhere), "error": "no memory"}))
    page = page_of(tmp_path, study)
    assert re.findall(r'<th scope="row"><a href="([^"]*)">(\d+)', page) == [
        ("0/report.html", "0"),
        ("other%20runs/7/report.html", "2"),
    ]


def test_importance_knows_which_way_is_better(tmp_path: Path) -> None:
    """The learning rate decides the first objective, the batch size the second, whatever their directions are."""
    space = {LR: SPACE[LR], BATCH: SPACE[BATCH]}
    study = optuna.create_study(directions=["maximize", "minimize"])
    for number in range(60):
        params = {LR: 0.001 * 1.08**number, BATCH: (32, 64, 128)[number * 7 % 3]}
        study.add_trial(
            create_trial(values=[params[LR], params[BATCH] + number % 2], params=params, distributions=space)
        )
    figures = drawn(page_of(tmp_path, study, 2))
    winners = [data[0]["y"][-1] for data in figures if data[0].get("orientation") == "h" and LR in data[0]["y"]]
    assert winners == [LR, BATCH]


def test_short_names_tell_keys_apart() -> None:
    assert short_names([LR, "data.lr", BATCH, "model", "+trainer.x"]) == {
        LR: "optimizer.lr",
        "data.lr": "data.lr",
        BATCH: "batch_size",
        "model": "model",
        "+trainer.x": "x",
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module", params=[1, 2], ids=["one objective", "two"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    path = tmp_path_factory.mktemp("sweep") / "sweep.html"
    write_page(path, made_study(30, metrics=request.param), search(request.param))
    return path, request.param


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)], ids=["dark phone", "light desk"])
def test_the_page_is_whole_in_a_browser(browser: Browser, page: tuple[Path, int], width: int, dark: bool) -> None:
    path, metrics = page
    with visit(browser, path, width=width, dark=dark) as seen:
        plots = seen.page.locator(".drawn .plot-container")
        boxes = [plot.bounding_box() for plot in plots.all()]
        assert (seen.requests, seen.errors) == ([], [])
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        headings = seen.page.locator("h2:visible").all_inner_texts()
        names = seen.page.locator("figure h3").all_inner_texts()
        links = seen.page.locator("nav a").evaluate_all("all => all.every(a => document.querySelector(a.hash))")
        cells = seen.page.locator("td").all_inner_texts()
        paper = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        turned = seen.page.evaluate("getComputedStyle(document.querySelector('.drawn')).filter")
    best = {1: "Best trial", 2: "Pareto front"}[metrics]
    assert headings == [best, "History", "Parameters", "Time and cost", "Trials"]
    assert all(box and box["width"] > 200 and box["height"] > 200 for box in boxes)
    assert len(boxes) == len(names) == {1: 6, 2: 9}[metrics]
    assert links
    assert any("<script>alert(1)</script>" in cell for cell in cells)  # of an error, and nothing ran
    assert (max(map(int, re.findall(r"\d+", paper))) < 60) is dark
    assert turned.startswith("invert") is dark
