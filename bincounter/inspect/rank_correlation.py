"""Whether two columns rise and fall together, however few rows there are."""

from collections.abc import Sequence
from itertools import permutations
from math import factorial

import numpy as np

FEWEST = 4
"""Rows below which even a perfect order is one that chance often makes."""

_EXACT = 8  # rows up to which all their orders are gone through
_DRAWN = 9999


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float] | None:
    """Spearman's rank correlation, and how much of it chance would make.

    Spearman 1904, https://doi.org/10.2307/1412159; the test is by permutation: exact up to 8 rows, by 9,999 random
    orders beyond.

    Args:
        x: ``float[N]``, finite.
        y: ``float[N]``, finite.

    Returns:
        The correlation, -1 to 1, and the share of all orders of ``y`` whose correlation is as strong or stronger, 0-1;
        ``None`` with fewer than :data:`FEWEST` rows, or where a column is constant.
    """
    from scipy.stats import rankdata

    if len(x) < FEWEST or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    a, b = (_standardised(rankdata(values)) for values in (x, y))
    found = float(a @ b)
    strong = int((np.abs(b[_orders(len(b))] @ a) >= abs(found) - 1e-9).sum())
    share = strong / factorial(len(b)) if len(b) <= _EXACT else (strong + 1) / (_DRAWN + 1)
    return found, share


def _standardised(ranks: np.ndarray) -> np.ndarray:
    centred = ranks - ranks.mean()
    return centred / np.linalg.norm(centred)


def _orders(rows: int) -> np.ndarray:
    """Orders of so many rows, ``int[M, rows]``: all of them, or some at random, the same ones every time."""
    if rows <= _EXACT:
        return np.array(list(permutations(range(rows))))
    return np.random.default_rng(0).permuted(np.tile(np.arange(rows), (_DRAWN, 1)), axis=1)
