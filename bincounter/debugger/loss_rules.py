"""Rules on losses and counts: loss not decreasing, overfit, overtraining, class imbalance."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bincounter.debugger.rule import Finding, Rule
from bincounter.debugger.tensor_records import EpochRecord, StepRecord


class LossNotDecreasing(Rule):
    """The mean training loss of ``num_steps`` steps is not lower than the mean of the ``num_steps`` before them.

    SageMaker's rule compares two single losses, which differ by chance from batch to batch.
    """

    name = "loss_not_decreasing"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self._last = -1
        self._from = 0
        self._total, self._steps = 0.0, 0
        self._before: float | None = None

    def step(self, record: StepRecord) -> Finding | None:
        """Add the loss since the last record; compare after enough steps."""
        steps = record.step - self._last
        self._last = record.step
        self._total += record.train_loss * steps
        self._steps += steps
        if self._steps < self._settings["num_steps"]:
            return None
        mean, before, start = self._total / self._steps, self._before, self._from
        self._before, self._total, self._steps, self._from = mean, 0.0, 0, record.step + 1
        if before is None or not math.isfinite(mean - before):  # left to exploding_tensor
            return None
        self.judged = True
        wanted = self._settings["diff_percent"]
        if mean <= before * (1 - wanted / 100) or before == 0:
            return None
        return Finding(
            f"the mean training loss of steps {start} to {record.step} is {mean:.4g}, that of as many steps before "
            f"{before:.4g}: it changed by {100 * (mean - before) / before:+.2g} %, and -{wanted:g} % is required",
            "Raise model.optimizer.lr if the loss never fell, lower it if it jumps; if it fell before, this model "
            "learns nothing more at this rate",
        )


class Overfit(Rule):
    """The validation loss is far above the training loss of its epoch, in consecutive validations."""

    name = "overfit"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self._in_a_row = 0

    def epoch(self, record: EpochRecord) -> Finding | None:
        """Compare the epoch's two losses."""
        if record.val_loss is None or record.step < self._settings["start_step"]:
            return None
        self.judged = True
        ratio = (record.val_loss - record.epoch_loss) / max(record.epoch_loss, 1e-12)
        self._in_a_row = self._in_a_row + 1 if ratio > self._settings["ratio_threshold"] else 0
        if self._in_a_row < self._settings["patience"]:
            return None
        return Finding(
            f"the validation loss {record.val_loss:.4g} is {100 * ratio:.0f} % above the training loss "
            f"{record.epoch_loss:.4g}, more than {100 * self._settings['ratio_threshold']:g} %, in "
            + ("this validation" if self._in_a_row == 1 else f"{self._in_a_row} validations in a row"),
            "Use more photos, stronger data.augmentation, model.head.dropout or weight decay, fewer trained layers "
            "(model.trained=last_stages), or stop earlier (callbacks=[default,early_stopping])",
        )


class Overtraining(Rule):
    """Neither the training nor the validation loss has improved for some time."""

    name = "overtraining"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self._best = {"train": math.inf, "validation": math.inf}
        self._since = {"train": 0, "validation": 0}
        self._validations = 0

    def epoch(self, record: EpochRecord) -> Finding | None:
        """Compare both losses with the best so far."""
        if record.val_loss is None or not math.isfinite(record.val_loss + record.epoch_loss):
            return None  # not validated, or left to exploding_tensor
        for side, loss in (("train", record.epoch_loss), ("validation", record.val_loss)):
            better = loss < self._best[side] - self._settings["delta"]
            self._since[side] = 0 if better else self._since[side] + 1
            self._best[side] = loss if better else self._best[side]
        patience = {side: self._settings[f"patience_{side}"] for side in self._since}
        self._validations += 1
        self.judged = self._validations > max(patience.values())  # the first is the best so far
        if any(self._since[side] < patience[side] for side in patience):
            return None
        return Finding(
            f"for {self._since['train']} validations the training loss has not been {self._settings['delta']:g} below "
            f"{self._best['train']:.4g}, nor for {self._since['validation']} the validation loss below "
            f"{self._best['validation']:.4g}",
            "Further epochs gain nothing at this learning rate: stop here (action=stop, or "
            "callbacks=[default,early_stopping]), or plan fewer with trainer.max_epochs",
        )


class ClassImbalance(Rule):
    """Some counts have a much larger weight in training than others, or rare ones are mostly counted wrong.

    The weight of a count is its number of photos in training batches, times its factor of ``model.class_weights``:
    ``data.balanced=true`` and ``model.class_weights=balanced`` even it out.
    """

    name = "class_imbalance"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self._wrong_in_a_row: dict[int, int] = {}

    def epoch(self, record: EpochRecord) -> Finding | None:
        """Compare the counts, after enough photos."""
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
        """Find an underrepresented count that is counted wrong in ``patience`` consecutive validations."""
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
