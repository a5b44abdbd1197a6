import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.functional import calibration_error, f1_score

from bincounter.model.answer import ANSWERS, position, positions
from bincounter.model.scores import CountMetrics, score

SUPPORT = [0, 1, 2, 5]
FLAT = ("accuracy", "rmse", "mae", "within_one", "macro_f1", "ece", "cross_entropy")


def predictions(photos: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    probabilities = (2 * torch.randn(photos, len(SUPPORT), generator=generator)).softmax(1)
    return probabilities, torch.tensor(SUPPORT)[torch.randint(len(SUPPORT), (photos,), generator=generator)]


@settings(deadline=None, max_examples=40)
@given(photos=st.integers(1, 60), seed=st.integers(0, 10_000), answer=st.sampled_from(ANSWERS))
def test_scores_follow_their_formulas(photos: int, seed: int, answer: str) -> None:
    probabilities, counts = predictions(photos, seed)
    result = score(probabilities, counts, SUPPORT, {0: 3, 5: 1}, answer=answer)
    p, y = probabilities.double().numpy(), counts.numpy()
    position = np.searchsorted(SUPPORT, y)
    answered = p.argmax(1) if answer == "mode" else (p.cumsum(1) < 0.5).sum(1)
    error = np.array(SUPPORT)[answered] - y
    assert result["n"] == photos
    assert result["accuracy"] == pytest.approx(np.mean(error == 0))
    assert result["rmse"] == pytest.approx(np.sqrt(np.mean(error**2.0)))
    assert result["mae"] == pytest.approx(np.mean(np.abs(error)))
    assert result["within_one"] == pytest.approx(np.mean(np.abs(error) <= 1))
    assert result["cross_entropy"] == pytest.approx(-np.mean(np.log(p[np.arange(photos), position])))
    assert result["majority_accuracy"] == pytest.approx(np.mean(y == 0))
    assert [row["coverage"] for row in result["coverage"]] == pytest.approx(np.arange(1, 21) / 20)
    for row in result["coverage"]:
        kept = p[np.arange(photos), answered] >= row["confidence"]
        assert row["n"] == kept.sum() >= row["coverage"] * photos - 1e-9
        assert row["accuracy"] == pytest.approx(np.mean(error[kept] == 0))
    assert result["mean_rmse"] == pytest.approx(np.sqrt(np.mean((y - 1.25) ** 2)))
    options: dict[str, Any] = {"task": "multiclass", "num_classes": len(SUPPORT)}
    label, predicted = torch.from_numpy(position), torch.from_numpy(answered)
    f1 = f1_score(predicted, label, average="macro", **options)
    assert result["macro_f1"] == pytest.approx(f1.item(), abs=1e-5)
    confidence = probabilities.gather(1, predicted[:, None]).squeeze(1)
    ece = calibration_error(confidence, (predicted == label).long(), task="binary", n_bins=15, norm="l1")
    assert result["ece"] == pytest.approx(ece.item(), abs=1e-4)


@given(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any), min_size=1, max_size=20))
def test_the_mode_is_right_and_the_median_near_most_often(weights: list[list[int]]) -> None:
    probabilities = torch.tensor(weights) / torch.tensor(weights).sum(1, keepdim=True)
    rows, support = probabilities.tolist(), np.array(SUPPORT)
    for answer in ANSWERS:
        assert positions(probabilities, answer).tolist() == [position(row, answer) for row in rows]
    for row in rows:
        assert row[position(row, "mode")] == max(row)
        errors = np.abs(support - support[:, None]) @ row
        assert errors[position(row, "median")] == pytest.approx(errors.min(), abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), cut=st.integers(1, 39))
def test_batches_add_up_and_padding_is_ignored(seed: int, cut: int) -> None:
    probabilities, counts = predictions(40, seed)
    whole, parts = CountMetrics(SUPPORT), CountMetrics(SUPPORT).clone(prefix="val/")
    whole.update(probabilities, counts)
    parts.update(probabilities[:cut], counts[:cut])
    padded = torch.cat([counts[cut:], torch.tensor([-1, -1])])
    parts.update(torch.cat([probabilities[cut:], probabilities[:2]]), padded)
    expected = {f"val/{name}": value for name, value in whole.compute().items()}
    torch.testing.assert_close(dict(parts.compute()), expected)
    assert set(expected) == {f"val/{name}" for name in FLAT}


def test_metrics_stay_apart_though_their_first_batches_agree() -> None:
    # Every error is 0 or 1, so that squared and absolute errors have the same sums until the second batch.
    metrics = CountMetrics([0, 1, 2])
    metrics.update(torch.eye(3), torch.tensor([0, 2, 1]))
    metrics.update(torch.eye(3)[[2]], torch.tensor([0]))
    result = metrics.compute()
    assert result["mae"].item() == pytest.approx(1.0) and result["rmse"].item() == pytest.approx(1.5**0.5)


@pytest.mark.parametrize("photos", [1, 3, 200])
def test_one_side_of_metrics_json_is_json_and_consistent(photos: int) -> None:
    probabilities, counts = predictions(photos, seed=4)
    result = json.loads(json.dumps(score(probabilities, counts.tolist(), SUPPORT, {2: 7}), allow_nan=False))
    assert result["counts"] == SUPPORT and np.sum(result["confusion"]) == photos
    assert [row["n"] for row in result["per_count"]] == np.sum(result["confusion"], axis=1).tolist()
    assert [row["train_n"] for row in result["per_count"]] == [0, 0, 7, 0]
    present = [row for row in result["per_count"] if row["n"]]
    assert sum(row["n"] * row["accuracy"] for row in present) / photos == pytest.approx(result["accuracy"])
    assert sum(row["n"] * row["cross_entropy"] for row in present) / photos == pytest.approx(result["cross_entropy"])
    assert all(row["accuracy"] is None and row["rmse"] is None for row in result["per_count"] if not row["n"])
    bins = result["reliability"]
    assert sum(row["n"] for row in bins) == photos
    gap = sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in bins) / photos
    assert gap == pytest.approx(result["ece"])
    for name, (low, high) in result["intervals"].items():
        assert low <= result[name] <= high
    assert set(result["intervals"]) == {"accuracy", "rmse", "mae", "within_one"}


def test_intervals_agree_with_resampling_photo_by_photo() -> None:
    probabilities, counts = predictions(300, seed=1)
    intervals = score(probabilities, counts, SUPPORT, {})["intervals"]
    error = np.array(SUPPORT)[probabilities.argmax(1).numpy()] - counts.numpy()
    drawn = error[np.random.default_rng(1).integers(0, 300, (4000, 300))]
    assert intervals["rmse"] == pytest.approx(np.percentile(np.sqrt((drawn**2).mean(1)), [2.5, 97.5]), rel=0.03)
    assert intervals["accuracy"] == pytest.approx(np.percentile((drawn == 0).mean(1), [2.5, 97.5]), abs=0.015)
    assert score(probabilities, counts, SUPPORT, {})["intervals"] == intervals


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logged_and_stored_scores_have_one_definition(dtype: torch.dtype) -> None:
    """Certain but wrong predictions, whose probabilities underflow, and confidences on the edge of two bins."""
    outputs = torch.tensor([[900.0, 0, -80, -400], [0, 0, 0, 0], [30, 0, 0, 0]])
    counts, label = torch.tensor([5, 2, 0]), torch.tensor([3, 2, 0])
    probabilities, logarithms = outputs.softmax(1), outputs.log_softmax(1)
    metrics = pickle.loads(pickle.dumps(CountMetrics(SUPPORT, dtype)))  # as for ddp_spawn
    metrics.update(probabilities, counts, log_probabilities=logarithms)
    logged = {name: value.item() for name, value in metrics.compute().items()}
    stored = score(probabilities, counts, SUPPORT, {}, logarithms)
    assert logged == pytest.approx({name: stored[name] for name in FLAT})
    assert logged["cross_entropy"] == pytest.approx(cross_entropy(outputs, label).item())
    fifths = torch.full((1, 5), 0.2)
    edge = CountMetrics(range(5), dtype)
    edge.update(fifths, torch.tensor([0]))
    assert edge["ece"].metric_state["photos"].argmax() == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_impossible_labels_cost_the_same_finite_cross_entropy(dtype: torch.dtype) -> None:
    metrics = CountMetrics(SUPPORT, dtype)
    metrics.update(torch.eye(4, dtype=dtype)[:1], torch.tensor([5]))
    assert metrics.compute()["cross_entropy"].item() == pytest.approx(87.3365, abs=1e-4)
    result = score(torch.eye(4, dtype=dtype)[:1], [5], SUPPORT, {})
    assert result["cross_entropy"] == pytest.approx(87.3365, abs=1e-4)
    assert result["majority_accuracy"] is None and result["mean_rmse"] is None


def test_a_tie_of_the_majority_goes_to_the_smaller_count() -> None:
    assert score(torch.eye(4)[:2], [0, 1], SUPPORT, {1: 4, 0: 4})["majority_accuracy"] == 0.5
    assert score(torch.eye(4)[:2], [1, 1], SUPPORT, {1: 4, 0: 4})["majority_accuracy"] == 0.0


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3\] lie outside"):
        score(torch.eye(4)[:2], [0, 3], SUPPORT, {})
    with pytest.raises(ValueError, match="do not fit"):
        score(torch.eye(3), [0, 1, 2], SUPPORT, {})
    with pytest.raises(ValueError, match="at least one"):
        score(torch.zeros(0, 4), [], SUPPORT, {})
