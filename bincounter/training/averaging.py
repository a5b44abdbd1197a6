"""Exponential moving average of the weights, for runs of any length and on any device."""

from functools import partial

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class EMAWeightAveraging(WeightAveraging):
    """Validate and keep an exponential moving average of the weights.

    Lightning's callback of this name keeps the share ``decay ** steps`` of the weights before training: 69 % after 370
    steps with 0.999. Here the first updates have smaller decays, ``(1 + n) / (10 + n)`` before update ``n``, as
    in TensorFlow's ``ExponentialMovingAverage``. The average is on the model's device; Lightning takes the device
    that the model has before it is moved, the CPU.

    Args:
        decay: share of the old average in the new one, 0 to 1.
        update_every_n_steps: optimizer steps between two updates.
    """

    def __init__(self, decay: float = 0.999, update_every_n_steps: int = 1) -> None:
        super().__init__(multi_avg_fn=partial(_update, decay=decay))  # a closure could not be sent to spawned processes
        self._every = update_every_n_steps

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Create the average on the device of the fit."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return True after every n-th optimizer step."""
        return step_idx is not None and step_idx % self._every == 0


@torch.no_grad()
def _update(average: list[Tensor], current: list[Tensor], updates: Tensor | int, *, decay: float) -> None:
    """Update tensors of one device and dtype in place."""
    n = int(updates)
    share = 1 - min(decay, (1 + n) / (10 + n))
    if average[0].is_floating_point():
        torch._foreach_lerp_(average, current, share)
    else:  # counters of batches
        torch._foreach_copy_(average, current)
