"""``PhaseClock``, a Lightning profiler of phases; detailed profiles of a few steps."""

import os
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.profilers import AdvancedProfiler, Profiler

from bincounter.files import write_table, write_text
from bincounter.profiler.profile_record import (
    BETWEEN,
    LOGGING,
    NEXT_BATCH,
    REST,
    STEP,
    VALIDATION,
    Row,
    ends_a_step,
    ends_optimization,
    phase_of,
)


class PhaseClock(Profiler):
    """Divides the time of a fit into steps, and the time of a step into phases that add up to it.

    Actions are nested, such as backward in the optimizer's step: time is charged to the innermost phase. The clock is
    read only when the phase changes.

    Args:
        device: the run's device. CUDA calls return early: only in one of ``every`` steps does the clock synchronise
            at each change of phase, so that phases are exact.
        every: batches from one exact step to the next on a CUDA device; elsewhere all are exact.
        closed: called with each finished row.
        place: returns ``(epoch, batch)``.
        validating: returns True during a validation.
        changed: called with each phase that begins; ``None`` at the end.
        callbacks: phases of callbacks by their ``state_key``.
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
        callbacks: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._cuda, self._device, self._every = device.type == "cuda", device, every
        self._closed, self._place, self._validating, self._changed = closed, place, validating, changed
        # Cached: a few dozen actions, repeated in every step.
        self._phase_of = cache(partial(phase_of, callbacks=callbacks or {}))
        self._stack: list[str | None] = []
        self._base = REST
        self._phase = REST
        self._row: Row | None = None
        self._batches = 0
        self._began = self._mark = self._row_began = 0.0

    def start(self, action_name: str) -> None:
        """Start an action."""
        if action_name.endswith(NEXT_BATCH):
            self._open(STEP)
        elif self._row is not None and self._row.part == STEP and ends_a_step(action_name):
            self._open(BETWEEN)
        self._stack.append(self._phase_of(action_name))
        self._enter()

    def stop(self, action_name: str) -> None:
        """Stop the last action."""
        if self._stack:  # empty for actions that began before this profiler
            self._stack.pop()
        if ends_optimization(action_name):
            self._base = LOGGING
        self._enter()

    def close(self) -> None:
        """End the profile of a fit."""
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
            self._synchronize()  # queued work belongs to the step before
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
        self._began += now - self._mark  # without the time to write the profile
        self._mark = self._row_began = now

    def _enter(self) -> None:
        """Charge the time passed, if the phase changes."""
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
            self._synchronize()
        now = time.perf_counter()
        self._row.ms[self._phase] += 1e3 * (now - self._mark)
        self._mark = now

    def _synchronize(self) -> None:
        if self._cuda:
            torch.cuda.synchronize(self._device)


FUNCTIONS, OPERATORS, TRACE = "functions.txt", "operators.csv", "trace.json.gz"


class DetailedProfile:
    """Base class of detailed profiles of a few steps, which slow them down.

    Args:
        first: first step, from 0.
        steps: number of steps.
    """

    def __init__(self, first: int, steps: int) -> None:
        self._window = range(first, first + steps)
        self._steps = 0

    @property
    def active(self) -> bool:
        """Return True if the current step is profiled in detail."""
        return self._steps in self._window

    def phase(self, phase: str | None) -> None:
        """Begin a phase; ``None`` at the end of the fit."""

    def step(self) -> None:
        """Count a finished step."""
        self._steps += 1

    def close(self) -> None:
        """Write the profile; a second call has no effect."""


class PythonFunctions(DetailedProfile):
    """Python functions of each phase over a few steps, by Lightning's AdvancedProfiler.

    It gets flat phases instead of Lightning's nested actions: its ``start`` ends the recording of the outer one.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        super().__init__(settings["first_step"], settings["steps"])
        self._path = folder / FUNCTIONS
        self._profiler = AdvancedProfiler(line_count_restriction=settings["functions"])
        self._running: str | None = None
        self._closed = False

    def phase(self, phase: str | None) -> None:
        """Record the functions of a phase."""
        if self._running is not None:
            self._profiler.stop(self._running)
        self._running = phase if self.active else None
        if self._running is not None:
            self._profiler.start(self._running)

    def step(self) -> None:
        """Count a finished step; close after the last one."""
        super().step()
        if self._steps == self._window.stop:
            self.close()

    def close(self) -> None:
        """Write ``functions.txt``."""
        self.phase(None)
        if self._profiler.profiled_actions and not self._closed:
            self._closed = True
            write_text(self._path, self._profiler.summary())


class TorchOperators(DetailedProfile):
    """torch.profiler over a few steps: a trace for chrome://tracing or Perfetto, and a table of operators."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], device: torch.device) -> None:
        from torch.profiler import ProfilerActivity, profile, schedule

        super().__init__(settings["first_step"], 1 + settings["steps"])  # one to warm up
        self._folder, self._operators = folder, settings["operators"]
        if device.type != "cuda":
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # off: a missing GPU is logged as an error
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        steps = schedule(skip_first=settings["first_step"], wait=0, warmup=1, active=settings["steps"], repeat=1)
        self._profile = profile(activities=activities, schedule=steps, on_trace_ready=self._write)
        self._closed = False
        self._profile.start()

    def step(self) -> None:
        """Advance torch's schedule."""
        super().step()
        if not self._closed:
            self._profile.step()

    def close(self) -> None:
        """Stop the profile, which writes its files."""
        if not self._closed:
            self._closed = True
            self._profile.stop()

    def _write(self, profile: Any) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f".{TRACE}"  # ends in .gz, so that torch compresses it
        profile.export_chrome_trace(str(part))
        part.replace(self._folder / TRACE)
        rows = sorted(profile.key_averages(), key=lambda row: -(row.self_device_time_total or row.self_cpu_time_total))
        cells = (  # times exclude the operators called by it
            (row.key, row.count, round(row.self_cpu_time_total / 1e3, 3), round(row.self_device_time_total / 1e3, 3))
            for row in rows[: self._operators]
        )
        write_table(self._folder / OPERATORS, ("operator", "calls", "cpu_ms", "gpu_ms"), cells)


def detailed_profile(settings: Mapping[str, Any], folder: Path, device: torch.device) -> DetailedProfile | None:
    """Return the detailed profile of ``profiler=advanced`` or ``pytorch``, else ``None``.

    Args:
        settings: the node ``profiler``.
        folder: ``RUN/profile``.
        device: the run's device.
    """
    if settings["kind"] == "advanced":
        return PythonFunctions(folder, settings)
    return TorchOperators(folder, settings, device) if settings["kind"] == "pytorch" else None
