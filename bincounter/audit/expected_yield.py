"""Wrong records that the first N checks are expected to find, with an interval, and the check to stop after.

The records that are wrong among N checked ones are a sum of independent trials with unequal probabilities, which has a
Poisson binomial distribution (Hong, On computing the distribution function for the Poisson binomial distribution,
Computational Statistics & Data Analysis 59, 2013): exact by convolution for few records, else by the refined normal
approximation described there, which corrects for skewness (Volkova 1996).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SHARES = (0.05, 0.1, 0.2)
"""Shares of the judged records that summaries report on."""

_EXACT = 500  # probabilities; a convolution of more takes longer than its gain in precision is worth
_TAIL = 0.025  # on either side of an interval of 95 %


class Found(NamedTuple):
    """Wrong records found by the first checks.

    Attributes:
        checks: number of them.
        expected: mean number of wrong records.
        low: lower end of the 95 % interval, a whole number.
        high: upper end.
    """

    checks: int
    expected: float
    low: int
    high: int


@dataclass(frozen=True)
class Costs:
    """Costs in one currency.

    Attributes:
        check: of a walk to one bin.
        error: of a wrong record that nobody finds.
    """

    check: float
    error: float


def expected_found(record_wrong: np.ndarray, checks: int) -> Found:
    """Wrong records that the first checks are expected to find.

    Args:
        record_wrong: probabilities in the order of the checks, float ``[N]``.
        checks: number of checks, at most N.
    """
    first = np.asarray(record_wrong[:checks], dtype=float)
    low, high = _interval(first)
    return Found(checks, float(first.sum()), low, high)


def first_checks(records: int) -> list[int]:
    """Numbers of checks that are :data:`SHARES` of the judged records, rounded up."""
    return [int(np.ceil(share * records - 1e-9)) for share in SHARES]


def checks_worth(record_wrong: np.ndarray, costs: Costs) -> int:
    """Number of checks that are worth their cost: those whose expected error costs more than the check.

    Args:
        record_wrong: probabilities in descending order, float ``[N]``.
        costs: of a check and of an error.
    """
    return int((np.asarray(record_wrong) * costs.error > costs.check).sum())


def _interval(probabilities: np.ndarray) -> tuple[int, int]:
    """Smallest numbers whose distribution function reaches 2.5 % and 97.5 %."""
    if len(probabilities) <= _EXACT:
        distribution = np.ones(1)
        for probability in probabilities:
            distribution = np.convolve(distribution, (1 - probability, probability))
        cumulative = np.cumsum(distribution)
    else:
        cumulative = _approximate(probabilities)
    low, high = (int(np.searchsorted(cumulative, level)) for level in (_TAIL, 1 - _TAIL))
    return low, min(high, len(probabilities))


def _approximate(probabilities: np.ndarray) -> np.ndarray:
    """Distribution function at 0 to N by the refined normal approximation."""
    from scipy.stats import norm

    variances = probabilities * (1 - probabilities)
    deviation = np.sqrt(variances.sum())
    numbers = np.arange(len(probabilities) + 1)
    if deviation == 0:
        return (numbers >= round(probabilities.sum())).astype(float)
    skewness = (variances * (1 - 2 * probabilities)).sum() / deviation**3
    at = (numbers + 0.5 - probabilities.sum()) / deviation
    return np.maximum.accumulate(np.clip(norm.cdf(at) + skewness * (1 - at**2) * norm.pdf(at) / 6, 0, 1))
