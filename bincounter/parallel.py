"""Work in threads on items of any number: bounded look-ahead, and the first error stops it.

Threads rather than asyncio, since hashing and writing a file release Python's global lock: an event loop would do that
for one object after the other, and took half as long again for photos of 55 kB.
"""

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from bincounter.errors import ResourceError

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 8


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
