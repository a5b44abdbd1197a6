"""Scores of a counter: metrics that are summed over batches and devices, and one side of ``metrics.json``."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from bincounter.model.answer import positions
from bincounter.model.objectives import clamped_log

INTERVALS = ("accuracy", "rmse", "mae", "within_one")
_PADDING = -1
_BINS, _RESAMPLES = 15, 1000


class CountMetrics(MetricCollection):
    """Accuracy, RMSE, MAE, within-one accuracy, macro F1, expected calibration error and cross entropy.

    Updated with ``(probabilities float[B, K], counts int[B], log_probabilities=float[B, K])``; without the logarithms
    the cross entropy is that of :func:`~bincounter.model.objectives.clamped_log`. Rows with the count -1 are padding
    and ignored, so that a padding sampler does not bias the scores. Accuracy, RMSE, MAE and within-one are of the
    answered count; fractions are 0-1, cross entropy is in nats. ``.clone(prefix="val/")`` makes metrics of one side.

    Args:
        counts: the support, ascending.
        dtype: of the sums; ``torch.float64`` for scores that do not depend on the order of the photos.
        answer: which count is answered, see :mod:`bincounter.model.answer`.
    """

    def __init__(self, counts: Sequence[int], dtype: torch.dtype = torch.float32, answer: str = "mode") -> None:
        # Without compute groups: torchmetrics would join two metrics whose states happen to agree on the first batch.
        super().__init__(
            {
                "accuracy": _Accuracy(counts, dtype, answer),
                "rmse": _RootMeanSquare(counts, dtype, answer),
                "mae": _PhotoMean(counts, dtype, answer),
                "within_one": _WithinOne(counts, dtype, answer),
                "macro_f1": MacroF1(counts, dtype, answer),
                "ece": CalibrationError(counts, dtype, answer),
                "cross_entropy": CrossEntropy(counts, dtype, answer),
            },
            compute_groups=False,
        )


class _CountMetric(Metric):
    """A metric over (probabilities, counts) that ignores padding and knows the support."""

    full_state_update = False

    def __init__(self, counts: Sequence[int], answer: str) -> None:
        super().__init__()
        self.counts, self.answer = tuple(counts), answer

    def support(self, like: Tensor) -> Tensor:
        """The support on the device of ``like``, ``int64[K]``."""
        # Not a buffer: averaging weights (EMA) averages buffers too and truncates 0.9 * 3 + 0.1 * 3 to 2.
        return torch.tensor(self.counts, device=like.device)

    def valid(self, probabilities: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Without padding: probabilities ``[V, K]``, and positions of the labels in the support ``[V]``."""
        valid = counts != _PADDING
        counts = counts[valid]
        return probabilities[valid], torch.searchsorted(self.support(counts), counts)


class _PhotoMean(_CountMetric):
    """Mean over photos of a function of the error: MAE, unless a subclass overrides :meth:`value`."""

    total: Tensor
    photos: Tensor

    def __init__(self, counts: Sequence[int], dtype: torch.dtype, answer: str = "mode") -> None:
        super().__init__(counts, answer)
        self.add_state("total", torch.tensor(0.0, dtype=dtype), dist_reduce_fx="sum")
        self.add_state("photos", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, counts: Tensor) -> None:
        probabilities, label = self.valid(probabilities, counts)
        support = self.support(label)
        self.add(self.value(support[positions(probabilities, self.answer)] - support[label]))

    def value(self, error: Tensor) -> Tensor:
        return error.abs()

    def add(self, values: Tensor) -> None:
        self.total += values.sum()
        self.photos += len(values)

    def compute(self) -> Tensor:
        return self.total / self.photos


class _Accuracy(_PhotoMean):
    def value(self, error: Tensor) -> Tensor:
        return error == 0


class _WithinOne(_PhotoMean):
    def value(self, error: Tensor) -> Tensor:
        return error.abs() <= 1


class _RootMeanSquare(_PhotoMean):
    def value(self, error: Tensor) -> Tensor:
        return error.square()

    def compute(self) -> Tensor:
        return super().compute().sqrt()


class CrossEntropy(_PhotoMean):
    """Mean over photos of the label's negative log-probability, in nats."""

    def update(self, probabilities: Tensor, counts: Tensor, log_probabilities: Tensor | None = None) -> None:
        """Add a batch: ``float[B, K]``, ``int[B]`` and, if known, the logarithms ``float[B, K]``."""
        logarithms, label = self.valid(
            clamped_log(probabilities) if log_probabilities is None else log_probabilities, counts
        )
        self.add(negative_log_likelihood(logarithms, label))


class MeanLoss(_PhotoMean):
    """Mean of a loss over photos; NaN if one of them is, which shows a divergence."""

    def update(self, losses: Tensor) -> None:  # type: ignore[override]
        """Add the losses of a batch, ``float[V]``."""
        self.add(losses)


class MacroF1(_CountMetric):
    """Mean of the per-count F1 scores, over counts that occur as a label or as a prediction.

    Attributes:
        confusion: ``int64[K, K]``, rows true, columns predicted.
    """

    confusion: Tensor

    def __init__(self, counts: Sequence[int], dtype: torch.dtype = torch.float32, answer: str = "mode") -> None:
        super().__init__(counts, answer)
        self.result_dtype = dtype
        self.add_state("confusion", torch.zeros(len(counts), len(counts), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, counts: Tensor) -> None:
        """Add a batch: ``float[B, K]`` and ``int[B]``."""
        probabilities, label = self.valid(probabilities, counts)
        size, predicted = len(self.counts), positions(probabilities, self.answer)
        self.confusion += torch.bincount(label * size + predicted, minlength=size**2).reshape(size, size)

    def compute(self) -> Tensor:
        """Macro F1, 0-1."""
        occurrences = (self.confusion.sum(0) + self.confusion.sum(1)).to(self.result_dtype)
        return (2 * self.confusion.diagonal() / occurrences)[occurrences > 0].mean()


class CalibrationError(_CountMetric):
    """Expected calibration error of the answered count, in 15 bins of equal width.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017, https://arxiv.org/abs/1706.04599.

    Attributes:
        photos, confidence, correct: ``[15]`` sums per bin of photos, of confidences and of right predictions.
    """

    photos: Tensor
    confidence: Tensor
    correct: Tensor

    def __init__(self, counts: Sequence[int], dtype: torch.dtype = torch.float32, answer: str = "mode") -> None:
        super().__init__(counts, answer)
        for name in ("photos", "confidence", "correct"):
            self.add_state(name, torch.zeros(_BINS, dtype=dtype), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, counts: Tensor) -> None:
        """Add a batch: ``float[B, K]`` and ``int[B]``."""
        probabilities, label = self.valid(probabilities, counts)
        predicted = positions(probabilities, self.answer)
        sure = probabilities.gather(1, predicted[:, None]).squeeze(1)
        # In single precision also for float64 sums: a confidence of 0.2 lies on the edge of two bins.
        bins = (sure.float() * _BINS).ceil().long().sub(1).clamp(0, _BINS - 1)  # Guo et al.: ((m - 1) / 15, m / 15]
        confidence = sure.to(self.confidence)
        self.photos.index_add_(0, bins, torch.ones_like(confidence))
        self.confidence.index_add_(0, bins, confidence)
        self.correct.index_add_(0, bins, (predicted == label).to(confidence))

    def compute(self) -> Tensor:
        """Expected calibration error, 0-1."""
        return (self.correct - self.confidence).abs().sum() / self.photos.sum()


def negative_log_likelihood(log_probabilities: Tensor, label: Tensor) -> Tensor:
    """Cross entropy of each photo in nats, ``float[B]``.

    Args:
        log_probabilities: ``float[B, K]``.
        label: positions in the support, ``int[B]``.
    """
    return -log_probabilities.gather(1, label[:, None]).squeeze(1)


def score(
    probabilities: Tensor,
    counts: Tensor | Sequence[int],
    support: Sequence[int],
    train_counts: Mapping[int, int],
    log_probabilities: Tensor | None = None,
    answer: str = "mode",
) -> dict[str, Any]:
    """Score the predictions of one side of ``metrics.json``.

    Args:
        probabilities: ``float[N, K]``, rows sum to 1.
        counts: ``int[N]``, labels, all in the support.
        support: the ``K`` counts, ascending.
        train_counts: photos per count in training, to fit the baselines; may be empty.
        log_probabilities: ``float[N, K]``; by default the clamped logarithms of ``probabilities``.
        answer: which count is answered, see :mod:`bincounter.model.answer`.

    Returns:
        The scores of :class:`CountMetrics`; ``n``; the baselines ``majority_accuracy`` (always predicting the most
        frequent training count) and ``mean_rmse`` (always predicting the training mean), ``None`` without training
        counts; ``intervals`` (``{name: [low, high]}``, 95 %); ``per_count``; ``confusion``; ``counts``;
        ``reliability``; ``coverage``: the accuracy of the most confident photos, by their share.

    Raises:
        ValueError: no photos, inconsistent shapes, or a count outside the support.
    """
    # Double precision on the CPU: the sums are over half a million photos, and must not depend on the device.
    probabilities = torch.as_tensor(probabilities).detach().to("cpu", torch.float64)
    if log_probabilities is None:
        log_probabilities = clamped_log(probabilities)
    logarithms = log_probabilities.detach().to("cpu", torch.float64)
    labels = torch.as_tensor(counts).detach().to("cpu", torch.int64)
    _check(probabilities, labels, support)
    metrics = CountMetrics(support, torch.float64, answer)
    metrics.update(probabilities, labels, log_probabilities=logarithms)
    predicted = positions(probabilities, answer)
    errors = torch.tensor(list(support))[predicted] - labels
    return {
        **{name: value.item() for name, value in metrics.compute().items()},
        "n": len(labels),
        **_baselines(labels.double(), train_counts),
        "intervals": _intervals(errors.numpy()),
        "per_count": [
            _per_count(probabilities, logarithms, labels, support, count, train_counts, answer) for count in support
        ],
        "confusion": _state(metrics["macro_f1"], "confusion").tolist(),
        "counts": [int(count) for count in support],
        "reliability": _reliability(metrics["ece"]),
        "coverage": _coverage(probabilities.gather(1, predicted[:, None]).squeeze(1), errors == 0),
    }


def _check(probabilities: Tensor, labels: Tensor, support: Sequence[int]) -> None:
    if len(labels) == 0 or probabilities.shape != (len(labels), len(support)):
        raise ValueError(
            f"probabilities {list(probabilities.shape)} do not fit {len(labels)} counts (at least one) and a support "
            f"of {len(support)}"
        )
    if outside := sorted(set(labels.tolist()) - set(support)):
        raise ValueError(f"counts {outside} lie outside the support {list(support)}")


def _baselines(labels: Tensor, train_counts: Mapping[int, int]) -> dict[str, float | None]:
    photos = sum(train_counts.values())
    if photos == 0:
        return {"majority_accuracy": None, "mean_rmse": None}
    majority = max(sorted(train_counts), key=lambda count: train_counts[count])
    mean = sum(count * number for count, number in train_counts.items()) / photos
    return {
        "majority_accuracy": (labels == majority).double().mean().item(),
        "mean_rmse": (labels - mean).square().mean().sqrt().item(),
    }


def _intervals(errors: np.ndarray) -> dict[str, list[float]]:
    """Percentile bootstrap, 95 % (Efron and Tibshirani 1993, chapter 13).

    Drawing N photos with replacement and tabulating their errors is one multinomial draw over the distinct errors, so
    that memory and time do not grow with N.
    """
    values, number = np.unique(errors, return_counts=True)
    shares = np.random.default_rng(0).multinomial(len(errors), number / len(errors), _RESAMPLES) / len(errors)
    samples = {
        "accuracy": shares @ (values == 0),
        "rmse": np.sqrt(shares @ values**2),
        "mae": shares @ np.abs(values),
        "within_one": shares @ (np.abs(values) <= 1),
    }
    return {name: np.percentile(samples[name], [2.5, 97.5]).tolist() for name in INTERVALS}


def _per_count(
    probabilities: Tensor,
    logarithms: Tensor,
    labels: Tensor,
    support: Sequence[int],
    count: int,
    train_counts: Mapping[int, int],
    answer: str,
) -> dict[str, int | float | None]:
    chosen = labels == count
    row: dict[str, int | float | None] = {"count": int(count), "n": int(chosen.sum())}
    metrics = CountMetrics(support, torch.float64, answer)
    metrics.update(probabilities[chosen], labels[chosen], log_probabilities=logarithms[chosen])
    for name in ("accuracy", "rmse", "cross_entropy"):
        row[name] = metrics[name].compute().item() if row["n"] else None  # JSON has no NaN
    row["train_n"] = int(train_counts.get(count, 0))
    return row


def _reliability(calibration: Metric) -> list[dict[str, float | int]]:
    sums = zip(*(_state(calibration, name) for name in ("photos", "confidence", "correct")), strict=True)
    rows = [(photos, confidence / photos, correct / photos) for photos, confidence, correct in sums if photos > 0]
    return [{"confidence": sure.item(), "accuracy": right.item(), "n": int(photos)} for photos, sure, right in rows]


_COVERAGES = 20  # rows, 5 % each


def _coverage(confidence: Tensor, right: Tensor) -> list[dict[str, float | int]]:
    """Accuracy of the photos with the highest confidences: the risk-coverage curve of selective classification.

    Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, NeurIPS 2017,
    https://arxiv.org/abs/1705.08500.
    """
    highest = confidence.sort(descending=True).values
    rows = []
    for step in range(1, _COVERAGES + 1):
        least = highest[-(-step * len(right) // _COVERAGES) - 1]
        kept = confidence >= least  # more than asked for where confidences are equal
        rows.append(
            {
                "coverage": step / _COVERAGES,
                "confidence": least.item(),
                "accuracy": right[kept].double().mean().item(),
                "n": int(kept.sum()),
            }
        )
    return rows


def _state(metric: Metric, name: str) -> Tensor:
    state = metric.metric_state[name]
    assert isinstance(state, Tensor)
    return state
