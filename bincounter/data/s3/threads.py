"""Work on many items at a time, in threads: S3 answers late, and waiting costs a thread nothing.

Threads rather than asyncio, since hashing and writing a file let go of Python's global lock: a loop would do that for
one object after the other, and took half as long again for photos of 55 kB.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

_Item = TypeVar("_Item")

_PATIENCE = 2.0  # seconds for what is under way when the rest is given up; where a server hangs it takes a minute


def for_each(items: Iterable[_Item], work: Callable[[_Item], None], *, threads: int) -> None:
    """Work on items; when one fails, no other is begun, and those under way may end before its error is raised.

    Ctrl-C does likewise. A thread that does not end soon is left behind, and does not keep the process from ending.

    Args:
        items: may be lazy and of any length; taken by one thread at a time.
        work: on an item; called from any of the threads.
        threads: how many.
    """
    crew = _Crew(items, work, threads)
    try:
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

    def __init__(self, items: Iterable[_Item], work: Callable[[_Item], None], number: int) -> None:
        self.ended, self.errors = threading.Event(), list[BaseException]()
        self._items, self._work = _Taken(items), work
        self._at_work, self._leaving = number, threading.Lock()
        self._threads = [threading.Thread(target=self._keep_working, daemon=True) for _ in range(number)]
        for thread in self._threads:
            thread.start()

    def dismiss(self) -> None:
        """Have no other item begun, and wait a little for those under way."""
        self.ended.set()
        last = time.monotonic() + _PATIENCE
        for thread in self._threads:
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
        with self._leaving:
            self._at_work -= 1
            if not self._at_work:
                self.ended.set()


class _Taken(Iterator[_Item]):
    """Items that several threads take, each of them once."""

    def __init__(self, items: Iterable[_Item]) -> None:
        self._items, self._lock = iter(items), threading.Lock()

    def __next__(self) -> _Item:
        with self._lock:
            return next(self._items)
