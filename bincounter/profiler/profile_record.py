"""Phases of a step, and the files of ``RUN/profile``.

``steps.csv`` has a row per step and one per end of an epoch, ``usage.csv`` one per sample of the machine, and
``sessions.json`` the sums over all steps, with or without a row. A session is one start of the run: steps repeated by
a resumed run are counted twice.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from bincounter.errors import UserError
from bincounter.files import atomic_write, write_json

DATA, TRANSFER, AUGMENTATION = "data", "transfer", "augmentation"
FORWARD, BACKWARD, OPTIMIZER = "forward", "backward", "optimizer"
LOGGING, DEBUGGER, CHECKPOINT, VALIDATION, REST = "logging", "debugger", "checkpoint", "validation", "rest"

PHASES = {
    DATA: "Waiting for data",
    TRANSFER: "Transfer to the device",
    AUGMENTATION: "Augmentation",
    FORWARD: "Forward",
    BACKWARD: "Backward",
    OPTIMIZER: "Optimizer",
    LOGGING: "Logging and progress",
    DEBUGGER: "Debugger",
    CHECKPOINT: "Checkpoints",
    VALIDATION: "Validation",
    REST: "Rest",
}
"""Titles of all phases by their column names."""

NEXT_BATCH = "train_dataloader_next"

# Names of actions without their class; see Lightning's trainer/call.py and loops.
_BY_HOOK = {
    NEXT_BATCH: DATA,
    "batch_to_device": TRANSFER,
    "on_after_batch_transfer": AUGMENTATION,
    "training_step": FORWARD,
    "backward": BACKWARD,
    "optimizer_step": OPTIMIZER,
    "optimizer_zero_grad": OPTIMIZER,
    "on_before_optimizer_step": OPTIMIZER,
    "configure_gradient_clipping": OPTIMIZER,
    "lr_scheduler_step": OPTIMIZER,
    "save_checkpoint": CHECKPOINT,
}


def phase_of(action: str, callbacks: Mapping[str, str]) -> str | None:
    """Return the phase of an action of Lightning.

    Args:
        action: its name, such as ``[Strategy]SingleDeviceStrategy.backward`` or ``save_checkpoint``.
        callbacks: phases of callbacks by their ``state_key``; others, such as a user's own, count as logging.

    Returns:
        ``None`` if the action belongs to the phase around it.
    """
    owner, _, hook = action.rpartition(".")
    if owner.startswith("[Callback]") and not hook.endswith(("_save_checkpoint", "_load_checkpoint")):
        return callbacks.get(owner.removeprefix("[Callback]"), LOGGING)
    return _BY_HOOK.get(hook)


def ends_a_step(action: str) -> bool:
    """Return True for an action at the end of an epoch, after its last step."""
    return action.endswith((".on_validation_start", ".on_validation_model_zero_grad", ".on_train_epoch_end"))


def ends_optimization(action: str) -> bool:
    """Return True for the last action of a step before metrics and loggers."""
    return action.startswith("[LightningModule]") and action.endswith(".on_train_batch_end")


FOLDER = "profile"
STEP, BETWEEN = "step", "between"  # the two kinds of rows
_ROWS = 4000  # of each file; with more, every second one is dropped
_ABOUT = ("session", "epoch", "batch", "part", "start_s", "exact", "wall_ms")
_MEASURED = (
    "cpu_percent",
    "machine_cpu_percent",
    "rss_mb",
    "memory_percent",
    "read_mb_s",
    "write_mb_s",
    "gpu_percent",
    "gpu_memory_mb",
)


@dataclass
class Row:
    """One step, or the time between an epoch's last step and the next one's first.

    Attributes:
        session: number of earlier starts of the run.
        epoch: from 0.
        batch: in the epoch, from 0.
        part: ``step`` or ``between``.
        start_s: seconds since the session's first step.
        exact: the clock synchronised with the device at each phase; otherwise only ``wall_ms`` is exact.
        wall_ms: milliseconds from start to end.
        ms: milliseconds by phase; they add up to ``wall_ms``.
    """

    session: int
    epoch: int
    batch: int
    part: str
    start_s: float
    exact: bool
    wall_ms: float
    ms: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    def cells(self) -> dict[str, Any]:
        """Return the cells of ``steps.csv`` by column."""
        about = {name: getattr(self, name) for name in _ABOUT}
        times = {f"{phase}_ms": round(value, 4) for phase, value in self.ms.items()}
        rounded = {"start_s": round(self.start_s, 4), "exact": int(self.exact), "wall_ms": round(self.wall_ms, 4)}
        return {**about, **rounded, **times}

    @classmethod
    def read(cls, row: dict[str, str]) -> Self:
        """Parse a row of ``steps.csv``."""
        return cls(
            session=int(row["session"]),
            epoch=int(row["epoch"]),
            batch=int(row["batch"]),
            part=row["part"],
            start_s=float(row["start_s"]),
            exact=row["exact"] == "1",
            wall_ms=float(row["wall_ms"]),
            ms={phase: float(row[f"{phase}_ms"]) for phase in PHASES},
        )


@dataclass
class Usage:
    """One sample of the machine; ``None`` where it is unknown.

    Attributes:
        session: as in :class:`Row`.
        at_s: seconds since the session's first step.
        cpu_percent: CPU use of the run's processes together; 100 is one core.
        machine_cpu_percent: CPU use of all processes; 100 is all cores.
        rss_mb: memory of the run's processes; shared memory counts for each.
        memory_percent: unavailable memory of the machine.
        read_mb_s: MB/s read from disks by the run's processes.
        write_mb_s: MB/s written to disks by them.
        gpu_percent: GPU utilisation.
        gpu_memory_mb: GPU memory used by all processes.
    """

    session: int
    at_s: float
    cpu_percent: float
    machine_cpu_percent: float
    rss_mb: float
    memory_percent: float
    read_mb_s: float | None = None
    write_mb_s: float | None = None
    gpu_percent: float | None = None
    gpu_memory_mb: float | None = None

    @classmethod
    def read(cls, row: dict[str, str]) -> Self:
        """Parse a row of ``usage.csv``."""
        measured = {name: float(row[name]) if row[name] else None for name in _MEASURED}
        return cls(int(row["session"]), float(row["at_s"]), **measured)  # type: ignore[arg-type]


@dataclass
class Session:
    """Sums over one start of a run, and the machine it ran on.

    Attributes:
        steps: number of steps.
        steps_s: seconds of all steps.
        exact_steps: number of ``exact`` steps, except the first, which warms up, and those profiled in detail.
        exact_ms: milliseconds of these steps by phase.
        slowed_steps: number of ``exact`` steps profiled in detail by ``profiler=advanced`` or ``pytorch``.
        slowed_ms: milliseconds of these steps by phase.
        free_steps: number of steps without synchronisation, with the exceptions of ``exact_steps``.
        free_ms: milliseconds of these steps.
        between_s: seconds between epochs by phase.
        machine: cores, threads, workers, device, and the source of the photos.
    """

    steps: int = 0
    steps_s: float = 0.0
    exact_steps: int = 0
    exact_ms: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    slowed_steps: int = 0
    slowed_ms: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    free_steps: int = 0
    free_ms: float = 0.0
    between_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    machine: dict[str, Any] = field(default_factory=dict)

    def add(self, row: Row, *, slowed: bool = False) -> None:
        """Add a row.

        Args:
            row: a step, or the end of an epoch.
            slowed: the step was profiled in detail.
        """
        if row.part == BETWEEN:
            for phase, value in row.ms.items():
                self.between_s[phase] += value / 1e3
            return
        self.steps += 1
        self.steps_s += row.wall_ms / 1e3
        if self.steps == 1:
            return
        if row.exact:
            self.slowed_steps += slowed
            self.exact_steps += not slowed
            sums = self.slowed_ms if slowed else self.exact_ms
            for phase, value in row.ms.items():
                sums[phase] += value
        elif not slowed:
            self.free_steps += 1
            self.free_ms += row.wall_ms


@dataclass
class ProfileRecord:
    """Content of ``RUN/profile``, except traces, functions and operators."""

    sessions: list[Session] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    usage: list[Usage] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write the files, each atomically and with at most 4000 rows."""
        self.rows, self.usage = _thinned(self.rows), _thinned(self.usage)
        columns = [*_ABOUT, *(f"{phase}_ms" for phase in PHASES)]
        _write(folder / "steps.csv", columns, [row.cells() for row in self.rows])
        samples = [asdict(sample) for sample in self.usage]
        _write(folder / "usage.csv", ["session", "at_s", *_MEASURED], samples)
        write_json(folder / "sessions.json", [asdict(session) for session in self.sessions], indent=1)


def read_record(folder: Path) -> ProfileRecord | None:
    """Read a record.

    Args:
        folder: ``RUN/profile``.

    Returns:
        ``None`` if nothing was measured.

    Raises:
        UserError: a file is corrupt.
    """
    if not (folder / "sessions.json").is_file():
        return None
    try:
        sessions = [Session(**each) for each in json.loads((folder / "sessions.json").read_text(encoding="utf-8"))]
        rows = [Row.read(each) for each in _read(folder / "steps.csv")]
        return ProfileRecord(sessions, rows, [Usage.read(each) for each in _read(folder / "usage.csv")])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise UserError(f"{folder} is corrupt ({type(error).__name__}): delete it to continue without") from error


def _thinned(rows: list[Any]) -> list[Any]:
    """Drop every second row of each part until at most ``_ROWS`` are left."""
    while len(rows) > _ROWS:
        parts: dict[str, int] = {}
        kept = []
        for row in rows:
            part = getattr(row, "part", STEP)
            parts[part] = parts.get(part, -1) + 1
            if parts[part] % 2 == 0:
                kept.append(row)
        rows = kept
    return rows


def _write(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    with atomic_write(path) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
