"""Objectives (outputs -> loss and distribution over counts), and the fully connected head."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bincounter.errors import ConfigError


class Objective(nn.Module, ABC):
    """Base class: outputs of the head, their loss, and the distribution over counts that they encode.

    Targets are distributions over the support, so that mixup, label smoothing and softening are one mechanism; a plain
    label is a one-hot row. Scores, reports and endpoints use only :meth:`calibrated`: :meth:`probabilities` at another
    temperature.

    An objective of your own is a class in a file of yours, named by ``objective._target_``; it is constructed with
    ``counts`` and the options of its config node. A complete Poisson regression::

        class Poisson(Objective):
            out_features = 1

            def log_rates(self, outputs):  # float[B, K]: log-likelihood of each count, up to the support's truncation
                log_mean = outputs.clamp(-5, 5)
                return self.support * log_mean - log_mean.exp() - torch.lgamma(self.support + 1)

            def loss(self, outputs, target):
                return -(target * self.log_rates(outputs)).sum(1)

            def probabilities(self, outputs):
                return self.log_rates(outputs).softmax(1)

    Parameters of an objective (a dispersion, mixture components) are trained and saved like the head's. Override
    :meth:`head` if a vector of outputs is not enough; for a density map also set ``spatial = True``, so that the head
    gets the backbone's maps ``float[B, C, h, w]`` instead of pooled features ``float[B, D]``.

    Args:
        counts: the support: ``K >= 2`` distinct counts in ascending order.

    Attributes:
        counts: the support.
        support: the support as ``float[K]`` on the module's device.
        out_features: outputs per photo of :meth:`head`.
        spatial: the head reads maps instead of pooled features.
        answered: the counts to answer, the first ones of ``counts``; by default all. The others are learnt alone.
        calibration_temperature: of :meth:`calibrated`, fitted after training; 1 changes nothing.

    Raises:
        ConfigError: ``counts`` are fewer than two, not ascending, or negative.
    """

    spatial: ClassVar[bool] = False
    calibration_temperature: float = 1.0
    out_features: int
    support: Tensor

    def __init__(self, counts: Sequence[int]) -> None:
        super().__init__()
        self.counts = tuple(int(count) for count in counts)
        if len(self.counts) < 2 or list(self.counts) != sorted(set(self.counts)) or self.counts[0] < 0:
            raise ConfigError(f"data.counts={list(counts)} must be at least two distinct counts from 0 up, ascending.")
        self.answered = self.counts
        # Not a buffer: averaging weights (EMA) averages buffers too, and labels are compared for equality with it.
        self.support = torch.tensor(self.counts, dtype=torch.float32)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Moved, but kept in single precision: bfloat16 has no 257.
        self.support = self.support.to(fn(self.support).device)
        return super()._apply(fn, recurse)

    def head(self, in_features: int, *, layers: int = 0, width: int = 512, dropout: float = 0.0) -> nn.Module:
        """Build the module from the backbone's features to this objective's outputs; see :func:`head`."""
        return head(in_features, self.out_features, layers=layers, width=width, dropout=dropout)

    @abstractmethod
    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Loss per photo.

        Args:
            outputs: ``float32[B, out_features]``, or the outputs of an overridden :meth:`head`.
            target: ``float32[B, K]``, distributions over the support; a row of zeros (padding) must give 0.

        Returns:
            ``float32[B]``, in nats where the loss is a likelihood.
        """

    @abstractmethod
    def probabilities(self, outputs: Tensor) -> Tensor:
        """Distributions over the support, ``float32[B, K]`` with rows that sum to 1."""

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Natural logarithms of :meth:`probabilities` for the cross entropy, ``float32[B, K]``.

        Override it if the logarithm has a closed form: a probability below 1e-38 is 0 in single precision.
        """
        return clamped_log(self.probabilities(outputs))

    def calibrated(self, *views: Tensor) -> Tensor:
        """Distributions over :attr:`answered` to answer with, ``float32[B, len(answered)]``.

        Args:
            views: outputs for photos, and for the same photos seen otherwise, whose distributions are averaged.
        """
        if len(views) == 1 and self.calibration_temperature == 1 and self.answered == self.counts:
            return self.probabilities(views[0])
        return self.log_calibrated(*views).exp()

    def log_calibrated(self, *views: Tensor) -> Tensor:
        """Natural logarithms of :meth:`calibrated`."""
        logarithms = self.log_probabilities(views[0])
        if len(views) > 1:
            each = torch.stack([logarithms, *map(self.log_probabilities, views[1:])])
            logarithms = each.logsumexp(0) - math.log(len(views))
        if self.answered != self.counts:
            logarithms = logarithms[:, : len(self.answered)].log_softmax(1)
        return temper(logarithms, self.calibration_temperature)


class _Softmax(Objective):
    """Base class: one logit per count."""

    def __init__(self, counts: Sequence[int]) -> None:
        super().__init__(counts)
        self.out_features = len(self.counts)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax of ``outputs``."""
        return outputs.softmax(1)

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Log-softmax of ``outputs``."""
        return outputs.log_softmax(1)


class Classification(_Softmax):
    """Cross entropy with one class per count.

    Args:
        counts: the support.
        label_smoothing: probability moved from the label to all counts equally, 0-1 (Szegedy et al., Rethinking the
            Inception Architecture, CVPR 2016, https://arxiv.org/abs/1512.00567).
        squared_error: weight of the squared error of the expected count, in nats per squared item: it tells near misses
            from far ones. 0 is off.
    """

    def __init__(self, counts: Sequence[int], label_smoothing: float = 0.0, squared_error: float = 0.0) -> None:
        super().__init__(counts)
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"objective.label_smoothing={label_smoothing} must be at least 0 and below 1.")
        if not squared_error >= 0:
            raise ConfigError(f"objective.squared_error={squared_error} must be at least 0.")
        self.label_smoothing, self.squared_error = label_smoothing, squared_error

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Cross entropy between the smoothed target and the softmax of ``outputs``, and the weighted squared error."""
        mass = target.sum(1, keepdim=True)  # 0 for padding, which smoothing must leave at 0
        smoothed = (1 - self.label_smoothing) * target + self.label_smoothing * mass / target.shape[1]
        entropy = -(smoothed * outputs.log_softmax(1)).sum(1)
        if not self.squared_error:
            return entropy
        miss = (mass * outputs.softmax(1) - target) @ self.support.to(outputs)
        return entropy + self.squared_error * miss.square()


class NeighbourSoftened(_Softmax):
    """Cross entropy with labels softened over neighbouring counts: a near miss costs less than a far one.

    The soft label of count ``t`` is ``softmax_k(-|k - t| / temperature)``: SORD with the absolute difference (Diaz and
    Marathe, Soft Labels for Ordinal Regression, CVPR 2019,
    https://openaccess.thecvf.com/content_CVPR_2019/html/Diaz_Soft_Labels_for_Ordinal_Regression_CVPR_2019_paper.html).

    Args:
        counts: the support.
        temperature: in counts; towards 0 the labels become hard. At 0.5 a neighbour gets 0.14 times the label's share.
    """

    def __init__(self, counts: Sequence[int], temperature: float = 0.5) -> None:
        super().__init__(counts)
        if not temperature > 0:
            raise ConfigError(f"objective.temperature={temperature} must be above 0.")
        self.temperature = temperature

    def soft_labels(self) -> Tensor:
        """Soft labels, one row per count, ``float[K, K]``."""
        distance = (self.support[:, None] - self.support[None, :]).abs()
        return (-distance / self.temperature).softmax(1)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Cross entropy between the softened target and the softmax of ``outputs``."""
        return -((target @ self.soft_labels().to(target)) * outputs.log_softmax(1)).sum(1)


class Corn(Objective):
    """Conditional ordinal regression: output ``k`` is the logit of ``P(count > c_k | count > c_{k-1})``.

    Shi, Cao and Raschka, Deep Neural Networks for Rank-Consistent Ordinal Regression Based On Conditional
    Probabilities, 2021, https://arxiv.org/abs/2111.08851. Task ``k`` of ``K - 1`` has the weight ``P(y > c_{k-1})`` and
    the label ``P(y > c_k) / P(y > c_{k-1})`` for a target distribution of ``y``. The paper divides a batch's sum by the
    number of (photo, task) pairs; here the tasks of a photo are summed, which gives the cross entropy of the
    distribution over counts, comparable to other objectives.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        super().__init__(counts)
        self.out_features = len(self.counts) - 1

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Sum of the conditional tasks' binary cross entropies."""
        stops = target[:, :-1]  # P(y = c_k) = P(y > c_{k-1}) - P(y > c_k): the weight of stopping there
        passes = target.flip(1).cumsum(1).flip(1)[:, 1:]  # P(y > c_k)
        return -(passes * F.logsigmoid(outputs) + stops * F.logsigmoid(-outputs)).sum(1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Products of the conditional probabilities: ``P(count > c_j)`` of all tasks below, times the complement."""
        return self.log_probabilities(outputs).exp()

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Sums of the conditionals' logarithms."""
        nothing = outputs.new_zeros(outputs.shape[0], 1)  # len would fix the batch of an export
        passed = torch.cat([nothing, F.logsigmoid(outputs).cumsum(1)], 1)
        stopped = torch.cat([F.logsigmoid(-outputs), nothing], 1)
        return passed + stopped


def head(
    in_features: int, out_features: int, *, layers: int = 0, width: int = 512, dropout: float = 0.0
) -> nn.Sequential:
    """Build a fully connected head.

    Args:
        in_features: features per photo.
        out_features: outputs per photo.
        layers: extra fully connected layers (linear, ReLU, dropout) before the output layer.
        width: features of each extra layer.
        dropout: fraction of features dropped after each extra layer, or before the output layer if it has none.
    """
    modules: list[nn.Module] = []
    for _ in range(layers):
        modules += [nn.Linear(in_features, width), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        in_features = width
    if layers == 0 and dropout > 0:
        modules.append(nn.Dropout(dropout))
    return nn.Sequential(*modules, nn.Linear(in_features, out_features))


def learnt_counts(counts: Sequence[int], above: int) -> list[int]:
    """Counts that a model learns: those to answer, ascending, and ``above`` larger ones; the last takes the rest."""
    return [*counts, *range(counts[-1] + 1, counts[-1] + 1 + above)]


def temper(log_probabilities: Tensor, temperature: float) -> Tensor:
    """Distributions at another temperature, ``p ** (1 / temperature)`` normalised; 1 changes nothing.

    Of a softmax that divides its inputs by the temperature (Guo et al., On Calibration of Modern Neural Networks, ICML
    2017, https://arxiv.org/abs/1706.04599). The most likely count stays the same.

    Args:
        log_probabilities: ``float[B, K]``.
        temperature: above 1 makes distributions wider, below 1 narrower.

    Returns:
        Natural logarithms, ``float[B, K]``.
    """
    return log_probabilities if temperature == 1 else (log_probabilities / temperature).log_softmax(1)


def clamped_log(probabilities: Tensor) -> Tensor:
    """Natural logarithm, clamped at the smallest single-precision number: an impossible label costs 87.3 nats."""
    return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()
