"""What is made when it is first needed, by one thread while the others wait: ``cached_property`` lets each make one."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_Made = TypeVar("_Made")


class Once(Generic[_Made]):
    """Called, it gives what ``make`` made at the first call.

    Args:
        make: does not call this; where it raises, the next call tries again.
    """

    def __init__(self, make: Callable[[], _Made]) -> None:
        self._make, self._made, self._making = make, list[_Made](), threading.Lock()

    def __call__(self) -> _Made:
        """What was made."""
        with self._making:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]
