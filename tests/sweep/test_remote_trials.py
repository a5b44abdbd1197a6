"""Searches by Optuna whose trials are jobs of the rehearsed SageMaker."""

import json
import os
import pty
import re
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
from aws_faults import faults
from bins import square_bins
from commands import Run
from launched import launched, wait_for
from rehearsed import Account
from searches import states, study_of

from bincounter.training.results import best_value

ROLE = "launcher.role=arn:aws:iam::123456789012:role/rehearsal"
GRID = "hparams_search/sampler=grid"
ENDS_ALL = ["+hparams_search.pruner._target_=optuna.pruners.ThresholdPruner", "+hparams_search.pruner.lower=2"]


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    """Of a search whose trials take seconds, so that they can be interrupted."""
    source = square_bins(tmp_path / "bins", photos=80)
    return [
        *["-m", "hparams_search=optuna", GRID, ROLE, "launcher.instance_type=ml.m5.xlarge", "data=folders"],
        *[f"data.source={source}", "data.image_size=32", "data.batch_size=8", "model=cnn", "model.backbone.width=8"],
        *["trainer=cpu", "trainer.max_epochs=20", "callbacks=[none]", "+trainer.enable_progress_bar=false"],
        *["checkpoint.every_n_train_steps=4", f"paths.output_dir={tmp_path / 'sweep'}"],
        *[f"paths.{name}_dir={tmp_path / name}" for name in ("data", "cache", "log")],
    ]


def study(folder: Path) -> optuna.Study:
    return study_of(f"sqlite:///{folder / 'sweep' / 'study.db'}")


def record(folder: Path, number: int) -> dict[str, Any]:
    return json.loads((folder / "sweep" / str(number) / "job.json").read_text())


def submitted(account: Account, task_name: str) -> list[str]:
    """The jobs of a search that the control plane was ever asked for."""
    listed = account.sagemaker.list_training_jobs(NameContains=f"-{task_name}-", MaxResults=100)
    return sorted(job["TrainingJobName"] for job in listed["TrainingJobSummaries"])


def test_killed_search_resumes_its_jobs_and_survives_a_failure(
    overrides: list[str], run: Run, plane: dict[str, str], account: Account, tmp_path: Path
) -> None:
    options = [*overrides, "launcher=sagemaker_spot", "hparams_search.n_trials=3", "hparams_search.n_jobs=2"]
    options += [*ENDS_ALL, "model.optimizer.lr=0.01,0.02,1e30", "task_name=killed"]  # the last one diverges
    process = launched(*options, plane=plane)
    for number in (0, 1):
        wait_for(f"job {number}: ", process)
    process.kill()
    process.communicate()
    names = [record(tmp_path, number)["name"] for number in (0, 1)]
    ended = [account.end(name)["TrainingJobStatus"] for name in names]

    done = run("train.py", *options, **plane)
    assert done.stderr.count("3 jobs on 1 x ml.m5.xlarge") == 1
    assert done.stdout.splitlines()[-1] == str(tmp_path / "sweep")
    assert "Pruning saved about" in done.stdout
    trials = study(tmp_path).trials
    assert sorted(ended) == ["Completed", "Failed"]
    told = {"Completed": "COMPLETE", "Failed": "FAIL"}  # what has completed before it could be stopped, has completed
    assert states(trials) == [*(told[each] for each in ended), "PRUNED"]
    assert submitted(account, "killed") == sorted([*names, record(tmp_path, 2)["name"]])

    for trial in trials:
        job = record(tmp_path, trial.number)
        assert job["number"] == trial.number
        assert re.search(rf"-{trial.number}-[0-9a-f]{{4}}$", job["name"])
        assert trial.user_attrs["folder"] == str(tmp_path / "sweep" / str(trial.number))
        assert trial.user_attrs["seconds"] == job["description"]["TrainingTimeInSeconds"]
        assert trial.user_attrs["billed_seconds"] == job["description"]["BillableTimeInSeconds"]
        assert trial.user_attrs["usd"] == pytest.approx(trial.user_attrs["billed_seconds"] * 0.23 / 3600, abs=1e-6)
        request = account.describe(job["name"])["HyperParameters"]
        assert not any(key.startswith("hparams_search") for key in request)
    (failed,) = [trial for trial in trials if trial.state.name == "FAIL"]
    assert "lower model.optimizer.lr" in failed.user_attrs["error"]
    (complete,) = [trial for trial in trials if trial.state.name == "COMPLETE"]
    run_folder = tmp_path / "sweep" / str(complete.number)
    assert complete.value == best_value(run_folder, "val/accuracy", "max")
    assert not any(line.startswith(("hydra.", "hparams_search")) for line in _lines(run_folder / "overrides.txt"))
    assert trials[2].user_attrs["saved_seconds"] > 0
    assert "USD" in (tmp_path / "sweep" / "sweep.html").read_text()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_ctrl_c_stops_a_trial_and_the_next_start_resumes_it(
    overrides: list[str], run: Run, plane: dict[str, str], account: Account, tmp_path: Path
) -> None:
    options = [*overrides, "launcher=sagemaker_spot", "hparams_search.n_trials=1", "model.optimizer.lr=0.01,0.02"]
    options += ["task_name=stopped", "trainer.max_epochs=60"]  # longer than a busy machine takes to send the signal
    ours, theirs = pty.openpty()
    process = launched(*options, plane=plane, stdin=theirs)
    wait_for("epoch 3 of 60", process)
    os.write(ours, b"y\n")
    os.kill(process.pid, signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    os.close(ours)
    assert "Stop the 1 running job? [y/N]" in rest
    assert rest.splitlines()[-1].endswith("Interrupted after 0 of 1 trials: repeat the command to resume the search")
    assert states(study(tmp_path).trials) == ["RUNNING"]
    before = record(tmp_path, 0)

    done = run("train.py", *options, **plane)
    assert states(study(tmp_path).trials) == ["COMPLETE"]
    assert len(submitted(account, "stopped")) == 2
    assert "epoch 60 of 60" in done.stderr
    assert "epoch 1 of 60" not in done.stderr
    assert record(tmp_path, 0)["checkpoint_uri"] == before["checkpoint_uri"]


def test_a_dry_run_shows_one_request_and_leaves_nothing(overrides: list[str], run: Run, tmp_path: Path) -> None:
    options = [*overrides, "launcher=rehearsal", "hparams_search.n_trials=3", "hparams_search.n_jobs=2"]
    done = run("train.py", *options, "model.optimizer.lr=0.01,0.02,0.03", "dry_run=true")
    assert done.stderr.count("3 jobs on 1 x ml.m5.xlarge") == 1
    request = json.loads(done.stdout[done.stdout.index("{") :])
    assert request["TrainingJobName"].split("-")[-2] == "0"
    assert not (tmp_path / "sweep").exists()


def test_too_dear_a_search_is_refused_before_a_trial_is_chosen(overrides: list[str], run: Run, tmp_path: Path) -> None:
    options = [*overrides, "launcher=rehearsal", "launcher.max_run=3600", "launcher.max_cost_usd=0.5"]
    done = run("train.py", *options, "hparams_search.n_trials=3", "model.optimizer.lr=0.01,0.02,0.03", code=2)
    assert "at most 0.69 USD is above launcher.max_cost_usd=0.5" in done.stderr.splitlines()[-1]
    assert "{" not in done.stdout
    assert not (tmp_path / "sweep").exists()


def test_a_trial_that_the_launcher_refuses_is_left_to_the_next_start(
    overrides: list[str], run: Run, plane: dict[str, str], tmp_path: Path
) -> None:
    options = [*overrides, "launcher=sagemaker_spot", "hparams_search.n_trials=2", "model.optimizer.lr=0.01,0.02"]
    with faults(plane["AWS_ENDPOINT_URL"]) as server:
        server.refuse("GetCallerIdentity", "ExpiredToken", "The security token is expired", status=403)
        for _ in range(2):
            done = run("train.py", *options, code=2, **{**plane, "AWS_ENDPOINT_URL": server.endpoint})
            assert "log in again" in done.stderr.splitlines()[-1]
    (trial,) = study(tmp_path).trials  # the second start adopted it
    assert trial.state.name == "RUNNING"
    assert trial.params
