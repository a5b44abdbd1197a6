"""How far a long task is: a bar on a terminal, two log lines everywhere else."""

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

Item = TypeVar("Item")


def track(iterable: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Pass items on while showing on stderr how many of them are done.

    Args:
        iterable: what to go through; it may be lazy.
        description: what happens to the items, such as ``reading photos``.
        total: how many items there will be.
    """
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        log.info("%s: %d to go", description, total)
        yield from iterable
        log.info("%s: done", description)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield from progress.track(iterable, total=total, description=description)
