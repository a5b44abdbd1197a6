"""Hook of smdebug, and ``SmdebugCallback``, its Lightning callback.

smdebug needs an environment of its own (``make install-smdebug``); in others importing this module raises a
ConfigError.
"""

import atexit
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from bincounter.errors import UserError
from bincounter.files import write_json
from bincounter.model.counter import BinCounter
from bincounter.smdebug.settings import hook_config, require_smdebug

require_smdebug()
os.environ.setdefault("SMDEBUG_LOG_LEVEL", "warning")  # before the import: else it prints each parameter's size

from smdebug.core.access_layer.utils import END_OF_JOB_FILENAME  # noqa: E402
from smdebug.core.config_constants import CLAIM_FILENAME  # noqa: E402
from smdebug.pytorch import Hook, modes  # noqa: E402

log = logging.getLogger(__name__)

LOSS = "loss"  # smdebug stores it as loss_output_0, in its collection "losses"
_STEP = re.compile(r"(\d{12})_")  # prefix of the files of a step


class BatchHook(Hook):
    """smdebug hook with explicit steps, one per batch.

    smdebug itself begins a step at each call of the registered module: never on cached features, which only the head
    gets, and twice under DDP. Calls between two batches, such as those of a report, save nothing.

    Attributes:
        outputs: of :attr:`head` in the current batch, ``float[B, out_features]``.
        head: the model's head.
    """

    exported_collections: bool  # smdebug's own
    outputs: Tensor | None = None
    head: nn.Module | None = None
    _in_batch = False

    def register(self, model: nn.Module, head: nn.Module) -> None:
        """Watch a model."""
        self.register_module(model)
        self.head = head

    def begin(self, model: nn.Module, mode: modes) -> bool:
        """Begin a step; return True if any of its tensors are saved."""
        self.set_mode(mode)
        super().forward_pre_hook(model, ())
        if mode is modes.TRAIN:
            self._follow_gradients(model)
        self._in_batch = True
        return bool(self._get_collections_to_save_for_step())

    def end(self, loss: Callable[[], Tensor | None]) -> None:
        """End a step and write it to disk, before a checkpoint counts it as saved.

        Args:
            loss: returns the loss of the batch; called only if the step is saved.
        """
        if self._get_collections_to_save_for_step():
            value = loss()
            if value is not None:
                self.record_tensor_value(LOSS, value.detach())
            self._close_writers()
            if not self.exported_collections:
                self.export_collections()
                self.exported_collections = True
        self._in_batch, self.outputs = False, None

    def close(self) -> None:
        """Close the hook; later calls save nothing."""
        self._in_batch, self.outputs, self.head = False, None, None
        self.exported_collections = False  # tensors may have been added since
        super().close()
        atexit.unregister(self._cleanup)

    def forward_pre_hook(self, module: nn.Module, inputs: Any) -> None:
        """Do nothing: steps are begun by :meth:`begin`."""

    def forward_hook(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Save inputs and outputs of a module if the settings include them."""
        if not self._in_batch:
            return
        if module is self.head:
            self.outputs = outputs
        super().forward_hook(module, inputs, outputs)

    def backward_hook(self, tname: str) -> Callable[[Tensor], None]:
        """Return a function that saves the gradient of the parameter ``tname``."""
        save = super().backward_hook(tname)

        def back(gradient: Tensor) -> None:
            if self._in_batch:
                save(gradient)

        return back

    def _backward_apply(self, module: nn.Module) -> None:
        """Add no hooks on gradients yet: parameters are moved to the device before the first training batch."""
        self._followed: set[nn.Parameter] = set()

    def _follow_gradients(self, module: nn.Module) -> None:
        """Add hooks on gradients of newly trained parameters; stages may be unfrozen between epochs."""
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and parameter not in self._followed:
                self._followed.add(parameter)
                parameter.register_hook(self.backward_hook(f"{module._get_name()}_{name}"))

    def _initialize_to_last_saved_state(self) -> None:
        """Do nothing: run checkpoints hold the state; smdebug would add a file to those of a SageMaker job."""

    _write_state = _initialize_to_last_saved_state

    @staticmethod
    def _make_numpy_array(tensor_value: Any) -> Any:
        if isinstance(tensor_value, Tensor) and tensor_value.dtype == torch.bfloat16:  # unknown to numpy
            tensor_value = tensor_value.float()
        return Hook._make_numpy_array(tensor_value)

    def state(self) -> dict[str, Any]:
        """Return the step counts."""
        steps = {mode.name: step for mode, step in self.mode_steps.items()}
        return {"step": self.step, "last_saved_step": self.last_saved_step, "mode_steps": steps}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the counts of :meth:`state`."""
        self.step, self.last_saved_step = state["step"], state["last_saved_step"]
        self.mode_steps = {modes[name]: step for name, step in state["mode_steps"].items()}


def open_hook(debugger: Mapping[str, Any], folder: Path, state: Mapping[str, Any] | None) -> BatchHook:
    """Create the hook of a run.

    In a SageMaker job with a ``DebugHookConfig``, the container's copy of it replaces the settings.

    Args:
        debugger: the settings as plain containers.
        folder: the run's folder; the hook's configuration is written to its ``debugger/smdebug.json``.
        state: result of :meth:`BatchHook.state` in the checkpoint to resume from, if any.

    Raises:
        UserError: the folder of the tensors holds those of another run.
    """
    config = _container_config() or {"LocalPath": str(folder / "debugger" / "smdebug"), **hook_config(debugger)}
    tensors = Path(config["LocalPath"])
    if state is not None or tensors.is_relative_to(folder):
        rewind(tensors, -1 if state is None else state["step"])
    elif (tensors / END_OF_JOB_FILENAME).exists():
        raise UserError(f"{tensors} already has tensors of a run: give debughookconfig.json another LocalPath")
    file = folder / "debugger" / "smdebug.json"
    write_json(file, config)
    hook: BatchHook = BatchHook.create_from_json_file(str(file))
    if state is not None:
        hook.restore(state)
    return hook


def _container_config() -> dict[str, Any] | None:
    base = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
    path = Path(os.environ.get("SMDEBUG_CONFIG_FILE_PATH", base / "input" / "config" / "debughookconfig.json"))
    if not path.is_file():
        return None
    log.info("smdebug reads its settings from %s.", path)
    config = json.loads(path.read_text(encoding="utf-8"))
    return {**config, "LocalPath": config.get("LocalPath") or str(base / "output" / "tensors")}


def rewind(tensors: Path, step: int) -> None:
    """Delete the tensors saved after a checkpoint, which the resumed run saves again.

    Files that mark the run as ended or claimed are deleted, too: smdebug rejects a folder with the first, and writes
    nothing into one with the second.

    Args:
        tensors: folder of the tensors.
        step: last step to keep.
    """
    for name in (END_OF_JOB_FILENAME, CLAIM_FILENAME):
        (tensors / name).unlink(missing_ok=True)
    lost = set()
    for path in [*tensors.glob("events/*/*"), *tensors.glob("index/*/*")]:
        saved = _STEP.match(path.name)
        if saved and (int(saved[1]) > step or path.suffix == ".tmp"):
            path.unlink()
            lost.add(saved[1])
    if lost:
        log.info("Deleted the tensors of %d steps after the checkpoint; they will be saved again.", len(lost))


class SmdebugCallback(L.Callback):
    """Saves losses, gradients, weights and further tensors by smdebug; under DDP those of the first process.

    Checkpoints hold the hook's step counts; on resuming, tensors saved after the checkpoint are deleted.

    Args:
        debugger: the settings as plain containers, see :class:`bincounter.smdebug.settings.SmdebugConfig`.
        folder: the run's folder.
    """

    profiler_phase = "debugger"

    def __init__(self, debugger: Mapping[str, Any], folder: Path) -> None:
        self._debugger, self._folder = debugger, folder
        self._hook: BatchHook | None = None
        self._state: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the hook's step counts."""
        return {"hook": self._hook.state() if self._hook else self._state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`."""
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
        """Begin a step; weights are saved before its update."""
        if self._hook:
            self._hook.begin(pl_module, modes.TRAIN)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save the loss."""
        if self._hook:  # Lightning divides the loss
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
        """Close the hook, which completes its files."""
        self.on_scoring_end()

    def on_scoring_start(self, model: BinCounter, side: str) -> None:
        """Watch the best model while it scores the test photos."""
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
        """Close the hook, before the report runs the model."""
        if self._hook:
            self._state = self._hook.state()
            self._hook.close()
            self._hook = None
