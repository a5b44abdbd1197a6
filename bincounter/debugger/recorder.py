"""Callback ``TensorRecorder``, which records losses, gradients, weights and activations."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from bincounter.debugger.tensor_records import VALUES, EpochRecord, Record, RecordFiles, StepRecord, Table, read_records
from bincounter.debugger.tensor_statistics import STATISTICS, ActivationHooks, Blocks
from bincounter.errors import ConfigError
from bincounter.model.counter import BinCounter
from bincounter.model.scores import MacroF1
from bincounter.training.checkpoint import optimizer_steps_after
from bincounter.training.logs import PhotoMean


class RecordReceiver(Protocol):
    """Receiver of records; called on all processes of a run, with ``None`` on all but the first."""

    def begin(self, trainer: L.Trainer, records: Iterator[Record] | None) -> None:
        """Receive the records of the resumed run."""

    def judge(self, trainer: L.Trainer, record: Record | None) -> None:
        """Receive a new record."""


class TensorRecorder(L.Callback):
    """Records losses, gradients, weights and activations of every few optimizer steps in ``RUN/debugger``.

    Gradients are of the whole step, unscaled and before clipping; weights are after the update; activations are of the
    step's last batch. Under DDP the first process records losses and activations of its own photos, and the gradients
    and weights that all processes share. Parameters that are not trained are skipped, and activations of a frozen
    backbone with cached features.

    The class name is a key in checkpoints.

    Args:
        folder: ``RUN/debugger``.
        settings: the node ``debugger``, with ``every_n_train_steps``, ``layers`` and ``rules``.
        watch: receiver of every record.
    """

    profiler_phase = "debugger"

    def __init__(self, folder: Path, settings: Mapping[str, Any], watch: RecordReceiver) -> None:
        self._every = settings["every_n_train_steps"]
        self._patterns = [re.compile(pattern) for pattern in settings["layers"]]
        self._bounds, self._watch = settings["rules"], watch
        self._files, self._step = RecordFiles(folder), 0
        self._hooks: ActivationHooks | None = None
        self._layers: set[str] = set()
        self._layouts: dict[str, tuple[tuple[str, ...], Blocks]] = {}
        self._step_loss, self._recent, self._epoch = PhotoMean(), PhotoMean(), PhotoMean()
        self._trained: Tensor | None = None
        self._confusion: np.ndarray | None = None
        self._due = self._recording = self._first = self._validated = False
        self._gradients: tuple[tuple[str, ...], Tensor] | None = None
        self._before: tuple[tuple[str, ...], Tensor] | None = None

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the checkpoint's step, also if it has no state of a recorder for :meth:`load_state_dict`."""
        self._step = checkpoint["global_step"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Truncate the files to the checkpoint's step.

        Raises:
            ConfigError: ``debugger.layers`` matches no layer with weights or activations.
        """
        self._first = trainer.is_global_zero
        names = [name for name, _ in pl_module.named_modules() if name]
        self._layers = {name for name in names if any(pattern.search(name) for pattern in self._patterns)}
        hooks = ActivationHooks(pl_module, [name for name in names if name in self._layers], self._bounds)
        if not hooks.measures and not any(_owner(name) in self._layers for name, _ in pl_module.named_parameters()):
            patterns = ",".join(pattern.pattern for pattern in self._patterns)
            problem = "matches no layer" if not self._layers else "matches no layer with weights or activations"
            outer = [name for name in names if name.count(".") <= 1 and not name.startswith("val_")][:12]
            raise ConfigError(f"debugger.layers=[{patterns}] {problem}; layers are {', '.join(outer)}")
        if self._first:
            self._hooks = hooks
            self._files.begin(self._step)
        self._watch.begin(trainer, read_records(self._files.folder) if self._first else None)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Attach the hooks if the batch is the last one of a recorded step."""
        self._gradients = self._before = None
        self._due = trainer.global_step % self._every == 0
        self._recording = self._due and optimizer_steps_after(trainer)
        if self._recording and self._hooks is not None:
            self._hooks.attach()

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Detach the hooks: activations recomputed for the backward pass are not recorded."""
        if self._hooks is not None:
            self._hooks.detach()

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Compute the gradients' statistics, and copy the weights before the update.

        Sharpness-aware minimisation calls this again, with weights that it has moved.
        """
        if not (self._recording and self._first) or self._before is not None:
            return
        trained = self._parameters(pl_module)
        gradients = {
            name: parameter.grad
            for name, parameter in trained.items()
            if parameter.grad is not None and not parameter.grad.is_sparse
        }
        if gradients:
            layout = self._layout("gradient", gradients)
            self._gradients = tuple(gradients), layout.statistics(layout.matrix(list(gradients.values())))
        if trained:
            self._before = tuple(trained), self._layout("weight", trained).matrix(list(trained.values()))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch to the means, and record a due step."""
        if self._first:
            # Lightning divides the loss by the number of batches in a step.
            self._count(pl_module, batch["count"], outputs["loss"].detach() * trainer.accumulate_grad_batches)
        if self._recording:
            self._recording = False
            record = self._step_record(trainer, pl_module) if self._first else None
            self._add(trainer, record)
        if optimizer_steps_after(trainer):
            self._step_loss.clear()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy the confusion matrix, which the metrics reset after validation."""
        if self._first and not trainer.sanity_checking:
            metric = next(each for each in pl_module.modules() if isinstance(each, MacroF1))
            self._confusion = metric.confusion.cpu().numpy()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that this epoch has a validation loss."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the epoch, before RunCheckpoint stores the position of the record."""
        record = self._epoch_record(trainer, pl_module) if self._first else None
        self._validated = False
        self._add(trainer, record)

    def state_dict(self) -> dict[str, Any]:
        """Return the running means, the photos seen, and the ends of the files."""
        return {
            "recent": self._recent.state_dict(),
            "epoch": self._epoch.state_dict(),
            "apart": True,
            "trained": None if self._trained is None else self._trained.tolist(),
            "files": self._files.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`."""
        self._recent.load_state_dict(state_dict["recent"])
        self._epoch.load_state_dict(state_dict["epoch"])
        if not state_dict.get("apart"):  # an earlier version added the recent photos to the epoch later
            before = PhotoMean()
            before.load_state_dict(state_dict["recent"])
            self._epoch.absorb(before)
        self._trained = None if state_dict["trained"] is None else torch.tensor(state_dict["trained"])
        self._files.load_state_dict(state_dict["files"])

    def _add(self, trainer: L.Trainer, record: Record | None) -> None:
        if record is not None:
            self._files.add(record)
        self._watch.judge(trainer, record)

    def _count(self, pl_module: L.LightningModule, count: Tensor, loss: Tensor) -> None:
        """Add a batch's loss and labels, without synchronising."""
        self._recent.add(loss, len(count))
        self._epoch.add(loss, len(count))
        if self._due:
            self._step_loss.add(loss, len(count))
        assert isinstance(pl_module, BinCounter)
        seen = (count[:, None] == pl_module.objective.support).sum(0)
        self._trained = seen if self._trained is None else self._trained.to(seen.device) + seen

    def _parameters(self, pl_module: L.LightningModule) -> dict[str, Tensor]:
        """Return trained parameters of the recorded layers."""
        return {
            name: parameter
            for name, parameter in pl_module.named_parameters()
            if parameter.requires_grad and parameter.numel() and _owner(name) in self._layers
        }

    def _layout(self, kind: str, tensors: Mapping[str, Tensor]) -> Blocks:
        """Return the block layout of tensors, built again if other parameters are trained."""
        names = tuple(tensors)
        known = self._layouts.get(kind)
        if known is None or known[0] != names:
            known = self._layouts[kind] = names, Blocks(list(tensors.values()))
        return known[1]

    @torch.no_grad()
    def _step_record(self, trainer: L.Trainer, pl_module: L.LightningModule) -> StepRecord:
        assert self._hooks is not None
        pieces = [torch.stack([self._step_loss.mean(), self._recent.mean()])]
        if self._gradients is not None:
            pieces.append(self._gradients[1].flatten())
        if self._before is not None:
            names, before = self._before
            pieces.append(self._weights(pl_module, names, before).flatten())
        activations, modules, measured = self._hooks.take()
        wide = pieces[-1].dtype
        values = torch.cat([piece.to(wide) for piece in (*pieces, *measured)])
        ends = np.cumsum([piece.numel() for piece in (*pieces, *measured)])
        host = iter(np.split(values.cpu().numpy().astype(np.float32), ends))  # the only synchronisation
        losses = next(host)
        tables = {}
        if self._gradients is not None:
            tables["gradient"] = _table(self._gradients[0], next(host).reshape(-1, len(STATISTICS)))
        if self._before is not None:
            tables["weight"] = _table(self._before[0], next(host).reshape(-1, len(STATISTICS) + 1))
        if activations:
            each = np.stack(list(host)[: len(activations)])
            tables["activation"] = _table(activations, np.insert(each, len(STATISTICS), np.nan, axis=1), modules)
        self._gradients = self._before = None
        self._recent.clear()
        return StepRecord(trainer.current_epoch, trainer.global_step - 1, float(losses[0]), float(losses[1]), tables)

    def _weights(self, pl_module: L.LightningModule, names: Sequence[str], before: Tensor) -> Tensor:
        """Return statistics of the weights and the update ratio, ``float[N, 9]``; ``before`` is overwritten."""
        layout = self._layouts["weight"][1]
        parameters = dict(pl_module.named_parameters())
        after = layout.matrix([parameters[name] for name in names])
        norms = layout.norms(before)
        updates = layout.norms(before.sub_(after))
        ratio = torch.where(updates == 0, updates, updates / norms)  # infinite if all weights were zero
        return torch.cat([layout.statistics(after), ratio[:, None]], dim=1)

    def _epoch_record(self, trainer: L.Trainer, pl_module: L.LightningModule) -> EpochRecord:
        assert isinstance(pl_module, BinCounter)
        loss = np.float32(self._epoch.take())
        size = len(pl_module.counts)  # further counts are learnt with data.learn_above, but never answered
        seen = np.zeros(size, dtype=int) if self._trained is None else self._trained[:size].cpu().numpy()
        confusion = self._confusion if self._validated and self._confusion is not None else np.zeros((len(seen),) * 2)
        value = trainer.callback_metrics.get("val/loss") if self._validated else None
        return EpochRecord(
            epoch=trainer.current_epoch,
            step=trainer.global_step - 1,
            epoch_loss=float(loss),
            val_loss=None if value is None else float(np.float32(value.item())),
            counts=np.array(pl_module.counts),
            weights=pl_module.class_weights[:size].float().cpu().numpy(),
            trained=seen,
            validated=confusion.sum(1).astype(int),
            right=confusion.diagonal().astype(int),
        )


def _owner(parameter: str) -> str:
    """Return the name of the module that holds a parameter."""
    return parameter.rpartition(".")[0]


def _table(names: Sequence[str], values: np.ndarray, modules: Sequence[str] = ()) -> Table:
    """Make a table, with NaN in missing columns."""
    missing = np.full((len(values), len(VALUES) - values.shape[1]), np.nan, np.float32)
    return Table(names, list(modules) or [""] * len(names), np.concatenate([values, missing], axis=1))
