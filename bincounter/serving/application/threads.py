"""How many threads the model computes with."""

import os
from pathlib import Path

import torch

_CPU = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_OLD_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
_ENVIRONMENT = Path("/proc/self/environ")


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
