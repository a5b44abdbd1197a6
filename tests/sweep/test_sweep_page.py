"""Results of a search: the printed summary, and sweep.html in a real browser."""

import json
import math
import re
from pathlib import Path

import optuna
import pytest
from browser import visit
from hydra.core.utils import JobReturn, JobStatus
from made_studies import BATCH, LR, SPACE, command, made_study
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from playwright.sync_api import Browser

from bincounter.sweep.search_results import Search, best_trials, print_jobs, print_results, short_names
from bincounter.sweep.sweep_report import write_page

METRICS = ["val/accuracy", "val/rmse", "val/mae"]


def search(metrics: int = 1) -> Search:
    return Search(METRICS[:metrics], command, "demo-12ab34cd")


def page_of(tmp_path: Path, study: optuna.Study, metrics: int = 1) -> str:
    write_page(tmp_path / "sweep.html", study, search(metrics))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["sweep.html"]
    return (tmp_path / "sweep.html").read_text()


def scored(folder: Path, accuracy: float, photos: int, interval: list[float] | None) -> None:
    """The scores of a trial's run, as far as they are needed here."""
    folder.mkdir(parents=True)
    side = {"accuracy": accuracy, "n": photos, "intervals": {"accuracy": interval} if interval else {}}
    (folder / "metrics.json").write_text(json.dumps({"val": side, "test": side}))


def test_the_best_trial_is_shown_with_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    study = made_study(12)
    best = max((trial for trial in study.trials if trial.values), key=lambda trial: trial.value or 0)
    print_results(study, search())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "demo-12ab34cd: 12 trials: 8 completed, 2 pruned, 2 failed"
    spared = sum(trial.user_attrs["saved_seconds"] for trial in study.trials if trial.state.name == "PRUNED")
    assert lines[1] == f"Pruning saved about {spared:.0f} s."
    assert lines[2] == f"Best trial: {best.number}"
    assert lines[3].split() == ["val/accuracy", *f"{100 * (best.value or 0):.1f} %".split()]
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
    page = page_of(tmp_path, study)
    assert "Trial 1 is the only completed trial: validation accuracy 50.0 %" in page
    assert "Its settings: lr 0.02." in page


@pytest.mark.parametrize(
    ("metric", "score"),
    [
        ("val/accuracy", "validation accuracy 37.5 %"),
        ("val/rmse", "validation RMSE 0.375 items"),
        ("val/cross_entropy", "validation cross entropy 0.375 nats"),
        ("profit", "profit 0.375"),
    ],
)
def test_scores_have_the_units_of_the_reports(metric: str, score: str, tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    study.add_trial(create_trial(value=0.375, params={LR: 0.01}, distributions={LR: SPACE[LR]}))
    write_page(tmp_path / "sweep.html", study, Search([metric], command, "demo"))
    assert score in (tmp_path / "sweep.html").read_text()


@pytest.mark.parametrize(
    ("scores", "photos", "interval", "said", "tied"),
    [
        ((0.5, 0.75, 0.7, 0.2), 16, [0.5, 0.9375], "16 validation photos is 50.0 to 93.8 %: 2 of the 3", ["0", "2"]),
        ((0.5, 0.75), 1600, [0.73, 0.77], "is 73.0 to 77.0 %, and no other trial", []),
        ((0.9, 1.0, 0.8), 16, [1.0, 1.0], "is 80.6 to 100.0 %: 1 of the 2", ["0"]),  # Wilson: 16 of 16
        ((0.375, 0.0), 16, None, "is 18.5 to 61.4 %, and no other trial", []),  # Wilson: 6 of 16
        ((0.75,), 16, [0.5, 0.9375], "is 50.0 to 93.8 %.", []),
    ],
)
def test_trials_within_the_interval_of_the_best_are_called_ties(
    scores: tuple[float, ...],
    photos: int,
    interval: list[float] | None,
    said: str,
    tied: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = optuna.create_study(direction="maximize")
    for score in scores:
        study.add_trial(create_trial(value=score, params={LR: 0.01}, distributions={LR: SPACE[LR]}))
    best = scores.index(max(scores))
    scored(tmp_path / str(best), scores[best], photos, interval)
    page = page_of(tmp_path, study)
    assert said in page
    rows = dict(re.findall(r'<th scope="row">(\d+)</th><td>completed, <strong>(\w+)</strong>', page))
    assert rows == {str(best): "best", **dict.fromkeys(tied, "tie")}
    print_results(study, Search(["val/accuracy"], command, "demo", tmp_path))
    assert said in " ".join(capsys.readouterr().out.split())


def test_the_retrained_run_is_linked_with_its_scores(tmp_path: Path) -> None:
    study = made_study(3)
    assert "Trained again" not in page_of(tmp_path, study)
    (tmp_path / "best_trial.json").write_text('{"trial": 2}')
    scored(tmp_path / "best", 0.4375, 48, None)
    (tmp_path / "best/report.html").write_text("")
    write_page(tmp_path / "sweep.html", study, search())
    page = (tmp_path / "sweep.html").read_text()
    assert "Trained again with the values of trial 2: accuracy 43.8 % on 48 test photos" in page
    assert '<a href="best/report.html">' in page


def job(number: int, value: object, *overrides: str, metric: str = "val/accuracy") -> JobReturn:
    done = JobStatus.FAILED if isinstance(value, Exception) else JobStatus.COMPLETED
    cfg = OmegaConf.create({"optimized_metric": metric})
    returned = JobReturn(overrides=overrides, cfg=cfg, working_dir=f"/runs/sweep/{number}", status=done)
    returned.return_value = value
    return returned


@pytest.mark.parametrize(
    ("metric", "values", "rows"),
    [
        ("val/accuracy", [0.25, ValueError("no"), 0.5], [["2", "50.0 %"], ["0", "25.0 %"], ["1", "failed"]]),
        ("val/rmse", [0.8, 0.9, math.nan], [["0", "0.800 items"], ["1", "0.900 items"], ["2", "n/a"]]),
    ],
)
def test_jobs_of_a_grid_are_listed_best_first(
    metric: str, values: list[object], rows: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    rates = ["1e-2", "1e-3", "1e-4"]
    jobs = [
        job(n, value, f"{LR}={rates[n]}", "seed=1", f"+key.token=t{n}", metric=metric) for n, value in enumerate(values)
    ]
    print_jobs(jobs)
    title, header, *lines, last = capsys.readouterr().out.splitlines()
    assert title.startswith("3 jobs") and ("1 of them failed" in title) is (metric == "val/accuracy")
    assert header.split() == ["folder", metric, "lr"]
    assert [line.split() for line in lines] == [[*row[0].split(), *row[1].split(), rates[int(row[0])]] for row in rows]
    assert last == "/runs/sweep"


def test_scores_of_several_metrics_are_not_ranked(capsys: pytest.CaptureFixture[str]) -> None:
    print_jobs([job(n, 0.8 - n / 2, metric=metric) for n, metric in enumerate(["val/rmse", "val/accuracy"])])
    title, header, *lines, _ = capsys.readouterr().out.splitlines()
    assert title == "2 jobs:"
    assert header.split() == ["folder", "value"]
    assert [line.split() for line in lines] == [["0", "0.800", "items"], ["1", "30.0", "%"]]


@pytest.mark.parametrize("values", [[0.5], [None, None], []])
def test_a_single_job_and_a_dry_run_have_no_table(values: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    print_jobs([job(n, value, f"seed={n}") for n, value in enumerate(values)])
    assert capsys.readouterr().out == ""


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
        (lambda: made_study(12, constant=True), "All trials have the same validation accuracy"),
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
    assert "could not be drawn" not in page
    assert len(page) < 1_000_000
    assert page.count("<tr class=") == len(made.trials)


def test_a_running_trial_is_listed(tmp_path: Path) -> None:
    study = made_study(3)
    study.ask(SPACE)
    page = page_of(tmp_path, study)
    assert '<tr class="running">' in page
    assert "1 running" in page


def test_reports_are_linked_from_where_the_page_is(tmp_path: Path) -> None:
    study = made_study(2)
    elsewhere = tmp_path / "other caf\udce9" / "7"
    for folder in (tmp_path / "0", elsewhere):  # trial 0 has no folder attribute: its own is beside the page
        folder.mkdir(parents=True)
        (folder / "report.html").write_text("")
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"folder": str(elsewhere), "error": "no memory"}))
    page = page_of(tmp_path, study)
    assert re.findall(r'<th scope="row"><a href="([^"]*)">(\d+)', page) == [
        ("0/report.html", "0"),
        ("other%20caf%E9/7/report.html", "2"),
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
    page = page_of(tmp_path, study, 2)
    figures = re.findall(r'aria-label="Importance for [^"]*".*?</svg>', page, re.DOTALL)
    winners = [re.findall(r">([^<>]+?)\s+\d+ %</text>", figure)[0] for figure in figures]
    assert winners == [LR, BATCH]


def test_short_names_tell_keys_apart() -> None:
    assert short_names([LR, "data.lr", BATCH, "model", "+trainer.x"]) == {
        LR: "optimizer.lr",
        "data.lr": "data.lr",
        BATCH: "batch_size",
        "model": "model",
        "+trainer.x": "x",
    }


@pytest.fixture(scope="module", params=[1, 2], ids=["one objective", "two"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    path = tmp_path_factory.mktemp("sweep") / "sweep.html"
    write_page(path, made_study(30, metrics=request.param), search(request.param))
    return path, request.param


CONTRASTS = """() => {
    const luminance = colour => {
        const [r, g, b] = colour.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const paper = luminance(getComputedStyle(document.body).backgroundColor);
    const marks = [...document.querySelectorAll("svg.plot path, svg.plot use")].flatMap(mark => {
        const given = mark.getAttribute("style") || "";
        const style = getComputedStyle(mark);
        if (given.includes("--line") || given.includes("--surface")) return [];  // grid, axes and labels' ground
        const used = ["stroke", "fill"].filter(name => given.includes(`${name}: var(`));
        return used.map(name => [style[name], style]);
    });
    return marks.filter(([, style]) => style.visibility === "visible").map(([colour, style]) => {
        const ink = luminance(colour);
        return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05) * (style.opacity === "1" ? 1 : 0);
    });
}"""
"""Contrast with the page of each mark of a trial; 0 for what is transparent."""


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)], ids=["dark phone", "light desk"])
def test_the_page_is_whole_in_a_browser(browser: Browser, page: tuple[Path, int], width: int, dark: bool) -> None:
    path, metrics = page
    with visit(browser, path, width=width, dark=dark) as seen:
        plots = seen.page.locator("svg.plot")
        boxes = [plot.bounding_box() for plot in plots.all()]
        assert (seen.requests, seen.errors) == ([], [])
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        headings = seen.page.locator("h2:visible").all_inner_texts()
        names = seen.page.locator("figure h3").all_inner_texts()
        links = seen.page.locator("nav a").evaluate_all("all => all.every(a => document.querySelector(a.hash))")
        cells = seen.page.locator("td").all_inner_texts()
        paper = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        contrasts = seen.page.evaluate(CONTRASTS)
    best = {1: "Best trial", 2: "Pareto front"}[metrics]
    assert headings == [best, "History", "Parameters", "Time and cost", "Trials"]
    assert all(box and box["width"] > 200 and box["height"] > 100 for box in boxes)
    assert len(boxes) == len(names) == {1: 9, 2: 15}[metrics]
    assert links
    assert any("<script>alert(1)</script>" in cell for cell in cells)  # of an error, and nothing ran
    assert (max(map(int, re.findall(r"\d+", paper))) < 60) is dark
    assert len(contrasts) > 100
    assert min(contrasts) >= 3  # WCAG's bound for graphics: the worst trials are seen, too
