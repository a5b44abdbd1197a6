"""Callback ``StepProfiler``, sampler of machine usage, summary in the log."""

import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import psutil
import torch
from lightning.pytorch.callbacks import WeightAveraging
from omegaconf import DictConfig

from bincounter.config.checks import plain_of
from bincounter.data.datamodule import batch_progress
from bincounter.data.photo_store import PhotoStore
from bincounter.errors import UserError
from bincounter.number_format import percent
from bincounter.parallel import count_cpus
from bincounter.profiler.advice import advice
from bincounter.profiler.phase_clock import DetailedProfile, PhaseClock, detailed_profile
from bincounter.profiler.profile_facts import Profile
from bincounter.profiler.profile_record import (
    FOLDER,
    LOGGING,
    OPTIMIZER,
    PHASES,
    STEP,
    ProfileRecord,
    Row,
    Session,
    Usage,
    read_record,
)

log = logging.getLogger(__name__)

_WRITE_EVERY = 30.0  # seconds; a killed run loses at most these
_MOST_SAMPLES = 4000  # of a session; beyond it every second one is dropped and the interval doubled


class StepProfiler(L.Callback):
    """Replaces the trainer's profiler by a :class:`PhaseClock`, and records its rows.

    It has no state in checkpoints: a resumed run adds a session to the files of the folder.

    Args:
        folder: ``RUN/profile``.
        settings: the node ``profiler``.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder, self._settings = folder, settings
        self._clock: PhaseClock | None = None
        self._sampler: UsageSampler | None = None
        self._detail: DetailedProfile | None = None
        self._record = ProfileRecord()
        self._earlier = 0  # samples of sessions before this one
        self._written = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start the clock, on the first process."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        try:
            self._record = read_record(self._folder) or ProfileRecord()
        except UserError as error:
            log.warning("%s; starting a new profile.", error)
        self._record.sessions.append(Session(machine=_machine(trainer)))
        self._earlier = len(self._record.usage)
        device = trainer.strategy.root_device
        self._detail = detailed_profile(self._settings, self._folder, device)
        self._clock = PhaseClock(
            device,
            self._settings["every_n_train_steps"],
            closed=self._add,
            place=lambda: (trainer.current_epoch, batch_progress(trainer).current.ready),
            validating=lambda: bool(trainer.validating),
            changed=self._detail.phase if self._detail else None,
            callbacks={callback.state_key: _phase_of_callback(callback) for callback in trainer.callbacks},  # type: ignore[attr-defined]
        )
        trainer.profiler = self._clock  # type: ignore[attr-defined]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the usage sampler; the data workers run by now."""
        if self._clock is None:
            return
        session = len(self._record.sessions) - 1
        device = trainer.strategy.root_device
        self._sampler = UsageSampler(self._settings["usage_seconds"], device, self._clock.seconds, session)
        self._written = time.monotonic()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record the source of the batches, once."""
        if self._clock is None or "photos" in self._record.sessions[-1].machine:
            return
        loader: Any = trainer.train_dataloader
        store = getattr(trainer.datamodule, "store", None)  # type: ignore[attr-defined]
        self._record.sessions[-1].machine |= {
            "photos": "features" if "feature" in batch else _origin(store),
            "workers": getattr(loader, "num_workers", 0),
        }

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write the profile of a stopped run."""
        self._close(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the profile."""
        self._close(trainer)

    def _add(self, row: Row) -> None:
        row.session = len(self._record.sessions) - 1
        self._record.sessions[-1].add(row, slowed=self._detail is not None and self._detail.active)
        self._record.rows.append(row)
        if self._detail is not None and row.part == STEP:
            self._detail.step()
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
        if self._detail is not None:
            self._detail.close()
        self._clock = None
        if not self._record.sessions[-1].steps:
            return  # the fit ended before its first step
        if trainer.strategy.root_device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(trainer.strategy.root_device) / 1e6
            self._record.sessions[-1].machine["gpu_peak_mb"] = peak
        self._write()


def _phase_of_callback(callback: L.Callback) -> str:
    """Phase of a callback: its class attribute ``profiler_phase``, else optimizer or logging."""
    default = OPTIMIZER if isinstance(callback, WeightAveraging) else LOGGING
    return getattr(callback, "profiler_phase", default)


def _origin(store: PhotoStore | None) -> str:
    if store is None:
        return "elsewhere"
    return "kept" if store.cached else "streamed" if store.streams else "decoded"


def _machine(trainer: L.Trainer) -> dict[str, Any]:
    """Describe the machine and its use by the trainer."""
    device = trainer.strategy.root_device
    cores = count_cpus()
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


_MB = 1e6


class UsageSampler:
    """Thread that samples the run's processes and the machine until it is stopped.

    Args:
        every: seconds between two samples.
        device: the run's device.
        clock: returns the seconds since the session's first step.
        session: number of the session, for the samples.
    """

    def __init__(self, every: float, device: torch.device, clock: Callable[[], float], session: int) -> None:
        self._every, self._clock, self._session = every, clock, session
        self._processes = ProcessTree()
        self._gpu = Gpu(device) if device.type == "cuda" else None
        self._stop = threading.Event()
        self._samples: list[Usage] = []
        self._thread = threading.Thread(target=self._work, name="usage", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample and end the thread."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()

    def samples(self) -> list[Usage]:
        """Return a copy of the samples so far."""
        return list(self._samples)

    def _work(self) -> None:
        self._processes.rates()  # the first calls only start the measurement, per thread in psutil
        psutil.cpu_percent()
        while not self._stop.wait(self._every):
            self._sample()
        self._sample()

    def _sample(self) -> None:
        cpu, rss, read, write = self._processes.rates()
        memory = psutil.virtual_memory().percent
        gpu, gpu_memory = self._gpu.busy() if self._gpu else (None, None)
        sample = Usage(
            self._session, self._clock(), cpu, psutil.cpu_percent(), rss, memory, read, write, gpu, gpu_memory
        )
        self._samples.append(sample)
        if len(self._samples) > _MOST_SAMPLES:
            self._samples = self._samples[::2]
            self._every *= 2


class ProcessTree:
    """This process and its children: DataLoader workers, other ranks."""

    def __init__(self) -> None:
        self._own = psutil.Process()
        self._at = 0.0
        self._cpu: dict[int, float] = {}
        self._bytes: dict[int, tuple[int, int]] = {}

    def rates(self) -> tuple[float, float, float | None, float | None]:
        """Return CPU use (per cent of a core), memory (MB), and disk reads and writes (MB/s) since the last call."""
        now, cpu, moved, rss = time.perf_counter(), {}, {}, 0.0
        for process in [self._own, *self._own.children(recursive=True)]:
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    cpu[process.pid] = times.user + times.system
                    rss += process.memory_info().rss / _MB
                    if hasattr(process, "io_counters"):
                        counters = process.io_counters()
                        moved[process.pid] = (counters.read_bytes, counters.write_bytes)
            except (psutil.Error, OSError):
                continue  # the process has just ended, or is not readable
        seconds = max(now - self._at, 1e-3)
        busy = 100 * sum(value - self._cpu.get(pid, 0.0) for pid, value in cpu.items()) / seconds
        read, write = (
            sum(value[kind] - self._bytes.get(pid, (0, 0))[kind] for pid, value in moved.items()) / _MB / seconds
            if moved
            else None
            for kind in (0, 1)
        )
        self._at, self._cpu, self._bytes = now, cpu, moved
        return busy, rss, read, write


class _Rates(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Gpu:
    """One CUDA device, read through NVML: part of the driver, and without synchronisation."""

    def __init__(self, device: torch.device) -> None:
        self._nvml: ctypes.CDLL | None = None
        self._handle = ctypes.c_void_p()
        try:
            nvml = ctypes.CDLL("libnvidia-ml.so.1" if os.name != "nt" else "nvml.dll")
            name = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
            if nvml.nvmlInit_v2() == 0 and nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(self._handle)) == 0:
                self._nvml = nvml
        except (OSError, AttributeError):
            return  # no NVML: the columns stay empty

    def busy(self) -> tuple[float | None, float | None]:
        """Return the recent utilisation in per cent, and the used memory in MB; ``None`` where unknown."""
        if self._nvml is None:
            return None, None
        rates, memory = _Rates(), _Memory()
        measured = self._nvml.nvmlDeviceGetUtilizationRates(self._handle, ctypes.byref(rates)) == 0
        known = self._nvml.nvmlDeviceGetMemoryInfo(self._handle, ctypes.byref(memory)) == 0
        return float(rates.gpu) if measured else None, memory.used / _MB if known else None


def profiler_callbacks(cfg: DictConfig) -> list[L.Callback]:
    """Return the callback of ``profiler=simple``, ``advanced`` and ``pytorch``, or none.

    Args:
        cfg: the run's whole configuration.
    """
    settings = plain_of(cfg.profiler)
    if not cfg.train or settings["kind"] == "none":
        return []
    return [StepProfiler(Path(cfg.paths.output_dir) / FOLDER, settings)]


def log_profile_summary(profile: Profile | None) -> None:
    """Log the phases of a step, and the advice, if the run was measured."""
    if profile is None:
        return
    facts = profile.facts
    phases = sorted(PHASES, key=lambda phase: -facts.step_ms[phase])
    listed = ", ".join(
        f"{PHASES[phase].lower()} {percent(facts.share(phase), 0)}" for phase in phases if facts.share(phase) > 0.005
    )
    log.info("A step took %.1f ms: %s.", facts.free_step_ms, listed)
    for sentence in advice(facts):
        log.info("%s", sentence)
