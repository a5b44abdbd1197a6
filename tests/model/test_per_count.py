"""Scores of one count's photos, and their intervals, against SciPy and against many data sets drawn alike."""

import numpy as np
import pytest
import torch
from scipy import stats

from bincounter.model.scores import score
from bincounter.training.scoring import FEWEST_FOR_LOSS, score_each_count

SUPPORT = [0, 1, 2, 5]


def answers(numbers: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """So many photos of each count, answered at random."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(SUPPORT).repeat_interleave(torch.tensor(numbers))
    probabilities = (2 * torch.randn(len(labels), len(SUPPORT), generator=generator)).softmax(1)
    return probabilities, labels


def test_values_equal_metrics_json_and_intervals_their_formulas() -> None:
    probabilities, labels = answers([40, 0, FEWEST_FOR_LOSS, 1])
    found = score_each_count(probabilities, labels, SUPPORT)
    for row in score(probabilities, labels, SUPPORT, {})["per_count"]:
        ours = found[row["count"]]
        assert (ours.scored, ours.accuracy, ours.loss) == (row["n"], row["accuracy"], row["cross_entropy"])
    assert found[1].accuracy_interval is None and found[1].loss_interval is None
    for count in (0, 2):
        chosen = labels == count
        loss = -probabilities[chosen, SUPPORT.index(count)].double().log().numpy()
        student = stats.t.interval(0.95, len(loss) - 1, loss.mean(), stats.sem(loss))
        assert found[count].loss_interval == pytest.approx((max(student[0], 0), student[1]))
    for count in (0, 2, 5):
        n, accuracy = found[count].scored, found[count].accuracy
        assert accuracy is not None
        wilson = stats.binomtest(round(accuracy * n), n).proportion_ci(method="wilson")
        assert found[count].accuracy_interval == pytest.approx((wilson.low, wilson.high))
    assert found[5].loss_interval is None  # of one photo


def test_certain_and_wrong_costs_a_finite_loss() -> None:
    found = score_each_count(torch.tensor([[1.0, 0, 0, 0]] * 6), torch.full((6,), 5), SUPPORT)
    assert np.isfinite(found[5].loss)  # type: ignore[arg-type]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held = 0
    for seed in range(300):
        interval = score_each_count(*answers([30, 0, 0, 0], seed), SUPPORT)[0].loss_interval
        assert interval is not None
        held += interval[0] <= 2.4722 <= interval[1]
    assert 0.90 <= held / 300 <= 0.99
