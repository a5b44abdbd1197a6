"""The rule on how often counts occur."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bincounter.inspect.rules.rule import Finding, Rule
from bincounter.inspect.tensors.record import EpochRecord


class ClassImbalance(Rule):
    """Some counts are seen much more often in training than others, or rare ones are mostly counted wrong.

    What is compared is how much counts weigh in the loss: photos in training batches, times the weights of
    ``model.class_weights``. So ``data.balanced=true`` and ``model.class_weights=balanced`` settle it.
    """

    name = "class_imbalance"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self._wrong_in_a_row: dict[int, int] = {}

    def epoch(self, record: EpochRecord) -> Finding | None:
        """Compare counts once enough photos were seen."""
        if not len(record.counts) or record.trained.sum() < self._settings["samples"]:
            return None
        self.judged = True
        weight = record.trained * record.weights.astype(float)
        return self._rare(record, weight) or self._wrong(record, weight)

    def _rare(self, record: EpochRecord, weight: np.ndarray) -> Finding | None:
        low, high = int(np.argmin(weight)), int(np.argmax(weight))
        bound = self._settings["threshold_imbalance"]
        if weight[high] <= bound * weight[low]:
            return None
        times = f"{weight[high] / weight[low]:.3g} times as much" if weight[low] else "which was never seen"
        return Finding(
            f"count {record.counts[high]} weighs {weight[high]:.4g} photos in training so far and count "
            f"{record.counts[low]} {weight[low]:.4g}, {times}, where {bound:g} is the bound",
            "Even the counts out with data.balanced=true or model.class_weights=balanced, or leave rare ones out with "
            "data.counts",
        )

    def _wrong(self, record: EpochRecord, weight: np.ndarray) -> Finding | None:
        """An underrepresented count that has been counted wrong, in every validation for ``patience`` of them."""
        seen = record.validated >= self._settings["photos"]
        wrong = 1 - record.right / np.maximum(record.validated, 1)
        rare = weight < self._settings["threshold_rare"] * weight.mean()
        if record.val_loss is None:
            return None
        bad = np.flatnonzero(seen & rare & (wrong > self._settings["threshold_misprediction"]))
        self._wrong_in_a_row = {int(index): self._wrong_in_a_row.get(int(index), 0) + 1 for index in bad}
        for index, validations in self._wrong_in_a_row.items():
            if validations >= self._settings["patience"]:
                return Finding(
                    f"{100 * wrong[index]:.0f} % of the {record.validated[index]} validation photos with count "
                    f"{record.counts[index]} are counted wrong in {validations} validations running, and it has only "
                    f"{100 * weight[index] / weight.sum():.1f} % of the weight in training, less than "
                    f"{self._settings['threshold_rare']:g} of an even share",
                    "Even the counts out with data.balanced=true or model.class_weights=balanced, or add photos with "
                    "that count",
                )
        return None
