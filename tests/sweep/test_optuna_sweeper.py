"""Searches as users start, kill and share them."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bins import square_bins
from commands import Process, Run, Start
from searches import LR, Search, states, study_of
from warm_python import WarmPython


@pytest.fixture
def search(tmp_path: Path, python: WarmPython) -> Search:
    return Search(tmp_path, python)


def _until(condition: Callable[[], bool], process: Process) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.long
def test_five_kills_end_in_the_same_total_and_the_same_trials(search: Search, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    search.variables["SLEEP"] = "0.15"
    for kills in range(1, 6):
        process = search.start(n_trials=14)
        # At another moment of a trial each time: while it is chosen, composed, run or told.
        _until(lambda: log.exists() and search.runs >= 2 * kills, process)  # noqa: B023
        time.sleep(0.04 * kills)
        process.kill()
        process.wait()
    said = search.run(n_trials=14)
    assert said.strip().endswith("sweep")
    assert states(search.trials) == ["COMPLETE"] * 14
    assert [trial.number for trial in search.trials] == list(range(14))
    assert search.runs <= 14 + 5  # those that were killed in the middle
    (tmp_path / "undisturbed").mkdir()
    undisturbed = Search(tmp_path / "undisturbed", search.python)
    undisturbed.run(n_trials=14)
    assert [trial.params for trial in undisturbed.trials] == [trial.params for trial in search.trials]


def test_two_processes_share_a_search(search: Search) -> None:
    search.variables["SLEEP"] = "0.2"
    both = [search.start(n_trials=6) for _ in range(2)]
    for process in both:
        said = process.communicate()
        assert process.returncode == 0, said
    assert states(search.trials) == ["COMPLETE"] * 6
    assert search.runs == 6
    assert len({trial.params[LR] for trial in search.trials}) == 6
    assert len({trial.user_attrs["owner"]["id"] for trial in search.trials}) == 2


def test_joblib_runs_batches_and_orphans_are_awaited(search: Search, tmp_path: Path) -> None:
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    search.variables["SLEEP"] = "2"
    process = search.start(*parallel, n_trials=4, n_jobs=2)
    log = tmp_path / "log.txt"
    _until(lambda: log.exists() and search.runs == 2, process)
    process.kill()  # its workers live on, and end their trials
    said = search.run(*parallel, n_trials=4, n_jobs=2)
    assert states(search.trials) == ["COMPLETE"] * 4, said
    assert search.runs == 4  # what the orphans did is not done again
    assert all(trial.user_attrs["seconds"] > 1.9 for trial in search.trials[:2])


def test_a_finished_search_prints_its_result_again(search: Search, tmp_path: Path) -> None:
    said = search.run(n_trials=2, retrain_best="true")
    assert f"Searching {LR}: 0.01 to 0.1" in said
    best = study_of(search.database).best_trial
    assert (tmp_path / "log.txt").read_text().splitlines()[-1] == str(best.params[LR])
    said = search.run(n_trials=2, retrain_best="true")
    assert "2 trials: 2 completed" in said
    assert "bincounter train" in said
    assert search.runs == 3  # the best is trained once more, and only once
    assert (tmp_path / "sweep" / "sweep.html").exists()


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("sweep", "is a file: name a folder"),
        ("sweep/inner", "cannot be created (not a directory)"),
        ("/proc/sweep", "cannot be created ("),
    ],
)
def test_unwritable_folder_is_refused_before_the_first_trial(
    place: str, reason: str, search: Search, tmp_path: Path
) -> None:
    (tmp_path / "sweep").write_text("mine")
    assert f"{place} {reason}" in search.run(f"paths.output_dir={place}", n_trials=1, code=2)
    assert (tmp_path / "sweep").read_text() == "mine" and not (tmp_path / "log.txt").exists()


@pytest.mark.long
def test_a_raised_total_resumes_and_a_changed_search_is_refused(search: Search) -> None:
    search.run(n_trials=1)
    search.run(n_trials=2)
    said = search.run(f"{LR}=interval(0.01,0.2)", n_trials=2, code=2)
    assert "which has another space" in said
    said = search.run("seed=1", n_trials=2, code=2)
    assert "which has another configuration" in said
    assert said.count("Error: ") == 1 and "Traceback" not in said
    assert search.runs == 2


def test_a_search_of_failures_ends_early(search: Search) -> None:
    search.variables["NO_SCORE"] = "1"
    said = search.run(n_trials=9, code=1)
    assert search.runs == 3
    assert (
        "3 of 3 trials failed, which is more than max_failure_rate=0.5; the last one: the job returned no score" in said
    )


def test_a_database_lost_in_a_search_is_one_sentence(search: Search, tmp_path: Path) -> None:
    search.variables["LOSES"] = str(tmp_path / "sweep" / "study.db")
    said = search.run(n_trials=2, code=1)
    (error,) = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert "the study at sqlite:///" in error and "then repeat the command to resume the search" in error
    assert "Traceback" not in said


def test_a_grid_ends_with_its_last_value_and_keeps_its_failures(search: Search) -> None:
    search.variables["FAILS_BELOW"] = "0.02"
    space = [f"{LR}=0.01,0.02,0.03", "model.optimizer.weight_decay=0,1"]
    search.run("hparams_search/sampler=grid", *space, n_trials=50, max_failure_rate=1)
    assert sorted((*trial.params.values(), trial.state.name) for trial in search.trials) == [
        (lr, decay, "COMPLETE" if lr > 0.01 else "FAIL") for lr in (0.01, 0.02, 0.03) for decay in (0, 1)
    ]
    errors = [trial.user_attrs["error"] for trial in search.trials if trial.state.name == "FAIL"]
    assert errors == ["ValueError: lr is 0.01"] * 2


def test_a_search_starts_with_what_earlier_ones_found(search: Search, tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    before = Search(tmp_path / "before", search.python)
    nowhere = search.run(n_trials=1, code=2, warm_start=f"[{tmp_path / 'before'}]")
    assert "before holds no study.db" in nowhere and not (tmp_path / "sweep" / "study.db").exists()
    before.run(n_trials=3)
    for n_trials in (1, 2):
        said = search.run(n_trials=n_trials, warm_start=f"[{tmp_path / 'before' / 'sweep'}]")
        assert f"{n_trials} trial" in said
        assert "and 3 trials of earlier searches" in said
    assert search.runs == 2
    assert [trial.params for trial in search.trials[:3]] == [trial.params for trial in before.trials]
    earlier = f"[{tmp_path / 'sweep'}]"
    said = before.run(n_trials=1, code=2, warm_start=earlier, metrics="[val/rmse]", storage="'sqlite:///other.db'")
    assert "searched val/accuracy, and this search val/rmse" in said


def test_a_password_is_not_written_down(search: Search, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'own.db'}?password=pass-word"
    search.run(n_trials=1, storage=f"'{url}'")
    kept = [path for path in (tmp_path / "sweep").rglob("*") if path.is_file()]
    assert not any(b"pass-word" in path.read_bytes() for path in kept)


@pytest.fixture
def squares(tmp_path: Path) -> list[str]:
    """Overrides of a run that takes seconds."""
    source = square_bins(tmp_path / "bins", photos=48)
    return [
        *["data=folders", f"data.source={source}", "data.image_size=32", "model=cnn", "trainer=cpu", "logger=csv"],
        *["trainer.max_epochs=range(2,4)", "data.batch_size=8"],
    ]


@pytest.mark.long
def test_a_killed_training_is_resumed(start: Start, train: Run, squares: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "log" / "sweeps" / "killed"
    search = ["hparams_search=optuna", "hparams_search.n_trials=2", "hparams_search.study_name=killed"]
    overrides = [*squares, *search, "checkpoint.every_n_train_steps=1", "hparams_search/pruner=hyperband"]
    places = [f"paths.{name}_dir={tmp_path / name}" for name in ("data", "cache", "log")]
    process = start("train.py", *overrides, *places)
    _until((sweep / "0" / "checkpoints" / "last.ckpt").exists, process)
    process.kill()
    process.wait()
    assert "no unfinished run" in train("ckpt_path=latest", code=2).stderr  # the search resumes its trials
    done = train(*overrides, "hparams_search.retrain_best=true")
    assert "Resuming from" in done.stderr
    study = study_of(f"sqlite:///{sweep / 'study.db'}")
    assert len(study.trials) == 2
    assert study.trials[0].state.name == "COMPLETE"
    assert study.trials[1].state.is_finished()
    assert not (sweep / "2").exists()
    assert (sweep / "best" / "metrics.json").exists()
    told = (sweep / "0" / "overrides.txt").read_text()
    assert "test=false" in told
    assert "hparams_search.pruner.max_resource=3" in told  # Hyperband knows the longest trial
    assert done.stdout.splitlines()[-1] == str(sweep)


def test_what_the_data_refuse_leaves_nothing(train: Run, squares: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    batches = ["data.batch_size=8,4096", f"paths.output_dir={sweep}"]
    done = train(*squares[:-1], "hparams_search=optuna", *batches, code=2)
    assert "is larger than the" in done.stderr.splitlines()[-1]
    assert not sweep.exists()


@pytest.mark.parametrize(
    ("overrides", "search"),
    [
        (["hydra/sweeper=bincounter_optuna", "model.optimizer.lr=interval(0.01,0.1)"], "optuna"),
        (["hydra/sweeper=bincounter_optuna", "hparams_search=sagemaker_tuner"], "optuna"),
        (["hydra/sweeper=bincounter_tuner"], "sagemaker_tuner"),
    ],
)
def test_a_sweeper_without_its_settings_names_their_option(overrides: list[str], search: str, train: Run) -> None:
    done = train("-m", *overrides, code=2)
    assert done.stderr == f"Error: {overrides[0]} is set by hparams_search={search}: write that\n"
