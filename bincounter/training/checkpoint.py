"""Atomic checkpoints: a killed run resumes bit for bit. Copies in ``paths.model_dir``."""

import io
import shutil
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from bincounter.data.datamodule import batch_progress
from bincounter.errors import ConfigError, UserError, unreadable
from bincounter.files import atomic_write, link
from bincounter.model.counter import BinCounter


class AtomicCheckpointIO(TorchCheckpointIO):
    """Atomic checkpoint files, read with ``weights_only=True``.

    Lightning's temporary file may be on another disk, from where it cannot be moved atomically.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``."""
        # Through memory: on a full disk torch's writer raises an error without the reason.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with atomic_write(path, "wb") as file:
            file.write(content.getbuffer())

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read ``path``, always with ``weights_only=True``.

        Raises:
            UserError: the file is truncated, or not a run's checkpoint.
        """
        # Spawned processes return their weights in a file without these keys.
        keys = _RESTORED if Path(path).name in ("best.ckpt", "last.ckpt") else ()
        return read_checkpoint(path, *keys, map_location=map_location or "cpu", mmap=False)


# Entries that Lightning restores without a check.
_RESTORED = {"state_dict": dict, "loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list}


def read_checkpoint(path: str | Path, *keys: str, mmap: bool = True, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a run's checkpoint with ``weights_only=True``.

    Args:
        path: path of the file.
        keys: required entries.
        mmap: map the file into memory, so that only the tensors used are read.
        map_location: device of the tensors.

    Raises:
        UserError: the file is truncated, or not a run's checkpoint.
        ResourceError: memory or disk failed.
    """
    try:
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
        whole = all(isinstance(content[key], _RESTORED.get(key, object)) for key in keys)
    except Exception as error:  # torch raises almost anything on a broken file
        raise (unreadable(path, error) or _broken(path)) from error
    if not whole:
        raise _broken(path)
    return content


def _broken(path: str | Path) -> UserError:
    best = Path(path).with_name("best.ckpt")
    spare = f"delete it to resume from {best}" if best.exists() and best != Path(path) else "restore it from a copy"
    return UserError(f"{path} is truncated or not the checkpoint of a run: {spare}, or start a new run")


class StopRequested(Exception):
    """End of a fit by SIGTERM, with ``last.ckpt`` written."""


class MaxTimeReached(Exception):
    """End of a fit by ``trainer.max_time``, with ``last.ckpt`` written."""


class RunCheckpoint(Checkpoint):
    """Writes ``best.ckpt`` and ``last.ckpt`` of a run.

    Both are written at the end of an epoch, after validation, early stopping and logs; ``last.ckpt`` also every few
    optimizer steps, and after SIGTERM at the end of the current step. Lightning's ModelCheckpoint loses its best score
    when a run's folder is moved, and saves before all hooks at an epoch's end have run.

    Args:
        folder: folder of the two files.
        monitor: logged validation metric, such as ``val/accuracy``.
        mode: ``max`` or ``min``.
        every_n_train_steps: optimizer steps between two writes of ``last.ckpt`` within an epoch.
        max_time: time until the fit ends with :class:`MaxTimeReached`, after the current step. Lightning's timer ends
            the epoch early instead, and a resumed run would skip the rest of it.
        model_dir: folder for copies of each new ``best.ckpt``, see :func:`export_model`.

    Attributes:
        best, best_epoch: the best value so far, and its epoch.
        started: training has begun, with all state restored.
        ended_by: sentence on the rule that ended the fit early, for the report.
    """

    # Its hooks wait for the other processes under DDP; saving is an action of its own.
    profiler_phase = "rest"

    def __init__(
        self,
        folder: Path,
        *,
        monitor: str,
        mode: str,
        every_n_train_steps: int,
        max_time: timedelta | None = None,
        model_dir: Path | None = None,
    ) -> None:
        self._folder, self._monitor, self._sign = folder, monitor, 1.0 if mode == "max" else -1.0
        self._every, self._model_dir = every_n_train_steps, model_dir
        self._ends = None if max_time is None else time.monotonic() + max_time.total_seconds()
        self._validated = False
        self._sigterm = False
        self._error: Exception | None = None
        self._trainer: L.Trainer | None = None
        self.started = False
        self.ended_by: str | None = None
        self.best: float | None = None
        self.best_epoch: int | None = None

    @property
    def best_path(self) -> Path:
        """Checkpoint of the epoch with the best validation value."""
        return self._folder / "best.ckpt"

    @property
    def last_path(self) -> Path:
        """Checkpoint to resume from."""
        return self._folder / "last.ckpt"

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far, its epoch, and True if early stopping has ended the run."""
        stopped = self._trainer is not None and self._trainer.should_stop and self._error is None
        return {"best": self.best, "best_epoch": self.best_epoch, "stopped": stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`."""
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]
        if state_dict["stopped"] and self._trainer is not None:
            self._trainer.should_stop = True  # Lightning does not restore it

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Store the trainer for :meth:`state_dict`."""
        self._trainer = trainer

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace the SIGTERM handler: Lightning's ends the fit at the next batch without saving."""
        self.started = True
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._request_stop)  # Lightning restores the former handler after the fit
        self._export(trainer)  # a resumed run may have a new, empty model_dir

    def _export(self, trainer: L.Trainer) -> None:
        if self._model_dir is not None and trainer.is_global_zero and self.best_path.exists():
            export_model(self._folder.parent, self._model_dir)

    def end_with(self, trainer: L.Trainer, error: Exception) -> None:
        """End the fit with ``error`` once ``last.ckpt`` is written; call it on all ranks."""
        self._error = error
        trainer.should_stop = True  # also at the end of an epoch: no error of the validation replaces this one

    def _request_stop(self, *_: object) -> None:
        self._sigterm = True

    def _stop_if_requested(self, trainer: L.Trainer) -> None:
        """Write ``last.ckpt`` and raise, on all ranks, if one of them received SIGTERM or the time is up."""
        if self._error is not None:
            trainer.save_checkpoint(self.last_path)
            raise self._error
        for exception, wanted in (
            (StopRequested, self._sigterm),
            (MaxTimeReached, self._ends is not None and time.monotonic() > self._ends),
        ):
            if trainer.world_size > 1:
                wanted = trainer.strategy.reduce_boolean_decision(wanted, all=False)  # noqa: PLW2901
            if wanted:
                trainer.save_checkpoint(self.last_path)
                raise exception

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write ``last.ckpt`` every few optimizer steps, and when the fit has to stop."""
        # Not after the last batch, saved after validation, nor with accumulated gradients, which are not saved.
        if batch_progress(trainer).is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._stop_if_requested(trainer)
        if trainer.global_step % self._every == 0:
            trainer.save_checkpoint(self.last_path)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record that this epoch has a validation value."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write ``best.ckpt`` if the epoch was the best, then ``last.ckpt``."""
        with trainer.profiler.profile("RunCheckpoint.save_checkpoint"):  # type: ignore[attr-defined]
            if self._is_best(trainer):
                trainer.save_checkpoint(self.best_path)
                self._export(trainer)
                if trainer.is_global_zero:
                    link(self.best_path, self.last_path)  # the same state, without a copy of hundreds of megabytes
            else:
                trainer.save_checkpoint(self.last_path)
        self._validated = False
        self._stop_if_requested(trainer)

    def _is_best(self, trainer: L.Trainer) -> bool:
        """Return True, and store the value, if the epoch has the best one so far."""
        if not self._validated or self._monitor not in trainer.callback_metrics:
            return False
        value = float(trainer.callback_metrics[self._monitor])
        # A diverged training is validated once more when it is stopped.
        if not trainer.callback_metrics.get("val/loss", torch.zeros(())).isfinite():
            return False
        if self.best is not None and self._sign * (value - self.best) <= 0:
            return False
        self.best, self.best_epoch = value, trainer.current_epoch
        return True


def check_last_validation(trainer: L.Trainer, model: BinCounter) -> None:
    """Check that a fit ends with a validation: its last steps could not be chosen otherwise.

    Raises:
        ConfigError: it does not; the message has the numbers that would do.
    """
    epoch, epochs, every = model.steps_per_epoch or 1, trainer.max_epochs or 1, trainer.check_val_every_n_epoch or 1
    key, end, most = "max_epochs", epochs, epochs + every
    if 0 < trainer.max_steps < epoch * epochs:
        key, end, most, every = "max_steps", trainer.max_steps, epoch * epochs, epoch * every
    if end % every:
        near = [str(each) for each in range(every, most + 1, every) if abs(each - end) < every]
        raise ConfigError(
            f"trainer.{key}={end} ends the fit between two validations, which come every {every} {key[4:]}: set "
            f"trainer.{key}={' or '.join(near)}"
        )


def find_resume_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint to resume a run from without losing its best model.

    ``best.ckpt`` and ``last.ckpt`` are written, and copied elsewhere, one after the other: the best epoch recorded in
    ``last.ckpt`` may be later than that of ``best.ckpt``. The run then resumes from ``best.ckpt``, a complete state of
    an earlier epoch, and repeats the epochs in between.

    Args:
        folder: folder of the two files.

    Returns:
        One of them, or ``None`` if the run has to start from the beginning.
    """
    last, best = folder / "last.ckpt", folder / "best.ckpt"
    best_epoch = _best_epoch(best)
    if not last.exists():
        return best if best.exists() else None
    recorded = _best_epoch(last)
    if recorded is None or (best_epoch is not None and best_epoch >= recorded):
        return last  # a newer best will be found again
    return best if best.exists() else None


def best_value(checkpoint: Path) -> float | None:
    """Return the best value of the monitored metric up to a checkpoint, also of a fit in spawned processes."""
    return _callback_state(checkpoint)["best"]


def epochs_begun(checkpoint: Path) -> int:
    """Return the number of epochs up to a checkpoint, including one in progress."""
    return int(read_checkpoint(checkpoint, "epoch")["epoch"]) + 1


def _best_epoch(checkpoint: Path) -> int | None:
    return _callback_state(checkpoint)["best_epoch"] if checkpoint.exists() else None


def _callback_state(checkpoint: Path) -> dict[str, Any]:
    """Return the state of :class:`RunCheckpoint` in a checkpoint."""
    state = read_checkpoint(checkpoint, "callbacks")["callbacks"].get(RunCheckpoint.__qualname__)
    if not isinstance(state, dict) or not state.keys() >= {"best", "best_epoch"}:
        raise _broken(checkpoint)
    return state


def optimizer_steps_after(trainer: L.Trainer) -> bool:
    """Return True if the optimizer steps after this batch, the last one of an accumulation or of the epoch."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


class StatelessRandomness(L.Callback):
    """Seeds torch (for dropout and the like) from (seed, epoch, batch, rank) before every batch.

    Lightning does not restore torch's generators; a seed per batch makes that unnecessary.
    """

    profiler_phase = "rest"

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the generators of all devices."""
        place = [self._seed, trainer.current_epoch, batch_idx, trainer.global_rank]
        seed = int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> np.uint64(1))
        if pl_module.device.type == "cpu":  # torch.manual_seed notes for each kind of device who asked: 1 ms
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)


# In this order: a model never exists without its configuration.
_EXPORTED = ("config.yaml", "checkpoints/best.ckpt", "metrics.json")


def export_model(run: Path, target: Path) -> None:
    """Copy a run's configuration, best checkpoint and scores, as far as they exist, into one folder.

    Args:
        run: the run's folder.
        target: folder for the copies, ``paths.model_dir``; created if missing.
    """
    if not (run / "metrics.json").exists():
        (target / "metrics.json").unlink(missing_ok=True)  # of the run before
    for name in _EXPORTED:
        if not (run / name).exists():
            continue
        with (run / name).open("rb") as source, atomic_write(target / Path(name).name, "wb") as copy:
            shutil.copyfileobj(source, copy)
