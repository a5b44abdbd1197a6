"""``map_ordered`` and ``for_each`` on ThreadPoolExecutor: bounded look-ahead, first error stops.

Threads rather than asyncio, since hashing and writing a file let go of Python's global lock: a loop would do that for
one object after the other, and took half as long again for photos of 55 kB.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from bincounter.errors import ResourceError

_Item = TypeVar("_Item")

_PATIENCE = 2.0  # seconds for what is under way when the rest is given up; where a server hangs it takes a minute


def for_each(
    items: Iterable[_Item],
    work: Callable[[_Item], None],
    *,
    threads: int,
    given_up: threading.Event | None = None,
) -> None:
    """Work on items; when one fails, no other is taken, and those under way may end before its error is raised.

    Ctrl-C does likewise. A thread that does not end within two seconds is left behind, and does not keep the process
    from ending.

    Args:
        items: may be lazy and of any length; taken by one thread at a time.
        work: on an item; called from any of the threads.
        threads: how many at most.
        given_up: set once no other is taken, for work that takes long or waits.

    Raises:
        ResourceError: no thread can be started.
    """
    crew = _Crew(items, work, given_up or threading.Event())
    try:
        crew.start(max(threads, 1))
        crew.ended.wait()
    finally:
        crew.dismiss()
    if crew.errors:
        raise crew.errors[0]


class _Crew(Generic[_Item]):
    """Threads at work.

    Attributes:
        ended: set once one has failed, or all have ended.
        errors: of those that failed.
    """

    def __init__(self, items: Iterable[_Item], work: Callable[[_Item], None], ended: threading.Event) -> None:
        self.ended, self.errors = ended, list[BaseException]()
        self._items, self._work = _Taken(items), work
        self._threads: list[threading.Thread] = []
        self._at_work, self._counting = 1, threading.Lock()  # who starts the others counts until they are started

    def start(self, number: int) -> None:
        """Start so many threads, or fewer where there is no work left for more, or no room."""
        for _ in range(number):
            if self.ended.is_set() or self._items.are_taken:
                break
            thread = threading.Thread(target=self._keep_working, daemon=True)
            self._threads.append(thread)
            self._count(1)
            try:
                thread.start()
            except RuntimeError as error:
                self._count(-1)
                if len(self._threads) > 1:
                    break
                raise ResourceError(
                    f"{error}: allow this process more threads (ulimit -u, or the container's limit of pids)"
                ) from error
        self._count(-1)

    def dismiss(self) -> None:
        """Have no other item taken, and wait a little for those under way."""
        self.ended.set()
        last = time.monotonic() + _PATIENCE
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, last - time.monotonic()))

    def _keep_working(self) -> None:
        try:
            for item in self._items:
                if self.ended.is_set():
                    break
                self._work(item)
        except BaseException as error:  # raised again where the others are waited for
            self.errors.append(error)
            self.ended.set()
        self._count(-1)

    def _count(self, change: int) -> None:
        with self._counting:
            self._at_work += change
            if not self._at_work:
                self.ended.set()


class _Taken(Iterator[_Item]):
    """Items that several threads take, each of them once.

    Attributes:
        are_taken: whether there are none left, as far as anybody has asked.
    """

    def __init__(self, items: Iterable[_Item]) -> None:
        self.are_taken = False
        self._items, self._lock = iter(items), threading.Lock()

    def __next__(self) -> _Item:
        with self._lock:
            try:
                return next(self._items)
            except StopIteration:
                self.are_taken = True
                raise


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
