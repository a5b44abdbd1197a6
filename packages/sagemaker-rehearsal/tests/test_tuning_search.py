"""Choice of hyperparameters, and the median rule."""

from itertools import islice
from typing import Any

import pytest

from sagemaker_rehearsal.tuning_search import Progress, Values, choices, is_behind_median

RANGES: dict[str, Any] = {
    "ContinuousParameterRanges": [
        {"Name": "lr", "MinValue": "0.00001", "MaxValue": "0.1", "ScalingType": "Logarithmic"},
        {"Name": "dropout", "MinValue": "0", "MaxValue": "0.5", "ScalingType": "Linear"},
    ],
    "IntegerParameterRanges": [
        {"Name": "max_epochs", "MinValue": "1", "MaxValue": "3"},
        {"Name": "width", "MinValue": "1", "MaxValue": "100", "ScalingType": "Logarithmic"},
    ],
    "CategoricalParameterRanges": [{"Name": "size", "Values": ["32", "64"]}],
}


def chosen(strategy: str, seed: int, number: int) -> list[Values]:
    return list(islice(choices({"Strategy": strategy, "ParameterRanges": RANGES, "RandomSeed": seed}), number))


@pytest.mark.parametrize("strategy", ["Random", "Bayesian"])
def test_the_same_seed_makes_the_same_choices(strategy: str) -> None:
    assert chosen(strategy, 5, 4) == chosen(strategy, 5, 4)
    assert chosen(strategy, 5, 4) != chosen(strategy, 6, 4)


def test_draws_cover_their_ranges() -> None:
    found = chosen("Random", 0, 500)
    rates = [float(values["lr"]) for values in found]
    assert 1e-5 <= min(rates) < max(rates) <= 0.1
    assert not any("e" in values["lr"] for values in found)
    small = sum(rate < 1e-3 for rate in rates) / len(rates)
    assert 0.4 < small < 0.6  # half of the decades
    assert {values["max_epochs"] for values in found} == {"1", "2", "3"}
    widths = [int(values["width"]) for values in found]
    assert (min(widths), max(widths)) == (1, 100)
    assert 0.35 < sum(width <= 10 for width in widths) / len(widths) < 0.65
    dropouts = [float(values["dropout"]) for values in found]
    assert 0.2 < sum(dropouts) / len(dropouts) < 0.3
    assert {values["size"] for values in found} == {"32", "64"}


def test_the_median_is_of_means_up_to_the_epoch_of_completed_jobs() -> None:
    others = [
        Progress([0.1, 0.3, 0.9], completed=True),  # mean of the first two: 0.2
        Progress([0.4, 0.6], completed=True),  # 0.5
        Progress([0.6, 0.8], completed=True),  # 0.7
        Progress([0.9], completed=True),  # ended before the second
        Progress([0.9, 0.9], completed=False),
    ]
    assert is_behind_median([0.9, 0.49], others)
    assert not is_behind_median([0.0, 0.5], others)
    assert not is_behind_median([], others)
    assert not is_behind_median([0.0], [])
