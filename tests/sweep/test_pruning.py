"""Pruning by the callback of a local run and of remote jobs."""

from pathlib import Path

import optuna
import pytest
from bins import square_bins
from commands import Run
from omegaconf import OmegaConf
from searches import states, study_of

from bincounter.sweep.pruning import remote_pruning_policy
from bincounter.sweep.study import open_storage, silence_optuna


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    """Of a search whose trials take seconds."""
    source = square_bins(tmp_path / "bins", photos=48)
    return [
        *["data=folders", f"data.source={source}", "data.image_size=32", "model=cnn", "trainer=cpu", "logger=csv"],
        *["data.batch_size=8", f"paths.output_dir={tmp_path / 'sweep'}", "hparams_search=optuna"],
    ]


def test_a_pruned_trial_records_the_seconds_saved(train: Run, overrides: list[str], tmp_path: Path) -> None:
    pruner = ["+hparams_search.pruner._target_=optuna.pruners.ThresholdPruner", "+hparams_search.pruner.lower=2"]
    done = train(*overrides, "trainer.max_epochs=3", "hparams_search.n_trials=1", *pruner)
    assert "Trial 0 was pruned after epoch 1 of 3" in done.stderr
    assert "1 pruned" in done.stdout
    assert "No trial has completed" in done.stdout
    study = study_of(f"sqlite:///{tmp_path / 'sweep' / 'study.db'}")
    assert states(study.trials) == ["PRUNED"]
    assert list(study.trials[0].intermediate_values) == [1]
    assert study.trials[0].user_attrs["saved_seconds"] > 0
    assert not (tmp_path / "sweep" / "0" / "metrics.json").exists()


def test_several_metrics_are_read_from_the_run(train: Run, overrides: list[str], tmp_path: Path) -> None:
    metrics = "hparams_search.metrics=[val/accuracy,val/rmse]"
    train(*overrides, metrics, "trainer.max_epochs=1", "hparams_search.n_trials=1")
    study = study_of(f"sqlite:///{tmp_path / 'sweep' / 'study.db'}")
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert len(study.trials[0].values) == 2


def test_remote_jobs_are_pruned_by_their_epochs(tmp_path: Path) -> None:
    silence_optuna()
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(study_name="s", storage=open_storage(url), direction="maximize")
    study.ask()
    pruner = {"_target_": "optuna.pruners.ThresholdPruner", "lower": 0.5}
    cfg = OmegaConf.create(
        {"trainer": {"max_epochs": 3}, "optimized_metric": "val/accuracy", "hparams_search": {"metrics": []}}
    )
    judge = remote_pruning_policy(url, {"study_name": "s", "pruner": pruner}, cfg)
    assert not judge(0, 1, {"val/accuracy": 0.6, "train/loss": 1.0}, 8.0)
    assert not judge(0, 1, {"val/accuracy": 0.1}, 8.0)  # a resumed job reports an epoch again: the first report stands
    assert not judge(0, 2, {"train/loss": 1.0}, 12.0)
    assert judge(0, 2, {"val/accuracy": 0.4}, 12.0)
    assert study.trials[0].intermediate_values == {1: 0.6, 2: 0.4}
    assert study.trials[0].user_attrs["saved_seconds"] == 6.0
    assert not judge(0, 3, {"val/accuracy": 0.3}, 18.0)  # after its last epoch a trial is complete
    assert not judge(1, 1, {"val/accuracy": 0.1}, 8.0)  # no trial, but the retraining of the best one
