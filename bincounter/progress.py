"""Progress bar on a terminal, few log lines elsewhere; objects/s and MB/s for transfers."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:  # imported where something is shown: it takes a quarter of an unchanged sync
    from rich.progress import Progress

log = logging.getLogger(__name__)

_EVERY = 10.0  # seconds between two lines of a log
_REDRAWN = 0.2  # seconds between two states of a bar

Item = TypeVar("Item")


def track(iterable: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Yield items while showing on stderr how many of them are done.

    Args:
        iterable: the items; may be lazy.
        description: such as ``reading photos``.
        total: number of items.
    """
    bar = _bar()
    if bar is None:
        log.info("%s: %d to go", description, total)
        yield from iterable
        log.info("%s: done", description)
        return
    with bar:
        yield from bar.track(iterable, total=total, description=description)


class ScreenHandler(logging.StreamHandler):
    """Writes log lines to the present ``sys.stderr``, which a live bar replaces to stay below them.

    On a terminal a record's attribute ``short``, if any, replaces its message.
    """

    stream = property(lambda self: sys.stderr, lambda self, _: None)

    def format(self, record: logging.LogRecord) -> str:
        """Format a record for the screen."""
        short = getattr(record, "short", None)
        return short if short and sys.stderr.isatty() else super().format(record)


class StepProgress:
    """Shows the steps of a long phase on stderr: a bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._description = ""
        self._total = 0
        self._logged = self._drawn = 0.0

    def start(self, description: str, total: int) -> None:
        """Begin a phase of so many steps; its bar takes the place of the one before."""
        self._description, self._total, self._logged = description, total, time.monotonic()
        if self._bar is None and (bar := _bar(transient=True)) is not None:
            self._bar = bar
            bar.start()
            bar.add_task("")
        if self._bar is not None:
            self._bar.reset(self._bar.task_ids[0], description=description, total=total)

    @property
    def is_due(self) -> bool:
        """True if :meth:`show` would update: reading the loss needlessly would stall a GPU."""
        now = time.monotonic()
        return now - self._drawn > _REDRAWN if self._bar else now - self._logged > _EVERY

    def show(self, done: int, note: str = "") -> None:
        """Show how many steps are done, and a note such as the loss."""
        if self._bar is not None:
            self._drawn = time.monotonic()
            self._bar.update(self._bar.task_ids[0], completed=done, description=f"{self._description} {note}".strip())
        else:
            self._logged = time.monotonic()
            log.info("%s: %d of %d batches%s", self._description, done, self._total, note and f", {note}")

    def stop(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class TransferProgress:
    """Shows a transfer on stderr: a bar on a terminal, a line every ten seconds elsewhere.

    Args:
        description: such as ``Fetching from s3://bucket``.
        objects: number of objects.
        size: bytes of all of them; ``None`` if unknown.
    """

    def __init__(self, description: str, objects: int, size: int | None) -> None:
        self._description, self._objects, self._size = description, objects, size
        self._done = self._bytes = 0
        self._start = self._logged = 0.0
        self._bar = _bar(speed=True)

    def __enter__(self) -> Self:
        self._start = self._logged = time.monotonic()
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(self._description, total=self._objects, speed="")
        else:
            size = f", {_size(self._size)}" if self._size is not None else ""
            log.info("%s: %s objects%s to go", self._description, f"{self._objects:,}", size)
        return self

    def advance(self, size: int) -> None:
        """Count one more object of so many bytes."""
        self._done += 1
        self._bytes += size
        if self._bar:
            self._bar.update(self._task, advance=1, speed=self._speed())
        elif time.monotonic() - self._logged > _EVERY:
            self._logged = time.monotonic()
            log.info(
                "%s: %s of %s objects, %s",
                self._description,
                f"{self._done:,}",
                f"{self._objects:,}",
                self._speed_and_time_left(),
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        what = "done" if kind is None else "interrupted"
        log.info(
            "%s: %s, %s objects, %s, %s", self._description, what, f"{self._done:,}", _size(self._bytes), self._speed()
        )

    def _speed(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-3)
        return f"{self._done / seconds:,.0f} objects/s, {self._bytes / seconds / 1e6:,.1f} MB/s"

    def _speed_and_time_left(self) -> str:
        """Speed, and the time left at it, by bytes if they are known."""
        share = self._bytes / self._size if self._size else self._done / max(self._objects, 1)
        seconds = (time.monotonic() - self._start) * (1 - share) / share if share else 0
        return f"{self._speed()}, {int(seconds // 60)} min {int(seconds % 60)} s left"


def _bar(*, speed: bool = False, transient: bool = False) -> "Progress | None":
    """Progress bar for stderr; ``None`` if that is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        return None
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    if speed:
        columns.append(TextColumn("{task.fields[speed]}", style="progress.data.speed"))
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=transient)


def _size(number: int) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"
