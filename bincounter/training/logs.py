"""Logs of a run, continued row for row on resuming."""

import csv
import logging
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from bincounter.config.checks import METRICS
from bincounter.files import atomic_write
from bincounter.progress import StepProgress

log = logging.getLogger(__name__)


class MetricsCsv(Logger):
    """Metrics in ``<folder>/metrics.csv``, one row per call, with the columns ``epoch`` and ``step`` first.

    Lightning's CSVLogger deletes the file when a run is resumed. Here :class:`TrainingLog` stores the rows in the
    checkpoint, and only later ones, which the resumed run writes again, are dropped.

    Args:
        folder: folder of the file.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self._path = Path(folder) / "metrics.csv"
        self._rows: list[dict[str, Any]] = []
        self._columns = ["epoch", "step"]
        self._written = 0  # rows in the file; -1 if its columns have changed

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """Empty: a run's folder has one file."""
        return ""

    def __len__(self) -> int:
        """Number of rows so far."""
        return len(self._rows)

    def state_dict(self) -> dict[str, Any]:
        """Return all rows: a copied checkpoint may lie beside an older file, or none."""
        return {"columns": list(self._columns), "rows": [dict(row) for row in self._rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the rows of :meth:`state_dict`; later rows of the file are written again."""
        self._columns, self._rows = list(state_dict["columns"]), list(state_dict["rows"])
        self._written = -1

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row; ``step`` counts optimizer steps."""
        row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        row["step"] = step
        new = sorted(set(row) - set(self._columns))
        if new:
            self._columns += new
            self._written = -1
        self._rows.append(row)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml holds the hyperparameters."""

    @rank_zero_only
    def save(self) -> None:
        """Write the rows missing from the file."""
        if self._written == len(self._rows):
            return
        if self._written <= 0:
            with atomic_write(self._path) as file:
                self._write(file, self._rows, header=True)
        else:
            with self._path.open("a", encoding="utf-8", newline="") as file:
                self._write(file, self._rows[self._written :], header=False)
        self._written = len(self._rows)

    def _write(self, file: Any, rows: list[dict[str, Any]], *, header: bool) -> None:
        writer = csv.DictWriter(file, self._columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the last rows."""
        self.save()


_RUNS_OF_THEIR_OWN = ("MlflowLogger", "WandbLogger")
"""Loggers whose runs lie elsewhere, and are continued when a training is resumed."""


class TrainingLog(L.Callback):
    """Logs training loss and learning rate; its state continues the logs on resuming.

    Lightning logs a step after its checkpoint is written, and does not store the running mean of an epoch: both would
    differ after a resume.

    Args:
        log_every_n_steps: optimizer steps between two rows of ``train/loss`` (mean over the photos since the last row;
            under DDP those of the first rank) and ``lr``. The end of an epoch adds ``train/loss_epoch``.
    """

    def __init__(self, log_every_n_steps: int) -> None:
        self._every = log_every_n_steps
        self._epoch, self._recent = PhotoMean(), PhotoMean()
        self._csv: MetricsCsv | None = None
        self._loggers: list[Logger] = []
        self._step, self._validated = 0, False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the CSV logger, and loggers with runs of their own."""
        self._csv = next((logger for logger in trainer.loggers if isinstance(logger, MetricsCsv)), None)
        self._loggers = [logger for logger in trainer.loggers if type(logger).__name__ in _RUNS_OF_THEIR_OWN]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the step, which is not 0 in a resumed run."""
        self._step = trainer.global_step

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that the epoch has scores."""
        self._validated = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch's loss; log every few optimizer steps."""
        photos = len(batch["count"])
        loss = outputs["loss"].detach() * trainer.accumulate_grad_batches  # Lightning divides the loss
        self._epoch.add(loss, photos)
        self._recent.add(loss, photos)
        stepped = trainer.global_step != self._step  # not after every batch with trainer.accumulate_grad_batches
        self._step = trainer.global_step
        if stepped and trainer.global_step % self._every == 0:
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            self._log(trainer, {"train/loss": self._recent.take(), "lr": rate})

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the mean over the epoch, and the epoch's scores in a line that programs parse, too."""
        loss = self._epoch.take()
        self._log(trainer, {"train/loss_epoch": loss})
        logged = {f"val/{name}" for name in METRICS} & trainer.callback_metrics.keys() if self._validated else set()
        self._validated = False  # callback_metrics keeps the scores of earlier epochs
        scores = {name: float(trainer.callback_metrics[name]) for name in sorted(logged)}
        line = " ".join(f"{name}={value:.6g}" for name, value in {"train/loss": loss, **scores}.items())
        if trainer.is_global_zero:
            short = f"{_epoch_of(trainer)}: training loss {loss:.3f}"  # less than 80 columns, for the screen
            if scores:
                short += f"; validation: {100 * scores['val/accuracy']:.1f} % right, cross entropy "
                short += f"{scores['val/cross_entropy']:.3f}"
            log.info("epoch %d of %s: %s", trainer.current_epoch + 1, trainer.max_epochs, line, extra={"short": short})

    def _log(self, trainer: L.Trainer, metrics: dict[str, float]) -> None:
        for logger in trainer.loggers:
            # Counted from 0, like the steps of Lightning's own metrics.
            logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Flush the logs: the files must not be older than the checkpoint."""
        for logger in trainer.loggers:
            logger.save()

    def state_dict(self) -> dict[str, Any]:
        """Return the running means, the rows logged so far, and the ids of the loggers' runs."""
        csv = None if self._csv is None else self._csv.state_dict()
        runs = {type(logger).__name__: logger.version for logger in self._loggers}
        return {"epoch": self._epoch.state_dict(), "recent": self._recent.state_dict(), "csv": csv, "runs": runs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`."""
        self._epoch.load_state_dict(state_dict["epoch"])
        self._recent.load_state_dict(state_dict["recent"])
        if self._csv is not None and state_dict["csv"] is not None:
            self._csv.load_state_dict(state_dict["csv"])


class EpochProgress(ProgressBar):
    """Progress bar of an epoch on stderr, replaced by the line of :class:`TrainingLog` at its end."""

    def __init__(self) -> None:
        super().__init__()
        self._steps = StepProgress()
        self._shown = True
        self._epoch = -1

    def disable(self) -> None:
        """Hide progress; called by Lightning on all processes but the first."""
        self._shown = False

    def enable(self) -> None:
        """Show progress again."""
        self._shown = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin the bar of an epoch, at its first batch or at that of a resume."""
        if self._shown and self._epoch != trainer.current_epoch:
            self._epoch = trainer.current_epoch
            self._steps.start(_epoch_of(trainer), int(trainer.num_training_batches))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the batch and its loss."""
        if self._shown and self._steps.is_due:
            loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
            self._steps.show(batch_idx + 1, f"loss {loss:.3f}")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the bar of a validation."""
        if self._shown:
            batches = trainer.num_val_batches
            total = sum(batches) if isinstance(batches, list) else batches
            self._steps.start(f"{_epoch_of(trainer)}, validation", int(total))

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show the batch."""
        if self._shown and self._steps.is_due:
            self._steps.show(batch_idx + 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the bar."""
        self._steps.stop()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove the bar of an unfinished epoch."""
        self._steps.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Remove the bar."""
        self._steps.stop()


def _epoch_of(trainer: L.Trainer) -> str:
    return f"Epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"


class PhotoMean:
    """Running mean over photos, on the device: adding to it does not synchronise."""

    def __init__(self) -> None:
        self._total: Tensor = torch.zeros(())
        self._photos = 0

    def add(self, value: Tensor, photos: int) -> None:
        """Add the mean ``value`` of ``photos`` photos."""
        self._total = self._total.to(value.device) + value.float() * photos
        self._photos += photos

    def absorb(self, other: Self) -> None:
        """Add the photos of ``other``, and reset it."""
        self._total = self._total.to(other._total.device) + other._total
        self._photos += other._photos
        other.clear()

    def mean(self) -> Tensor:
        """Return the mean so far, ``float32`` on the device; 0 without photos."""
        return self._total / max(self._photos, 1)

    def take(self) -> float:
        """Return the mean so far, and reset it."""
        mean = float(self._total) / max(self._photos, 1)
        self.clear()
        return mean

    def clear(self) -> None:
        """Reset the mean."""
        self._total, self._photos = torch.zeros_like(self._total), 0

    def state_dict(self) -> dict[str, Any]:
        """Return the sum and the number of photos."""
        return {"total": float(self._total), "photos": self._photos}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`; in checkpoints of older versions the sum is a tensor."""
        self._total, self._photos = torch.tensor(float(state["total"])), state["photos"]
