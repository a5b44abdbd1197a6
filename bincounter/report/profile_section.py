"""Section of the report with the profile: phases, timeline, usage of the machine, and advice."""

from typing import Any

import numpy as np
from markupsafe import Markup

from bincounter.number_format import percent
from bincounter.profiler.advice import advice
from bincounter.profiler.profile_facts import Profile, ProfileFacts
from bincounter.profiler.profile_record import (
    AUGMENTATION,
    BACKWARD,
    CHECKPOINT,
    DATA,
    DEBUGGER,
    FORWARD,
    LOGGING,
    OPTIMIZER,
    PHASES,
    REST,
    TRANSFER,
    VALIDATION,
    Row,
    Session,
    Usage,
)
from bincounter.report import plots

_INTERVALS = 96  # intervals of the timeline
_POINTS = 200  # points of a usage curve, at most
# Groups of the timeline: class of the key, colour and opacity, phases.
_GROUPS = {
    "waiting for data": ("dark", f"{plots.INK}/0.8", (DATA,)),
    "transfer and augmentation": ("grey", f"{plots.MUTED}/0.6", (TRANSFER, AUGMENTATION)),
    "forward, backward, optimizer": ("block", f"{plots.ACCENT}/1", (FORWARD, BACKWARD, OPTIMIZER)),
    "validation": ("pale", f"{plots.ACCENT}/0.6", (VALIDATION,)),
    "logging, debugger and checkpoints": ("palest", f"{plots.ACCENT}/0.3", (LOGGING, DEBUGGER, CHECKPOINT)),
    "rest": ("line", f"{plots.LINE}/1", (REST,)),
}
_USAGE: dict[str, tuple[str, float]] = {
    "cpu_percent": ("CPU of the run, cores", 0.01),
    "machine_cpu_percent": ("CPU of the machine, %", 1),
    "rss_mb": ("Memory of the run, GB", 0.001),
    "memory_percent": ("Memory of the machine in use, %", 1),
    "read_mb_s": ("Read from disk, MB/s", 1),
    "write_mb_s": ("Written to disk, MB/s", 1),
    "gpu_percent": ("GPU computing, %", 1),
    "gpu_memory_mb": ("GPU memory in use, GB", 0.001),
}


def profile_section(profile: Profile | None) -> dict[str, Any] | None:
    """Build the values of the template ``profile.html``; ``None`` without a profile."""
    if profile is None:
        return None
    record, facts = profile.record, profile.facts
    starts = _starts(record.sessions, record.rows)
    return {
        "note": _note(facts),
        "rows": [
            (name, facts.step_ms[phase], facts.share(phase), facts.fit_s[phase], facts.fit_share(phase))
            for phase, name in PHASES.items()
        ],
        "step_ms": facts.exact_step_ms,
        "fit_s": sum(facts.fit_s.values()),
        "timeline": _timeline(record.rows, starts),
        "key": [(group[0], name) for name, group in _GROUPS.items()],
        "usage": _usage(record.usage, facts),
        "curves": _curves(record.usage, starts, facts),
        "advice": advice(facts),
    }


def _note(facts: ProfileFacts) -> str:
    """Describe the steps that the table's means are over."""
    machine = facts.machine
    threads = machine.get("threads", 1)
    where = (
        machine.get("gpu") or f"{machine.get('cores')} CPU cores with {threads} computing thread{'s' * (threads > 1)}"
    )
    note = f"Means over {facts.exact_steps:,} of {facts.steps:,} steps on {where}; each moment belongs to one phase."
    if facts.slowed:
        note += " All of these were profiled in detail, which slows them down: profiler=simple has the times."
    elif facts.slowed_steps:
        note += f" {facts.slowed_steps:,} others were profiled in detail, which slows them down, and are not included."
    if not facts.on_gpu or not facts.free_step_ms:
        return note
    longer = percent(facts.exact_step_ms / facts.free_step_ms - 1, 0)
    idle = percent(facts.gpu_idle_ms / facts.free_step_ms, 0)
    return (
        f"{note} In those steps phases were synchronised with the GPU, which made them {longer} longer than the others "
        f"({facts.free_step_ms:.1f} ms); in the others the GPU was idle for at least {idle} of the time."
    )


def _starts(sessions: list[Session], rows: list[Row]) -> list[float]:
    """Return the second at which each session starts, with the sessions joined without gaps."""
    ends = [
        max((row.start_s + row.wall_ms / 1e3 for row in rows if row.session == number), default=0.0)
        for number in range(len(sessions))
    ]
    return [sum(ends[:number]) for number in range(len(ends))]


def _timeline(rows: list[Row], starts: list[float]) -> Markup:
    """Plot the shares of phases over the fit."""
    exact = [row for row in rows if row.exact]
    end = max(starts[row.session] + row.start_s + row.wall_ms / 1e3 for row in exact)
    edges = np.linspace(0, end, _INTERVALS + 1)
    spent = {name: np.zeros(_INTERVALS) for name in _GROUPS}
    for row in exact:
        begin = starts[row.session] + row.start_s
        overlap = np.minimum(edges[1:], begin + row.wall_ms / 1e3) - np.maximum(edges[:-1], begin)
        portion = np.clip(overlap, 0, None) / max(row.wall_ms / 1e3, 1e-9)
        for name, (_, _, phases) in _GROUPS.items():
            spent[name] += portion * sum(row.ms[phase] for phase in phases)
    whole = sum(spent.values())
    parts = {name: np.divide(each, whole, out=np.zeros_like(each), where=whole > 0) for name, each in spent.items()}
    colours = {name: group[1] for name, group in _GROUPS.items()}
    scale, unit = (60, "Minutes") if end > 300 else (1, "Seconds")
    label = "Shares of phases over the fit"
    return plots.shares(edges / scale, parts, xlabel=f"{unit} of the fit", label=label, colours=colours)


def _usage(samples: list[Usage], facts: ProfileFacts) -> list[tuple[str, float, float]]:
    """Return name, mean and peak of the columns that this machine has."""
    if not samples:
        return []
    return [
        (name, facts.mean[column] * scale, facts.peak[column] * scale)
        for column, (name, scale) in _USAGE.items()
        if column in facts.mean
    ]


def _curves(
    samples: list[Usage], starts: list[float], facts: ProfileFacts
) -> list[tuple[str, Markup, list[tuple[str, str]]]]:
    """Return plots of CPU, GPU, memory and disks over time: title, plot, and key."""
    some = samples[:: -(-len(samples) // _POINTS) or 1]
    if len(some) < 3:
        return []
    seconds = [starts[sample.session] + sample.at_s for sample in some]
    scale, unit = (60, "Minutes") if seconds[-1] > 300 else (1, "Seconds")
    at = [second / scale for second in seconds]

    def line(column: str, factor: float = 1.0) -> plots.Points:
        values = [getattr(sample, column) for sample in some]
        return [(x, value * factor) for x, value in zip(at, values, strict=True) if value is not None]

    def drawn(title: str, label: str, series: dict[str, plots.Points], *, percent: bool) -> None:
        key = [("other", name) for name in list(series)[:-1]] + [("", list(series)[-1])]
        plot = plots.lines(series, xlabel=f"{unit} of the fit", label=label, percent=percent)
        curves.append((title, plot, key))

    curves: list[tuple[str, Markup, list[tuple[str, str]]]] = []
    cores = facts.machine.get("machine_cores", 1)
    processors = {"the whole machine": line("machine_cpu_percent", 0.01), "this run": line("cpu_percent", 0.01 / cores)}
    drawn("CPU", "CPU by time", processors, percent=True)
    if "gpu_percent" in facts.mean:
        drawn("GPU", "GPU by time", {"computing": line("gpu_percent", 0.01)}, percent=True)
    memory = {"in use on the machine": line("memory_percent", 0.01)}
    drawn("Memory", "Memory by time", memory, percent=True)
    if "read_mb_s" in facts.mean:
        disks = {"read": line("read_mb_s"), "written": line("write_mb_s")}
        drawn("Disk, MB/s", "Disk by time", disks, percent=False)
    return curves
