"""Many small tasks in threads, their results in order and never many of them at once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 8


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, *, ahead: int = _AHEAD
) -> Iterator[Result]:
    """Apply a function to items in threads and yield the results in the order of the items.

    Unlike ``Executor.map`` it takes items only as results are used, so that half a million photos need no more memory
    than a few. The first exception of the function ends it.

    Args:
        function: what to do with an item; it spends its time outside Python's global lock.
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
