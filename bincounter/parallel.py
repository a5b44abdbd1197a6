"""Cores of this process; work in threads on items of any number: bounded look-ahead, the first error stops it.

Threads rather than asyncio, since hashing and writing a file release Python's global lock: an event loop would do that
for one object after the other, and took half as long again for photos of 55 kB.
"""

import logging
import os
import re
import shutil
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from bincounter.errors import ResourceError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 8
_CPU = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_OLD_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
_ENVIRONMENT = Path("/proc/self/environ")
_SHARED_MEMORY = Path("/dev/shm")
_BATCHES = 2 * 2  # of each loader process: two loaders, of training and validation, each two batches ahead


def limit_threads() -> None:
    """Lower torch's number of threads to the CPU quota of the container, unless OMP_NUM_THREADS is set.

    By itself it takes all cores of the machine.
    """
    import torch  # here: commands that compute nothing import this module, too

    if not os.environ.get("OMP_NUM_THREADS"):
        threads = torch.get_num_threads()
        if (fewer := _within_quota(threads)) < threads:
            torch.set_num_threads(fewer)


def count_threads() -> int:
    """Number of computing threads: the cores of this process, or OMP_NUM_THREADS if it was started with that.

    Ray sets that variable to 1 inside its workers, so that only the environment at process start counts.
    """
    try:
        given = re.search(rb"(?:^|\0)OMP_NUM_THREADS=(\d*)", _ENVIRONMENT.read_bytes())
        chosen = given[1].decode() if given else ""
    except OSError:  # not Linux
        chosen = os.environ.get("OMP_NUM_THREADS", "")
    return int(chosen) if chosen.isdecimal() and int(chosen) else count_cores()


def count_cores() -> int:
    """Number of physical cores this process may use, within the CPU quota of its container."""
    return _within_quota(_physical())


def count_cpus() -> int:
    """Number of hardware threads this process may use, within the CPU quota of its container."""
    return _within_quota(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _physical() -> int:
    if not hasattr(os, "sched_getaffinity"):
        import torch

        return torch.get_num_threads()
    usable = os.sched_getaffinity(0)
    try:  # hardware threads of one core have the same list of siblings
        return len({(_CPU / f"cpu{number}/topology/thread_siblings_list").read_text() for number in usable})
    except OSError:
        return len(usable)


def _within_quota(available: int) -> int:
    try:
        quota, period = _QUOTA.read_text().split() if _QUOTA.exists() else [path.read_text() for path in _OLD_QUOTA]
        # Rounded down: one thread too many is stopped for a part of every period, and all others wait for it.
        return max(1, min(available, int(quota) // int(period))) if quota != "max" and int(quota) > 0 else available
    except (OSError, ValueError, ZeroDivisionError):
        return available


def workers_within_shared_memory(workers: int, batch_bytes: int, processes: int = 1) -> int:
    """Number of loader processes, at most ``workers``, whose batches fit into the free shared memory.

    Where it is full, torch's worker loses its batch, and the process that waits for it waits for ever.

    Args:
        workers: the processes wanted for a loader.
        batch_bytes: size of a batch.
        processes: processes of this machine that have loaders.
    """
    if not workers or not _SHARED_MEMORY.exists():
        return workers
    batches = shutil.disk_usage(_SHARED_MEMORY).free // (batch_bytes * processes)
    fitting = min(workers, max(batches // _BATCHES - 1, 0))  # beside the batches that are in use
    if fitting < workers:
        log.warning(
            "%s has room for %d of %d data.num_workers: give it more, such as by docker run --shm-size=1g.",
            _SHARED_MEMORY,
            fitting,
            workers,
        )
    return fitting


@contextmanager
def hidden_script() -> Iterator[None]:
    """Hide the user's script from processes that are spawned in this block.

    They would run a script without ``if __name__ == "__main__"`` again, and wait for the locks that this process holds.
    """
    main = sys.modules["__main__"]
    spec, file = main.__spec__, vars(main).pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, *, ahead: int = _AHEAD
) -> Iterator[Result]:
    """Apply a function to items in threads and yield the results in the order of the items.

    Unlike ``Executor.map`` it takes items only as results are used, so that half a million photos need no more memory
    than a few. The first exception of the function ends it.

    Args:
        function: applied to each item; it should spend its time outside Python's global lock.
        items: may be lazy and of any length.
        workers: number of threads; fewer than 1 counts as 1.
        ahead: tasks per worker that wait or are done: enough that none is idle, few enough that memory stays flat.
    """
    workers = max(1, workers)
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > ahead * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def for_each(
    items: Iterable[Item],
    function: Callable[[Item], None],
    *,
    threads: int,
    stop: threading.Event | None = None,
) -> None:
    """Call a function on items in threads, in no particular order of completion.

    After the first error, or Ctrl-C, no other item is started; it is raised once the calls under way have ended.

    Args:
        items: may be lazy and of any length; at most one is taken ahead of the threads.
        function: called from any of the threads.
        threads: most calls at a time; fewer than 1 counts as 1.
        stop: set at the first error, for calls that take long or wait.

    Raises:
        ResourceError: no thread can be started.
    """
    threads = max(1, threads)
    stop = stop or threading.Event()
    free, errors = threading.Semaphore(threads), list[BaseException]()

    def call(item: Item) -> None:
        try:
            if not stop.is_set():
                function(item)
        except BaseException as error:  # raised again in the caller's thread
            errors.append(error)
            stop.set()
        finally:
            free.release()

    with ThreadPoolExecutor(threads) as pool:
        try:
            pending: Future[None] | None = None
            for item in items:
                free.acquire()
                if stop.is_set():
                    break
                try:
                    pending = pool.submit(call, item)
                except RuntimeError as error:  # no room for another thread: those that run take the item
                    if pending is None:
                        raise ResourceError(
                            f"{error}: allow this process more threads (ulimit -u, or the container's limit of pids)"
                        ) from error
            else:
                for _ in range(threads):  # until all have ended
                    free.acquire()
        except BaseException:
            stop.set()
            raise
    if errors:
        raise errors[0]
