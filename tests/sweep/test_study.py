"""Samplers, storages and pruners of a search."""

from pathlib import Path

import optuna
import pytest

from bincounter.errors import ConfigError, ResourceError
from bincounter.sweep.search_space import Choice, Interval, Parameter
from bincounter.sweep.study import (
    SamplerFactory,
    is_exhausted,
    make_pruner,
    note_exhaustion,
    open_storage,
    reopen_trial,
    silence_optuna,
    storage_url,
    suggest,
)
from bincounter.sweep.trials import outcome_of_value

SPACE: list[Parameter] = [Interval("x", 0.0, 1.0), Interval("n", 1, 4, integer=True), Choice("c", (32, 64))]
DISTRIBUTIONS = {
    "x": optuna.distributions.FloatDistribution(0, 1),
    "n": optuna.distributions.IntDistribution(1, 4),
    "c": optuna.distributions.CategoricalDistribution([32, 64]),
}


def _proposals(url: str, node: dict, starts: list[int]) -> list[dict]:
    """Parameters of the trials that several starts of a search ask for, one after the other."""
    silence_optuna()
    for trials in starts:
        sampling = SamplerFactory(node, SPACE, 1)
        study = optuna.create_study(study_name="s", storage=open_storage(url), load_if_exists=True)
        for _ in range(trials):
            number = len(study.trials)
            study.sampler = sampling.sampler_for(number)
            trial = study.ask(DISTRIBUTIONS)
            study.tell(trial, (trial.params["x"] - 0.4) ** 2 + trial.params["n"])
    return [trial.params for trial in optuna.load_study(study_name="s", storage=url).trials]


@pytest.mark.parametrize(
    "name", ["TPESampler", "RandomSampler", "QMCSampler", "CmaEsSampler", "NSGAIISampler", "GPSampler"]
)
def test_a_search_in_two_starts_proposes_what_one_does(tmp_path: Path, name: str) -> None:
    node = {"_target_": f"optuna.samplers.{name}", "seed": 3}
    whole = _proposals(f"sqlite:///{tmp_path / 'whole.db'}", node, [13])
    assert whole == _proposals(f"sqlite:///{tmp_path / 'parts.db'}", node, [1, 5, 7])
    assert len({params["x"] for params in whole}) == 13
    other = _proposals(f"sqlite:///{tmp_path / 'other.db'}", {**node, "seed": 4}, [2])
    if name != "QMCSampler":  # unscrambled, its sequence has no seed
        assert other != whole[:2]


def test_a_sequence_goes_on_after_trials_that_failed() -> None:
    sampling = SamplerFactory({"_target_": "optuna.samplers.QMCSampler"}, SPACE, 1)
    study = optuna.create_study()
    for number in range(4):
        study.sampler = sampling.sampler_for(number)
        study.tell(study.ask(DISTRIBUTIONS), state=optuna.trial.TrialState.FAIL)
    assert len({trial.params["x"] for trial in study.trials}) == 4


def test_a_grid_knows_its_end() -> None:
    listed: list[Parameter] = [Choice("c", (32, 64)), Interval("n", 1, 5, integer=True)]
    assert SamplerFactory({"_target_": "optuna.samplers.GridSampler"}, listed, 1).most == 10


def test_a_grid_notes_its_end_without_optunas_loop() -> None:
    sampler = optuna.samplers.GridSampler({"c": [32, 64]})
    study = optuna.create_study(sampler=sampler)
    note_exhaustion(study)
    for _ in range(2):
        assert not is_exhausted(study)
        study.tell(study.ask({"c": DISTRIBUTIONS["c"]}), 0.0)
    assert is_exhausted(study)


def test_a_running_trial_is_reopened_with_its_values(tmp_path: Path) -> None:
    url = storage_url(None, tmp_path)
    study = optuna.create_study(study_name="s", storage=open_storage(url))
    begun = study.ask({"x": DISTRIBUTIONS["x"]})  # killed before it had all of its values
    other = optuna.load_study(study_name="s", storage=open_storage(url))
    trial = reopen_trial(other, other.trials[0])
    suggest(trial, DISTRIBUTIONS)
    assert (trial.number, trial.params["x"]) == (begun.number, begun.params["x"])
    assert trial.distributions == DISTRIBUTIONS
    trial.report(0.5, 1)
    other.tell(trial, 1.0)
    (told,) = study.trials
    assert (told.state.name, told.value, told.intermediate_values) == ("COMPLETE", 1.0, {1: 0.5})


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"_target_": "optuna.samplers.TPESampel"}, "is not callable"),
        ({"_target_": "optuna.pruners.MedianPruner"}, "is not a sampler of Optuna"),
        ({"_target_": "optuna.samplers.GridSampler"}, "x is a continuous interval"),
        ({"_target_": "optuna.samplers.QMCSampler", "qmc_type": "dice"}, "cannot be created"),
    ],
)
def test_wrong_samplers_are_refused(node: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SamplerFactory(node, SPACE, 1)


def test_cmaes_searches_one_metric() -> None:
    with pytest.raises(ConfigError, match="searches one metric"):
        SamplerFactory({"_target_": "optuna.samplers.CmaEsSampler"}, SPACE, 2)


def test_a_sampler_is_no_pruner() -> None:
    with pytest.raises(ConfigError, match="is not a pruner of Optuna"):
        make_pruner({"_target_": "optuna.samplers.TPESampler"})


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("study.db", "is not a database URL"),
        ("postgresql+psycopg://me:word@localhost/s", "needs a driver"),
        ("nobase://host/s", "is not a database URL"),
    ],
)
def test_wrong_storages_are_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        open_storage(url)
    assert "word" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot be opened"):
        open_storage(storage_url(None, tmp_path / "nowhere"))


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_what_cannot_be_compared_is_an_error(value: float | None) -> None:
    assert outcome_of_value(value).error is not None
