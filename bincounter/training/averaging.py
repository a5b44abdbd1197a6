"""Exponential moving average of the weights, for fits of any length and on any device."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from bincounter.errors import ConfigError


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
        super().__init__(multi_avg_fn=self._update)  # Lightning's closure cannot be sent to spawned processes
        self._decay, self._every, self._warms_up = decay, update_every_n_steps, True

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Create the average on the device of the fit.

        Raises:
            ConfigError: the fit ends before the second update: the average would be the weights of its first step.
        """
        steps = getattr(pl_module, "total_steps", None)
        resumed_or_tried = trainer.ckpt_path or trainer.fast_dev_run  # type: ignore[attr-defined]
        if steps is not None and 1 < self._every >= steps and not resumed_or_tried:
            raise ConfigError(
                f"callbacks.ema.update_every_n_steps={self._every} leaves the average at the first of {steps} steps: "
                "lower it"
            )
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return True after every n-th optimizer step."""
        return step_idx is not None and step_idx % self._every == 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {**super().state_dict(), "warms_up": self._warms_up}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume; a fit that began with Lightning's callback ends as it would have."""
        super().load_state_dict(state_dict)
        self._warms_up = state_dict.get("warms_up", False)

    @torch.no_grad()
    def _update(self, average: Any, current: Any, updates: Tensor | int) -> None:
        """Update tensors of one device and dtype in place."""
        n = int(updates)
        decay = min(self._decay, (1 + n) / (10 + n)) if self._warms_up else self._decay
        if average[0].is_floating_point():
            torch._foreach_lerp_(average, current, 1 - decay)
        else:  # counters of batches, rounded down
            torch._foreach_copy_(average, [a * decay + c * (1 - decay) for a, c in zip(average, current, strict=True)])
