"""The profiler that Lightning tells of what it does: it charges every moment to one phase of one step."""

import time
from collections.abc import Callable

import torch
from lightning.pytorch.profilers import Profiler

from bincounter.inspect.profile.phases import (
    LOGGING,
    NEXT_BATCH,
    REST,
    VALIDATION,
    ends_a_step,
    ends_the_work_of_a_step,
    phase_of,
)
from bincounter.inspect.profile.record import BETWEEN, STEP, Row


class PhaseClock(Profiler):
    """Divides the time of a fit into steps, and the time of a step into phases that add up to it.

    Actions lie inside each other, as backward does inside the optimizer's step: a moment is charged to the innermost
    phase. The clock is read where the phase changes and nowhere else.

    Args:
        device: of the run. On a CUDA device, where calls return before they are computed, it is waited for at each
            change of phase, in one of ``every`` steps: in the others the phases would be those of the queue.
        every: batches between two exact ones on a CUDA device; everywhere else all are.
        closed: is given each row as it ends.
        place: tells ``(epoch, batch)``.
        validating: tells whether a validation is under way.
        changed: is told of each phase that begins; ``None`` at the end.
    """

    def __init__(
        self,
        device: torch.device,
        every: int,
        *,
        closed: Callable[[Row], None],
        place: Callable[[], tuple[int, int]],
        validating: Callable[[], bool],
        changed: Callable[[str | None], None] | None = None,
    ) -> None:
        super().__init__()
        self._cuda, self._device, self._every = device.type == "cuda", device, every
        self._closed, self._place, self._validating, self._changed = closed, place, validating, changed
        self._stack: list[str | None] = []
        self._base = REST
        self._phase = REST
        self._row: Row | None = None
        self._batches = 0
        self._began = self._mark = self._row_began = 0.0

    def start(self, action_name: str) -> None:
        """An action begins."""
        if action_name.endswith(NEXT_BATCH):
            self._open(STEP)
        elif self._row is not None and self._row.part == STEP and ends_a_step(action_name):
            self._open(BETWEEN)
        self._stack.append(phase_of(action_name))
        self._enter()

    def stop(self, action_name: str) -> None:
        """The action that began last is over."""
        if self._stack:  # those that began before this profiler was there are not in it
            self._stack.pop()
        if ends_the_work_of_a_step(action_name):
            self._base = LOGGING
        self._enter()

    def close(self) -> None:
        """The fit is over, in whatever way."""
        if self._row is not None:
            self._end_row()
            if self._changed is not None:
                self._changed(None)

    def seconds(self) -> float:
        """Seconds of the fit since the first step began; 0 before."""
        return time.perf_counter() - self._began if self._began else 0.0

    def _open(self, part: str) -> None:
        exact = not self._cuda or part == BETWEEN or self._batches % self._every == 0
        if exact:
            self._wait()  # what is still under way is the work of the step before
        if self._row is not None:
            self._end_row()
        else:
            self._began = self._row_began = self._mark = time.perf_counter()
        self._batches += part == STEP
        epoch, batch = self._place()
        self._row = Row(0, epoch, batch, part, self._row_began - self._began, exact, 0.0)
        self._base = REST

    def _end_row(self) -> None:
        row = self._row
        assert row is not None
        self._charge()
        row.wall_ms = 1e3 * (self._mark - self._row_began)
        self._row = None
        self._closed(row)
        now = time.perf_counter()
        self._began += now - self._mark  # keeping a profile takes no time of the fit
        self._mark = self._row_began = now

    def _enter(self) -> None:
        """Charge what has passed, if another phase begins with this moment."""
        phase = VALIDATION if self._validating() else next((p for p in reversed(self._stack) if p), self._base)
        if phase == self._phase:
            return
        self._charge()
        self._phase = phase
        if self._changed is not None and self._row is not None:
            self._changed(phase)

    def _charge(self) -> None:
        if self._row is None:
            return
        if self._row.exact:
            self._wait()
        now = time.perf_counter()
        self._row.ms[self._phase] += 1e3 * (now - self._mark)
        self._mark = now

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize(self._device)
