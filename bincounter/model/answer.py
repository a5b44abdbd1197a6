"""The count that a distribution answers with: the most likely one, or the median.

The most likely count is right most often. The median has the smallest mean absolute error of all answers: it is off by
less, and further off less often, where a distribution is wide.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # servers read rows of floats before torch is imported
    from torch import Tensor

ANSWERS = ("mode", "median")


def position(row: Sequence[float], answer: str) -> int:
    """Position of the answer in one distribution, the lowest of equally good ones.

    Args:
        row: probabilities of ascending counts ``[K]``.
        answer: one of :data:`ANSWERS`.
    """
    if answer == "mode":
        return max(range(len(row)), key=row.__getitem__)
    below = 0.0
    for at, share in enumerate(row):
        below += share
        if below >= 0.5:
            return at
    return len(row) - 1


def positions(probabilities: "Tensor", answer: str) -> "Tensor":
    """Positions of the answers, ``float[B, K]`` -> ``int64[B]``, as :func:`position` finds them."""
    if answer == "mode":
        return probabilities.argmax(1)
    wide = probabilities if probabilities.device.type == "mps" else probabilities.double()  # Macs' GPUs have no float64
    return (wide.cumsum(1) < 0.5).sum(1).clamp(max=probabilities.shape[1] - 1)
