"""One process at a time at work in a folder: the ranks of a run, or runs started together, then find the work done."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a folder's lock in this block; the system frees it when the process ends, however it does.

    Args:
        folder: made when it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("Waiting for another process that is at work in %s", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
