"""Rules on tensors: vanishing gradients, exploding tensors, dead or saturated units, poor initialisation."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bincounter.debugger.rule import Finding, Rule, Streaks, format_tensors
from bincounter.debugger.tensor_records import EpochRecord, StepRecord, Table


class VanishingGradient(Rule):
    """The mean absolute value of a gradient is below a threshold in consecutive records."""

    name = "vanishing_gradient"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self._streaks = Streaks(settings["patience"])

    def step(self, record: StepRecord) -> Finding | None:
        """Evaluate every gradient."""
        table = record.tables.get("gradient")
        if table is None:
            return None
        self.judged = True
        means = dict(zip(table.names, table.column("abs_mean").tolist(), strict=True))
        vanished = self._streaks.add(name for name, mean in means.items() if mean < self._settings["threshold"])
        if not vanished:
            return None
        return Finding(
            f"the gradients of {len(vanished)} of {len(means)} tensors have been below {self._settings['threshold']:g} "
            f"on average for {self._settings['patience']} recorded steps: "
            + format_tensors({name: f"{means[name]:.2g}" for name in vanished}),
            "These layers learn nothing: start from pretrained weights or another initialisation, raise "
            "model.optimizer.lr, use ReLU instead of saturating activations, or normalisation and shortcuts",
        )


class ExplodingTensor(Rule):
    """A loss, a weight, an activation or a gradient holds values that are not finite."""

    name = "exploding_tensor"

    def step(self, record: StepRecord) -> Finding | None:
        """Evaluate all tensors of the step."""
        self.judged = True
        found: dict[str, str] = {}
        skipped = _not_updated(record.tables.get("weight"))
        for kind, table in record.tables.items():
            for name, share in self._exploded(table):
                # The loss scaler of fp16 provokes such gradients, and skips their steps.
                if kind != "gradient" or name not in skipped:
                    found[f"{kind} of {name}"] = f"{100 * share:.3g} %"
        return self._finding("training loss", record.batch_loss, found)

    def epoch(self, record: EpochRecord) -> Finding | None:
        """Evaluate the validation loss."""
        return None if record.val_loss is None else self._finding("validation loss", record.val_loss, {})

    def _exploded(self, table: Table) -> Iterator[tuple[str, float]]:
        exploded = table.column("nonfinite") > 0
        if self._settings["only_nan"]:
            exploded &= np.isnan(table.column("norm"))
        for index in np.flatnonzero(exploded).tolist():
            yield table.names[index], float(table.column("nonfinite")[index])

    def _finding(self, side: str, loss: float, found: dict[str, str]) -> Finding | None:
        if not np.isfinite(loss) and not (self._settings["only_nan"] and np.isinf(loss)):
            found = {side: f"{loss:g}", **found}
        if not found:
            return None
        return Finding(
            f"values are not finite: {format_tensors(found)}",
            "Lower model.optimizer.lr, clip gradients (trainer.gradient_clip_val=1), lengthen "
            "model.schedule.warmup_epochs, or train with trainer.precision=32-true",
            diverged=True,
        )


def _not_updated(weights: Table | None) -> set[str]:
    if weights is None:
        return set()
    return {weights.names[index] for index in np.flatnonzero(weights.column("update_ratio") == 0).tolist()}


class _InactiveUnits(Rule):
    """More than a fraction of a layer's units is inactive in consecutive records."""

    modules: tuple[str, ...]
    state: str
    advice: str

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self._streaks = Streaks(settings["patience"])

    def step(self, record: StepRecord) -> Finding | None:
        """Evaluate every layer of the classes :attr:`modules`."""
        table = record.tables.get("activation")
        shares = {} if table is None else self._shares(table)
        if not shares:
            return None
        self.judged = True
        threshold = self._settings["threshold_layer"]
        layers = self._streaks.add(name for name, share in shares.items() if 100 * share > threshold)
        if not layers:
            return None
        reason = (
            f"{len(layers)} of {len(shares)} layers have had more than {threshold:g} % of their units {self.state} for "
            f"{self._settings['patience']} recorded steps: "
        )
        return Finding(reason + format_tensors({name: f"{100 * shares[name]:.0f} %" for name in layers}), self.advice)

    def _shares(self, table: Table) -> dict[str, float]:
        inactive = table.column("inactive").tolist()
        rows = zip(table.names, table.modules, inactive, strict=True)
        return {name: share for name, module, share in rows if module in self.modules}


class DeadRelu(_InactiveUnits):
    """Most units of a ReLU layer are zero on nearly all photos."""

    name = "dead_relu"
    modules = ("ReLU", "ReLU6")
    state = "dead"
    advice = (
        "A dead unit gets no gradient and stays dead: lower model.optimizer.lr, check that biases do not start far "
        "below zero and that photos are normalised, or use a backbone with LeakyReLU"
    )


class SaturatedActivation(_InactiveUnits):
    """Most units of a tanh or sigmoid layer are at an end of their range on nearly all photos."""

    name = "saturated_activation"
    modules = ("Tanh", "Sigmoid")
    state = "saturated"
    advice = (
        "Saturated units pass no gradient on: start from smaller weights, normalise before the activation, lower "
        "model.optimizer.lr, or use ReLU"
    )


_SPREAD = 3.29  # from the 5th to the 95th percentile of a normal distribution, in standard deviations


class PoorWeightInitialization(Rule):
    """The loss does not fall in the first records, and activations differ widely in variance or gradients have none.

    Alone neither sign is a fault: many models that learn well show them, such as residual ones that begin as the
    identity. They count if the loss reaches no new minimum, ``diff_percent`` below the last one. Spread is the distance
    of the 5th from the 95th percentile in a normal distribution with the gradient's standard deviation.
    """

    name = "poor_weight_initialization"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self._records = 0
        self._lowest = math.inf
        self._since = 0

    def step(self, record: StepRecord) -> Finding | None:
        """Evaluate the first records."""
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
        """Return a reason if the variances of activations differ too much between layers, else ``None``."""
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
        """Return a reason if the spread of a gradient is too small, else ``None``."""
        if table is None:
            return None
        spread = _SPREAD * table.column("std")
        least = int(np.argmin(spread))
        if not spread[least] < self._settings["distribution_range"]:
            return None
        return (
            f"the gradient of {table.names[least]} has a spread of only {spread[least]:.2g}, where "
            f"{self._settings['distribution_range']:g} is the bound"
        )
