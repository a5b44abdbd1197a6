"""Summary of a profile, for its table and its advice."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bincounter.files import look_up
from bincounter.profiler.profile_record import (
    AUGMENTATION,
    BACKWARD,
    DATA,
    FOLDER,
    FORWARD,
    OPTIMIZER,
    PHASES,
    TRANSFER,
    ProfileRecord,
    read_record,
)

ON_DEVICE = (TRANSFER, AUGMENTATION, FORWARD, BACKWARD, OPTIMIZER)


@dataclass(frozen=True)
class ProfileFacts:
    """Figures of all sessions of a run.

    Attributes:
        step_ms: mean milliseconds of a step by phase, over steps with exact phases that were not profiled in detail;
            over those that were, if there are no others.
        free_step_ms: mean milliseconds of a step without synchronisation; the sum of ``step_ms`` if all were exact.
        fit_s: seconds of the whole fit by phase.
        steps: number of steps.
        exact_steps: number of steps in the means of ``step_ms``.
        slowed_steps: number of steps profiled in detail, which slows them down.
        slowed: ``step_ms`` is of the steps profiled in detail.
        machine: description of the last session's machine, see :class:`~bincounter.profiler.profile_record.Session`.
        mean: mean of the usage samples by column; columns unknown on this machine are missing.
        peak: maximum of each column.
        config: the run's configuration.
    """

    step_ms: Mapping[str, float]
    free_step_ms: float
    fit_s: Mapping[str, float]
    steps: int
    exact_steps: int
    slowed_steps: int = 0
    slowed: bool = False
    machine: Mapping[str, Any] = field(default_factory=dict)
    mean: Mapping[str, float] = field(default_factory=dict)
    peak: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exact_step_ms(self) -> float:
        """Milliseconds of a step with synchronised phases."""
        return sum(self.step_ms.values())

    @property
    def on_gpu(self) -> bool:
        """Return True if the run computed on a CUDA device."""
        return self.machine.get("device") == "cuda"

    @property
    def gpu_idle_ms(self) -> float:
        """Lower bound of the GPU's idle time in a step without synchronisation, in milliseconds.

        Time of the CPU to launch kernels counts as busy.
        """
        busy = sum(self.step_ms[phase] for phase in ON_DEVICE)
        return max(self.free_step_ms - busy, 0.0)

    @property
    def waiting_ms(self) -> float:
        """Milliseconds of a step spent waiting for a batch.

        A GPU may still compute while the next batch is fetched: only its idle time counts.
        """
        return min(self.step_ms[DATA], self.gpu_idle_ms) if self.on_gpu else self.step_ms[DATA]

    def share(self, phase: str) -> float:
        """Fraction of a phase in a step, 0-1."""
        return self.step_ms[phase] / max(self.exact_step_ms, 1e-9)

    def fit_share(self, phase: str) -> float:
        """Fraction of a phase in the whole fit, 0-1."""
        return self.fit_s[phase] / max(sum(self.fit_s.values()), 1e-9)

    def setting(self, key: str) -> Any:
        """Value of the run's configuration by its dotted name, or ``None``."""
        return look_up(self.config, key)


@dataclass(frozen=True)
class Profile:
    """Profile of a run: its record and the summary of it."""

    record: ProfileRecord
    facts: ProfileFacts


def read_profile(run: Path, config: Mapping[str, Any]) -> Profile | None:
    """Read the profile in a run's folder.

    Args:
        run: the run's folder.
        config: the run's configuration.

    Returns:
        ``None`` if nothing was measured, or only the first step, which warms up.

    Raises:
        UserError: a file is corrupt.
    """
    record = read_record(run / FOLDER)
    facts = None if record is None else summarize(record, config)
    return None if record is None or facts is None else Profile(record, facts)


def summarize(record: ProfileRecord, config: Mapping[str, Any]) -> ProfileFacts | None:
    """Summarise a record.

    Args:
        record: the record of a run.
        config: the run's configuration.

    Returns:
        ``None`` if only the first step was measured, which warms up.
    """
    slowed = not any(session.exact_steps for session in record.sessions)
    kind = "slowed" if slowed else "exact"
    exact = sum(getattr(session, f"{kind}_steps") for session in record.sessions)
    if not exact:
        return None
    free = sum(session.free_steps for session in record.sessions)
    sums = [getattr(session, f"{kind}_ms") for session in record.sessions]
    step_ms = {phase: sum(each[phase] for each in sums) / exact for phase in PHASES}
    whole = max(sum(step_ms.values()), 1e-9)
    steps_s = sum(session.steps_s for session in record.sessions)
    between = {phase: sum(each.between_s[phase] for each in record.sessions) for phase in PHASES}
    samples: dict[str, list[float]] = {}
    for sample in record.usage:
        for name, value in vars(sample).items():
            if value is not None:
                samples.setdefault(name, []).append(value)
    return ProfileFacts(
        step_ms=step_ms,
        free_step_ms=sum(session.free_ms for session in record.sessions) / free if free else whole,
        fit_s={phase: steps_s * step_ms[phase] / whole + between[phase] for phase in PHASES},
        steps=sum(session.steps for session in record.sessions),
        exact_steps=exact,
        slowed_steps=sum(session.slowed_steps for session in record.sessions),
        slowed=slowed,
        machine=record.sessions[-1].machine,
        mean={name: sum(values) / len(values) for name, values in samples.items()},
        peak={name: max(values) for name, values in samples.items()},
        config=config,
    )
