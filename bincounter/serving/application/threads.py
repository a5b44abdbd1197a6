"""How many threads the model computes with, and what keeps them quick."""

import ctypes
import os
import sys
from pathlib import Path

import torch

_CPU = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_OLD_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
_ENVIRONMENT = Path("/proc/self/environ")


# glibc's mallopt: see its manual page.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def before_loading() -> None:
    """Prepare a process that serves; called once, in the thread that then loads the model, which does not compute.

    Two things slow a forward down that is not in a process's first thread. Where another thread has computed in
    parallel before, OpenMP counts more threads than cores, and lets its own sleep between all layers: 12 ms of a
    ResNet50 photo here. And glibc gives the memory of activations back to the system after each batch, to fetch it page
    by page for the next: a fifth of the time of large batches.
    """
    torch.set_num_threads(1)
    if sys.platform == "linux":
        allocator = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if allocator is not None:
            for option, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, (1 << 31) - 1)):
                allocator(option, value)


def use_cores() -> None:
    """Let the calling thread compute on all cores that are this process's, unless OMP_NUM_THREADS says otherwise.

    Ray sets that variable to 1 inside its workers; only what the process was started with is somebody's wish.
    """
    if not _chosen():
        torch.set_num_threads(cores())


def cores() -> int:
    """Physical cores this process may run on, within the quota of its container."""
    available = _physical()
    quota = _quota()
    return available if quota is None else max(1, min(available, round(quota)))


def _chosen() -> bool:
    try:
        return b"\0OMP_NUM_THREADS=" in b"\0" + _ENVIRONMENT.read_bytes()
    except OSError:  # not Linux
        return "OMP_NUM_THREADS" in os.environ


def _physical() -> int:
    if not hasattr(os, "sched_getaffinity"):
        return torch.get_num_threads()
    usable = os.sched_getaffinity(0)
    try:  # two threads of one core have the same list of siblings, and share what multiplies
        return len({(_CPU / f"cpu{number}/topology/thread_siblings_list").read_text() for number in usable})
    except OSError:
        return len(usable)


def _quota() -> float | None:
    try:
        quota, period = _QUOTA.read_text().split() if _QUOTA.exists() else [path.read_text() for path in _OLD_QUOTA]
        return float(quota) / float(period) if quota != "max" and float(quota) > 0 else None
    except (OSError, ValueError):
        return None
