"""Tells smdebug's hook of a run's batches: training, validation, and the scoring of the test photos."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from smdebug.pytorch import modes
from torch import Tensor

from bincounter.inspect.smdebug.hook import BatchHook, open_hook
from bincounter.model.counter import BinCounter


class SmdebugCallback(L.Callback):
    """Saves losses, gradients, weights and more by smdebug; under DDP those of the first process.

    A run that is gone on with also goes on with its tensors: where the checkpoint was taken, the hook's counts are in
    it, and what was saved later is taken back.

    Args:
        debugger: the settings as plain containers, see :class:`bincounter.config.smdebug.SmdebugConfig`.
        folder: of the run.
    """

    def __init__(self, debugger: Mapping[str, Any], folder: Path) -> None:
        self._debugger, self._folder = debugger, folder
        self._hook: BatchHook | None = None
        self._state: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """How far the hook has counted."""
        return {"hook": self._hook.state() if self._hook else self._state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` told."""
        self._state = state_dict["hook"]

    def _watch(self, model: BinCounter) -> BatchHook:
        if self._hook is None:
            self._hook = open_hook(self._debugger, self._folder, self._state)
        self._hook.register(model, model.head)
        return self._hook

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the hook."""
        if trainer.is_global_zero:
            self._watch(pl_module)  # type: ignore[arg-type]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a step; weights are saved as they are before it."""
        if self._hook:
            self._hook.begin(pl_module, modes.TRAIN)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save the loss."""
        if self._hook:  # Lightning has divided the loss
            self._hook.end(lambda: outputs["loss"] * trainer.accumulate_grad_batches)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin a step."""
        if self._hook:
            self._hook.begin(pl_module, modes.EVAL)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save the loss."""
        self._end(pl_module, batch["count"])  # type: ignore[arg-type]

    def _end(self, model: BinCounter, count: Tensor) -> None:
        hook = self._hook
        if hook:
            hook.end(lambda: None if hook.outputs is None else model.losses(hook.outputs, count).mean())

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave whole files behind."""
        self.on_scoring_end()

    def on_scoring_start(self, model: BinCounter, side: str) -> None:
        """The test photos are scored by the best model, which is not the one that was trained last."""
        if side == "test":
            self._watch(model)

    def on_scoring_batch_start(self, model: BinCounter, side: str) -> None:
        """Begin a step."""
        if self._hook and side == "test":
            self._hook.begin(model, modes.PREDICT)

    def on_scoring_batch_end(self, model: BinCounter, side: str, count: Tensor) -> None:
        """Save the loss."""
        if side == "test":
            self._end(model, count)

    def on_scoring_end(self) -> None:
        """Close the hook: what a report asks of the model is none of its business."""
        if self._hook:
            self._state = self._hook.state()
            self._hook.close()
            self._hook = None
