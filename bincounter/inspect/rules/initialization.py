"""The rule on how weights began."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bincounter.inspect.rules.rule import Finding, Rule
from bincounter.inspect.tensors.record import StepRecord, Table

_SPREAD = 3.29  # from the 5th to the 95th percentile of a normal distribution, in standard deviations


class PoorWeightInitialization(Rule):
    """In the first records the loss does not fall while layers differ wildly or gradients are all alike.

    Activations whose variances lie far apart, or gradients without spread, are no fault alone: many models that learn
    well show them, residual ones that begin as the identity among them. They are one where the loss finds no new low,
    ``diff_percent`` below the last. Spread is that of a normal distribution with the gradient's standard deviation.
    """

    name = "poor_weight_initialization"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self._records = 0
        self._lowest = math.inf
        self._since = 0

    def step(self, record: StepRecord) -> Finding | None:
        """Look at the first records."""
        if self._records >= self._settings["steps"]:
            return None
        self._records += 1
        lower = record.train_loss < self._lowest * (1 - self._settings["diff_percent"] / 100)
        self._lowest = record.train_loss if lower else self._lowest
        self._since = 0 if lower else self._since + 1
        self.judged = self.judged or self._records > self._settings["patience"]
        if self._since < self._settings["patience"] or not math.isfinite(self._lowest):
            return None
        sign = self._variances(record.tables.get("activation")) or self._spread(record.tables.get("gradient"))
        if sign is None:
            return None
        return Finding(
            f"the training loss has not come {self._settings['diff_percent']:g} % below {self._lowest:.4g} in "
            f"{self._since} recorded steps of the first, and {sign}",
            "Start from pretrained weights (model.weights), or initialise so that each layer keeps the variance of its "
            "input (Kaiming for ReLU, Xavier for tanh)",
        )

    def _variances(self, table: Table | None) -> str | None:
        """What layers say whose activations' variances lie too far apart."""
        if table is None:
            return None
        functions = [index for index, module in enumerate(table.modules) if module != "Linear"]
        chosen = functions or list(range(len(table.names)))
        variance = table.column("std")[chosen].astype(float) ** 2
        low, high = int(np.argmin(variance)), int(np.argmax(variance))
        ratio = variance[high] / variance[low] if variance[low] else math.inf
        if len(chosen) < 2 or not ratio > self._settings["threshold"]:
            return None
        return (
            f"the variance of activations is {variance[high]:.2g} in {table.names[chosen[high]]} and "
            f"{variance[low]:.2g} in {table.names[chosen[low]]}, {ratio:.3g} times as much, where "
            f"{self._settings['threshold']:g} is the bound"
        )

    def _spread(self, table: Table | None) -> str | None:
        """What gradients say that hardly differ within a tensor."""
        if table is None:
            return None
        spread = _SPREAD * table.column("std")
        least = int(np.argmin(spread))
        if not spread[least] < self._settings["distribution_range"]:
            return None
        return (
            f"the gradient of {table.names[least]} spreads over {spread[least]:.2g} only, where "
            f"{self._settings['distribution_range']:g} is the bound"
        )
