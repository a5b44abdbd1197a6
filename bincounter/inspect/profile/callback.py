"""The callback that measures a fit and changes nothing of what it computes."""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch

from bincounter.data.store import PhotoStore
from bincounter.errors import UserError
from bincounter.inspect.profile.clock import PhaseClock
from bincounter.inspect.profile.depth import Depth, depth_of
from bincounter.inspect.profile.record import STEP, Record, Row, Session, read_record
from bincounter.inspect.profile.usage import UsageSampler

log = logging.getLogger(__name__)

_WRITE_EVERY = 30.0  # seconds: what a killed run loses at most


class StepProfiler(L.Callback):
    """Puts a :class:`PhaseClock` in the place of the trainer's profiler, and keeps what it tells.

    Nothing of it is in the checkpoints: a run that goes on adds a session to what the folder holds.

    Args:
        folder: ``RUN/profile``.
        settings: the node ``profiler``.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder, self._settings = folder, settings
        self._clock: PhaseClock | None = None
        self._sampler: UsageSampler | None = None
        self._depth: Depth | None = None
        self._record = Record()
        self._earlier = 0  # samples of sessions before this one
        self._written = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin, on the first process."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        self._record = self._so_far()
        self._record.sessions.append(Session(machine=_machine(trainer)))
        self._earlier = len(self._record.usage)
        device = trainer.strategy.root_device
        self._depth = depth_of(self._settings, self._folder, device)
        self._clock = PhaseClock(
            device,
            self._settings["every_n_train_steps"],
            closed=self._keep,
            place=lambda: (trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready),
            validating=lambda: bool(trainer.validating),
            changed=self._depth.phase if self._depth else None,
        )
        trainer.profiler = self._clock  # type: ignore[attr-defined]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sample the machine from here on: by now the workers' memory is what it will be."""
        if self._clock is None:
            return
        session = len(self._record.sessions) - 1
        device = trainer.strategy.root_device
        self._sampler = UsageSampler(self._settings["usage_seconds"], device, self._clock.seconds, session)
        self._written = time.monotonic()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note, once, where batches come from."""
        if self._clock is None or "photos" in self._record.sessions[-1].machine:
            return
        loader: Any = trainer.train_dataloader
        store = getattr(trainer.datamodule, "store", None)  # type: ignore[attr-defined]
        self._record.sessions[-1].machine |= {
            "photos": "features" if "feature" in batch else _origin(store),
            "workers": getattr(loader, "num_workers", 0),
        }

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """A run that is stopped has a profile, too."""
        self._close(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write what was measured."""
        self._close(trainer)

    def _so_far(self) -> Record:
        try:
            return read_record(self._folder) or Record()
        except UserError as error:
            log.warning("%s; the profile starts anew.", error)
            return Record()

    def _keep(self, row: Row) -> None:
        row.session = len(self._record.sessions) - 1
        self._record.sessions[-1].add(row, slowed=self._depth is not None and self._depth.looking)
        self._record.rows.append(row)
        if self._depth is not None and row.part == STEP:
            self._depth.step()
        if time.monotonic() - self._written > _WRITE_EVERY:
            self._write()

    def _write(self) -> None:
        if self._sampler is not None:
            self._record.usage[self._earlier :] = self._sampler.samples()
        self._record.write(self._folder)
        self._earlier = sum(sample.session < len(self._record.sessions) - 1 for sample in self._record.usage)
        self._written = time.monotonic()

    def _close(self, trainer: L.Trainer) -> None:
        if self._clock is None:
            return
        self._clock.close()
        if self._sampler is not None:
            self._sampler.stop()
        if self._depth is not None:
            self._depth.close()
        self._clock = None
        if not self._record.sessions[-1].steps:
            return  # it ended before its first step: there is nothing to tell
        if trainer.strategy.root_device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(trainer.strategy.root_device) / 1e6
            self._record.sessions[-1].machine["gpu_peak_mb"] = peak
        self._write()


def _origin(store: PhotoStore | None) -> str:
    if store is None:
        return "elsewhere"
    return "kept" if store.cached else "streamed" if store.streams else "decoded"


def _machine(trainer: L.Trainer) -> dict[str, Any]:
    """What the figures have to be read against."""
    device = trainer.strategy.root_device
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    machine: dict[str, Any] = {
        "cores": cores,
        "machine_cores": os.cpu_count() or cores,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {"gpu": properties.name, "gpu_mb": properties.total_memory / 1e6}
    return machine
