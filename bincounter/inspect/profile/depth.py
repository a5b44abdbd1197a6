"""What ``profiler=advanced`` and ``profiler=pytorch`` look into, over a few steps of a run."""

import cProfile
import csv
import os
import pstats
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from bincounter.files import replacing

FUNCTIONS, OPERATORS, TRACE = "functions.csv", "operators.csv", "trace.json.gz"


class Depth(Protocol):
    """What is told of phases and steps."""

    @property
    def looking(self) -> bool:
        """Whether it looks into the step under way, and slows it down."""

    def phase(self, phase: str | None) -> None:
        """A phase begins; ``None``: the fit is over."""

    def step(self) -> None:
        """A step is over."""

    def close(self) -> None:
        """Write what was found; does nothing the second time."""


def depth_of(settings: Mapping[str, Any], folder: Path, device: torch.device) -> Depth | None:
    """What the settings ask for beside ``profiler=simple``.

    Args:
        settings: the node ``profiler``.
        folder: ``RUN/profile``.
        device: of the run.
    """
    if settings["kind"] == "advanced":
        return PythonFunctions(folder, settings)
    return TorchOperators(folder, settings, device) if settings["kind"] == "pytorch" else None


class PythonFunctions:
    """One cProfile per phase, since one over all would not tell which phase called a function."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder, self._functions = folder, settings["functions"]
        self._from, self._to = settings["first_step"], settings["first_step"] + settings["steps"]
        self._profiles: dict[str, cProfile.Profile] = {}
        self._running: cProfile.Profile | None = None
        self._steps = 0
        self._closed = False

    @property
    def looking(self) -> bool:
        """Whether functions are followed."""
        return self._from <= self._steps < self._to

    def phase(self, phase: str | None) -> None:
        """Go over to the profile of a phase."""
        self._pause()
        if phase is not None and self.looking:
            self._running = self._profiles.setdefault(phase, cProfile.Profile())
            self._running.enable()

    def step(self) -> None:
        """Count it."""
        self._steps += 1
        if self._steps == self._to:
            self.close()

    def close(self) -> None:
        """Write ``functions.csv``."""
        self._pause()
        if self._closed or not self._profiles:
            return
        self._closed = True
        with replacing(self._folder / FUNCTIONS) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["phase", "function", "calls", "own_ms", "total_ms"])
            for phase, profile in self._profiles.items():
                writer.writerows([phase, *row] for row in _functions(profile)[: self._functions])

    def _pause(self) -> None:
        if self._running is not None:
            self._running.disable()
            self._running = None


def _functions(profile: cProfile.Profile) -> list[tuple[str, int, float, float]]:
    """Name, calls, own and total milliseconds of functions, those that take longest themselves first."""
    stats: Any = pstats.Stats(profile)
    rows = []
    for (file, line, name), (_, calls, own, total, _) in stats.stats.items():
        place = name if file == "~" else f"{'/'.join(Path(file).parts[-2:])}:{line} {name}"
        rows.append((place, calls, round(1e3 * own, 3), round(1e3 * total, 3)))
    return sorted(rows, key=lambda row: -row[2])


class TorchOperators:
    """torch.profiler over a few steps: a trace for chrome://tracing or Perfetto, and a table of operators."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], device: torch.device) -> None:
        from torch.profiler import ProfilerActivity, profile, schedule

        self._folder, self._operators = folder, settings["operators"]
        self._from, self._to = settings["first_step"], settings["first_step"] + 1 + settings["steps"]  # 1 to warm it up
        self._steps = 0
        if device.type != "cuda":
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # none: it tells as an error that there is no GPU
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        course = schedule(skip_first=settings["first_step"], wait=0, warmup=1, active=settings["steps"], repeat=1)
        self._profile = profile(activities=activities, schedule=course, on_trace_ready=self._write)
        self._closed = False
        self._profile.start()

    @property
    def looking(self) -> bool:
        """Whether operators are followed."""
        return self._from <= self._steps < self._to

    def phase(self, phase: str | None) -> None:
        """Phases are told by the operators themselves."""

    def step(self) -> None:
        """Tell torch."""
        self._steps += 1
        if not self._closed:
            self._profile.step()

    def close(self) -> None:
        """End the profile; what it has so far is written."""
        if not self._closed:
            self._closed = True
            self._profile.stop()

    def _write(self, profile: Any) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f".{TRACE}"  # torch packs what ends in .gz
        profile.export_chrome_trace(str(part))
        part.replace(self._folder / TRACE)
        rows = sorted(profile.key_averages(), key=lambda row: -(row.self_device_time_total or row.self_cpu_time_total))
        with replacing(self._folder / OPERATORS) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["operator", "calls", "cpu_ms", "gpu_ms"])  # without those that it calls
            for row in rows[: self._operators]:
                cpu, gpu = row.self_cpu_time_total / 1e3, row.self_device_time_total / 1e3
                writer.writerow([row.key, row.count, round(cpu, 3), round(gpu, 3)])
