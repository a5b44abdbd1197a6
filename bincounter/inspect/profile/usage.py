"""How busy the machine is, sampled by a thread beside the fit."""

import ctypes
import os
import threading
import time
from collections.abc import Callable

import psutil
import torch

from bincounter.inspect.profile.record import Usage

_MB = 1e6


class UsageSampler:
    """A thread that samples the run's processes and the machine until it is stopped.

    Args:
        every: seconds between two samples.
        device: of the run.
        clock: seconds since the session's first step.
        session: the number that samples carry.
        limit: samples kept; with more, every second one is dropped and half as many are taken.
    """

    def __init__(
        self, every: float, device: torch.device, clock: Callable[[], float], session: int, limit: int = 4000
    ) -> None:
        self._every, self._clock, self._session, self._limit = every, clock, session, limit
        self._processes = ProcessTree()
        self._gpu = Gpu(device) if device.type == "cuda" else None
        self._stop = threading.Event()
        self._samples: list[Usage] = []
        self._thread = threading.Thread(target=self._work, name="usage", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after a last sample."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()

    def samples(self) -> list[Usage]:
        """Samples so far."""
        return list(self._samples)

    def _work(self) -> None:
        self._processes.rates()  # the first calls only start their measurement, psutil's one of each thread
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
        if len(self._samples) > self._limit:
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
        """Per cent of a core, MB of memory, and MB/s read from and written to disks, since the last call."""
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
                continue  # it has just ended, or is not ours to look at
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
    """One CUDA device, asked by NVML, which comes with the driver and waits for nothing."""

    def __init__(self, device: torch.device) -> None:
        self._nvml: ctypes.CDLL | None = None
        self._handle = ctypes.c_void_p()
        try:
            nvml = ctypes.CDLL("libnvidia-ml.so.1" if os.name != "nt" else "nvml.dll")
            name = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
            if nvml.nvmlInit_v2() == 0 and nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(self._handle)) == 0:
                self._nvml = nvml
        except (OSError, AttributeError):
            return  # no NVML beside this driver: the figures stay empty

    def busy(self) -> tuple[float | None, float | None]:
        """Per cent of the last moments in which it computed, and MB of its memory that are used."""
        if self._nvml is None:
            return None, None
        rates, memory = _Rates(), _Memory()
        told = self._nvml.nvmlDeviceGetUtilizationRates(self._handle, ctypes.byref(rates)) == 0
        known = self._nvml.nvmlDeviceGetMemoryInfo(self._handle, ctypes.byref(memory)) == 0
        return float(rates.gpu) if told else None, memory.used / _MB if known else None
