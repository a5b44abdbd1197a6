"""What the rehearsal's tuning jobs try next, and which of their training jobs they stop."""

import pytest

from sagemaker_rehearsal.tuning_search import Halving, Median, Progress, search_for

RANGES = {
    "ContinuousParameterRanges": [
        {"Name": "lr", "MinValue": "0.0001", "MaxValue": "0.1", "ScalingType": "Logarithmic"}
    ],
    "IntegerParameterRanges": [{"Name": "max_epochs", "MinValue": "1", "MaxValue": "5"}],
    "CategoricalParameterRanges": [{"Name": "size", "Values": ["32", "64"]}],
}


def chosen(strategy: str, seed: int, past: list[tuple[dict[str, str], float]], number: int = 6) -> list[dict[str, str]]:
    objective = {"Type": "Maximize", "MetricName": "val/accuracy"}
    config = {"Strategy": strategy, "HyperParameterTuningJobObjective": objective, "ParameterRanges": RANGES}
    search = search_for({**config, "RandomSeed": seed}, past)
    found = []
    for _ in range(number):
        choice = search.choose()
        assert choice is not None
        search.learn(choice.number, float(choice.values["lr"]))
        found.append(choice.values)
    return found


@pytest.mark.parametrize("strategy", ["Random", "Bayesian", "Hyperband"])
def test_the_same_seed_makes_the_same_choices(strategy: str) -> None:
    assert chosen(strategy, 5, []) == chosen(strategy, 5, [])
    assert chosen(strategy, 5, []) != chosen(strategy, 6, [])


def test_what_parents_found_guides_the_bayesian_choice_alone() -> None:
    past = [
        ({"lr": f"{0.0001 * 1.26**number:.6f}", "max_epochs": "5", "size": "64"}, -abs(number - 10.0))
        for number in range(30)
    ]
    outside = [({"lr": "3.5", "max_epochs": "5", "size": "64"}, 100.0), ({"lr": "0.01"}, 100.0)]
    guided, unguided = (
        [float(chosen("Bayesian", seed, known, 1)[0]["lr"]) for seed in range(9)] for known in ([*past, *outside], [])
    )
    assert 0.0003 < min(guided) < max(guided) < 0.003  # the best was 0.001
    assert min(unguided) < 0.0003
    assert max(unguided) > 0.003
    assert chosen("Random", 1, past) == chosen("Random", 1, [])


def test_the_median_is_of_means_up_to_the_epoch_of_completed_jobs() -> None:
    others = [
        Progress([0.1, 0.3, 0.9], completed=True),  # mean of the first two: 0.2
        Progress([0.4, 0.6], completed=True),  # 0.5
        Progress([0.6, 0.8], completed=True),  # 0.7
        Progress([0.9], completed=True),  # not so far
        Progress([0.9, 0.9], completed=False),
    ]
    assert Median().gives_up([0.9, 0.49], others)
    assert not Median().gives_up([0.0, 0.5], others)
    assert not Median().gives_up([], others)
    assert not Median().gives_up([0.0], [])


def test_halving_keeps_a_third_at_each_rung() -> None:
    rule = Halving(least=2, most=10)  # rungs at 2 and 6
    others = [Progress([0.0, value / 10], completed=False) for value in range(1, 6)]
    assert not rule.gives_up([0.0], others)
    assert rule.gives_up([0.9, 0.35], others)
    assert not rule.gives_up([0.0, 0.45], others)
    assert not rule.gives_up([0.0, 0.1, 0.1, 0.1, 0.1, 0.1], others)  # alone at its rung
    assert not rule.gives_up([1.0] * 10, others)
    assert rule.gives_up([1.0] * 11, others)
