"""The photos of each count by themselves: how many were answered right, at what loss, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bincounter.model.scores import clamped_log

FEWEST_FOR_LOSS = 5
"""Photos below which a mean loss gets no interval: the spread of so few tells next to nothing."""

_NORMAL = 1.959964  # quantile 0.975 of the standard normal distribution

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class CountScore:
    """How the photos of one count were answered.

    Attributes:
        n: photos scored.
        accuracy: share answered right, 0-1; ``None`` without photos.
        accuracy_interval: 95 %, Wilson (1927), https://doi.org/10.1080/01621459.1927.10502953.
        cross_entropy: mean in nats; ``None`` without photos.
        cross_entropy_interval: 95 %, Student's t, of a mean over so many photos; ``None`` below
            :data:`FEWEST_FOR_LOSS`.
    """

    n: int
    accuracy: float | None = None
    accuracy_interval: Interval | None = None
    cross_entropy: float | None = None
    cross_entropy_interval: Interval | None = None


def score_each_count(probabilities: Tensor, labels: Tensor, support: Sequence[int]) -> dict[int, CountScore]:
    """Score the photos of each count.

    Args:
        probabilities: ``float[N, K]``, rows sum to 1.
        labels: ``int[N]``, all in the support; ``N`` may be 0.
        support: the ``K`` counts, ascending.

    Returns:
        By count, for all of the support.
    """
    # Double precision on the CPU: the digits of metrics.json.
    probabilities, labels = probabilities.detach().to("cpu", torch.float64), labels.detach().to("cpu", torch.int64)
    counts = torch.tensor(list(support))
    right = (counts[probabilities.argmax(1)] == labels).double()
    loss = -clamped_log(probabilities.gather(1, torch.searchsorted(counts, labels)[:, None]).squeeze(1))
    return {int(count): _score(right[labels == count], loss[labels == count]) for count in support}


def _score(right: Tensor, loss: Tensor) -> CountScore:
    if not len(loss):
        return CountScore(0)
    accuracy, cross_entropy = right.mean().item(), loss.mean().item()
    return CountScore(len(loss), accuracy, _wilson(accuracy, len(right)), cross_entropy, _student(loss))


def _wilson(share: float, n: int) -> Interval:
    """Interval of a share that neither leaves 0-1 nor vanishes at its ends."""
    squared = _NORMAL**2 / n
    middle = share + squared / 2
    half = _NORMAL * (share * (1 - share) / n + squared / (4 * n)) ** 0.5
    return max((middle - half) / (1 + squared), 0.0), min((middle + half) / (1 + squared), 1.0)


def _student(loss: Tensor) -> Interval | None:
    from scipy.special import stdtrit

    n = len(loss)
    if n < FEWEST_FOR_LOSS:
        return None
    mean, half = loss.mean().item(), stdtrit(n - 1, 0.975) * loss.std().item() / n**0.5
    return max(mean - half, 0.0), mean + half
