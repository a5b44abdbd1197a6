"""Probability that a stock record is wrong, given the model's distribution over counts for a photo of the bin.

A record says r items; k are in the bin, of the counts that the model knows. By Bayes,

    P(k | photo, r)  ~  P(r | k) * P(k) * p_model(k | photo) / p_train(k)

- Likelihood: a calibrated classifier returns p(k | photo) under the shares of counts it was trained on; divided by
  these shares p_train it is proportional to p(photo | k). Elkan, The Foundations of Cost-Sensitive Learning, IJCAI 2001
  (theorem 2, the change of base rates); Saerens, Latinne and Decaestecker, Adjusting the Outputs of a Classifier to New
  a Priori Probabilities, Neural Computation 14(1), 2002 (section 2, for any number of classes).
- Prior: P(k), the share of bins in the stock with k items, which :meth:`RecordJudge.for_stock` estimates from the
  records; else the share of training photos.
- Record: P(r | k) is 1 - e for r = k; with e, the error rate, another count of the support is recorded, in proportion
  to spread ** (|r - k| - 1), so that most errors are of one item.
- The photo and the record are independent given the items: whoever wrote the record has not looked at this photo.

The record is wrong with probability 1 - P(r | photo, r). Archives carry this file, so that it imports numpy alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

ERROR_RATE = 0.03
"""Share of records that are wrong, before any photo is seen."""

SPREAD = 0.25
"""An error of n + 1 items is this many times as frequent as one of n."""

_SMOOTHING, _STEPS = 20.0, 20  # records; steps of the estimation

MISSING, EXTRA = "missing", "extra"
"""Directions of an error: fewer items in the bin than recorded, or more."""


@dataclass(frozen=True)
class Verdicts:
    """Judged records.

    Attributes:
        record_wrong: probability that the record is wrong, float ``[N]``.
        direction: the likelier error, :data:`MISSING` or :data:`EXTRA` ``[N]``.
        units_off: expected true count minus the recorded one, in items, float ``[N]``; below 0 if items are missing.
    """

    record_wrong: np.ndarray
    direction: np.ndarray
    units_off: np.ndarray


@dataclass(frozen=True)
class RecordJudge:
    """Judge of stock records by the distributions of one model.

    Attributes:
        counts: the support of the model, ascending ``[K]``.
        training_shares: shares of the counts that the model was trained on ``[K]``, see :func:`training_shares`.
        error_rate: share of wrong records before any photo is seen, above 0 and below 1.
        spread: see :data:`SPREAD`; above 0, at most 1.
        stock_shares: shares of the counts in the stock ``[K]``; empty: ``training_shares``.

    Raises:
        ValueError: a number is out of its range, or the lengths differ.
    """

    counts: tuple[int, ...]
    training_shares: tuple[float, ...]
    error_rate: float = ERROR_RATE
    spread: float = SPREAD
    stock_shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.error_rate < 1 or not 0 < self.spread <= 1:
            raise ValueError("error_rate is not between 0 and 1, or spread is not above 0 and at most 1")
        for shares in (self.training_shares, self.stock_shares or self.training_shares):
            if len(shares) != len(self.counts) or not all(share > 0 for share in shares):
                raise ValueError("training_shares or stock_shares are not positive numbers, one for each count")

    @classmethod
    def of(cls, stored: Mapping[str, Any], counts: Sequence[int]) -> "RecordJudge":
        """Judge with the settings that :meth:`stored` returned; raises :class:`TypeError` on others."""
        shares = tuple(stored["training_shares"]), tuple(stored.get("stock_shares", ()))
        return cls(tuple(counts), shares[0], stored["error_rate"], stored["spread"], shares[1])

    @classmethod
    def of_model(
        cls, description: Mapping[str, Any], error_rate: float = ERROR_RATE, spread: float = SPREAD
    ) -> "RecordJudge":
        """Judge by the model of a checkpoint, with its metadata, for a stock with the counts of the training photos."""
        counts, photos = tuple(description["counts"]), description["train_counts"]
        # By weights of the loss, or by drawing all counts equally often; earlier checkpoints do not say the latter.
        balanced = description["model"].get("class_weights") == "balanced" or description.get("balanced", False)
        shares = training_shares(photos, counts, balanced=balanced)
        return cls(counts, shares, error_rate, spread, training_shares(photos, counts))

    def for_stock(self, recorded: Sequence[int]) -> "RecordJudge":
        """Return the judge for the stock of these records, whose shares of counts are those most likely to give them.

        By expectation maximisation (Dempster, Laird and Rubin 1977), smoothed by the shares so far as by some records.

        Args:
            recorded: counts of the records, of the support, ``[N]``.
        """
        before = np.array(self.stock_shares or self.training_shares)
        shares, given = before, np.exp(self._log_recorded(np.array(self.counts)))  # [recorded, true]
        numbers = np.bincount(np.searchsorted(self.counts, np.asarray(recorded, dtype=int)), minlength=len(before))
        for _ in range(_STEPS):
            true = given * shares
            shares = numbers @ (true / true.sum(1, keepdims=True)) + _SMOOTHING * before
            shares = shares / shares.sum()
        return replace(self, stock_shares=tuple(shares.tolist()))

    def stored(self) -> dict[str, Any]:
        """Settings for ``model.json``."""
        shares = {"training_shares": list(self.training_shares), "stock_shares": list(self.stock_shares)}
        return {"error_rate": self.error_rate, "spread": self.spread, **shares}

    def judge(self, probabilities: Any, recorded: Any) -> Verdicts:
        """Judge records.

        Args:
            probabilities: distributions of the model for the photos, float ``[N, K]``.
            recorded: counts of the records, of the support, int ``[N]``.

        Raises:
            ValueError: a recorded count is not of the support.
        """
        counts, recorded = np.array(self.counts), np.asarray(recorded, dtype=int)
        posterior = self.posterior(probabilities, recorded)
        away = counts - recorded[:, None]
        fewer, more = ((posterior * side).sum(1) for side in (away < 0, away > 0))
        return Verdicts(
            record_wrong=np.minimum(fewer + more, 1.0),
            direction=np.where(fewer > more, MISSING, EXTRA),
            units_off=(posterior * away).sum(1),
        )

    def posterior(self, probabilities: Any, recorded: np.ndarray) -> np.ndarray:
        """Distributions over the true counts given photo and record, float ``[N, K]``; arguments of :meth:`judge`."""
        with np.errstate(divide="ignore"):  # a count that the model rules out stays ruled out
            logarithms = np.log(np.asarray(probabilities, dtype=float).reshape(-1, len(self.counts)))
        base_rates = np.log(self.stock_shares or self.training_shares) - np.log(self.training_shares)
        logarithms = logarithms + base_rates + self._log_recorded(recorded)
        posterior = np.exp(logarithms - logarithms.max(1, keepdims=True))
        return posterior / posterior.sum(1, keepdims=True)

    def _log_recorded(self, recorded: np.ndarray) -> np.ndarray:
        """Logarithm of the probability of the recorded count given each true one, float ``[N, K]``."""
        counts = np.array(self.counts)
        if unknown := set(recorded.tolist()) - set(self.counts):
            raise ValueError(f"the model does not know the count {min(unknown)}")
        if len(counts) == 1:
            return np.zeros((len(recorded), 1))
        distance = np.abs(counts[:, None] - counts)
        shares = (distance - 1) * np.log(self.spread)
        np.fill_diagonal(shares, -np.inf)
        largest = shares.max(1, keepdims=True)
        shares -= largest + np.log(np.exp(shares - largest).sum(1, keepdims=True))
        table = shares + np.log(self.error_rate)  # a row for each true count
        np.fill_diagonal(table, np.log1p(-self.error_rate))
        return table.T[np.searchsorted(counts, recorded)]


def training_shares(photos: Mapping[int, int], counts: Sequence[int], *, balanced: bool = False) -> tuple[float, ...]:
    """Shares of the counts that a model's distributions take for granted, smoothed by one photo per count.

    Args:
        photos: of each count in training.
        counts: the support, ascending.
        balanced: training showed all counts alike; the shares are equal then.
    """
    numbers = np.array([1.0 if balanced else photos.get(count, 0) + 1.0 for count in counts])
    return tuple((numbers / numbers.sum()).tolist())
