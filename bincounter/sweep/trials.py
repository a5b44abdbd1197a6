"""What became of one trial, written into its folder by the process that ran it.

The process that searches may be killed while its jobs go on, or between the end of a job and the study's hearing of it.
So the outcome stands in the trial's folder the moment there is one, and whoever goes on with the search reads it there.

Hydra imports this module with the sweeper, so that everything heavy is imported on use.
"""

import fcntl
import json
import math
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import TaskFunction
from omegaconf import DictConfig

from bincounter.errors import BinCounterError, Interrupted, Pruned, Stopped
from bincounter.files import write_text

OUTCOME = "trial.json"
_LOCK = ".trial.lock"


@dataclass(frozen=True)
class Outcome:
    """What a job came to.

    Attributes:
        values: of the objectives, if it completed.
        error: one sentence, if it failed.
        pruned: whether it was ended since others promise more.
        seconds: that the job took, where they were taken.
    """

    values: list[float] | None = None
    error: str | None = None
    pruned: bool = False
    seconds: float | None = None


class RecordedTask:
    """A task function that leaves an :class:`Outcome` in its job's folder, and is known to be at work there.

    Args:
        task: the app's own.
    """

    def __init__(self, task: TaskFunction) -> None:
        self._task, self._host = task, socket.gethostname()

    def __call__(self, cfg: DictConfig) -> Any:
        """Run the task, whose value or error passes."""
        folder = Path(HydraConfig.get().runtime.output_dir)
        if socket.gethostname() != self._host:  # a remote job's folder is fetched, by a launcher that tells by itself
            return self._task(cfg)
        with _at_work(folder):
            started = time.monotonic()
            try:
                value = self._task(cfg)
            except (Interrupted, Stopped):  # to be gone on with
                raise
            except Exception as error:
                _record(folder, of_error(error), started)
                raise
            _record(folder, of_value(value), started)
        return value


def _record(folder: Path, outcome: Outcome, started: float) -> None:
    seconds = round(time.monotonic() - started, 3)
    write_text(folder / OUTCOME, json.dumps({**asdict(outcome), "seconds": seconds}) + "\n")


def recorded(folder: Path) -> Outcome | None:
    """The outcome that a folder holds, or ``None`` where there is none yet."""
    path = folder / OUTCOME
    return Outcome(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def of_return(returned: JobReturn) -> Outcome:
    """Read what a launcher brought back.

    Raises:
        Interrupted: Ctrl-C ended the job, which is to be gone on with.
    """
    value = returned._return_value  # its property prints and raises
    return of_value(value) if returned.status == JobStatus.COMPLETED else of_error(value)


def of_error(error: BaseException) -> Outcome:
    """An outcome that is an error."""
    if isinstance(error, (Interrupted, Stopped)):
        raise error
    if isinstance(error, Pruned) or type(error).__name__ == "TrialPruned":  # Optuna's own, from other apps
        return Outcome(pruned=True)
    sentence = next(iter(str(error).splitlines()), "")
    return Outcome(error=sentence if isinstance(error, BinCounterError) else f"{type(error).__name__}: {sentence}")


def of_value(value: Any) -> Outcome:
    """An outcome that is a value, or several; what cannot be compared is an error."""
    if value is None:
        return Outcome(error="the job returned nothing: have it return the value to optimise")
    several = isinstance(value, Iterable) and not isinstance(value, str) and getattr(value, "ndim", 1) > 0
    try:
        values = [float(each) for each in (value if several else [value])]
    except (TypeError, ValueError):
        values = []
    if not values:
        kind = type(value).__name__
        return Outcome(error=f"the job returned a {kind}: have it return a number, or one for each objective")
    if not all(math.isfinite(each) for each in values):
        return Outcome(error=f"the job returned {value}: it seems to have diverged, so search smaller learning rates")
    return Outcome(values=values)


@contextmanager
def _at_work(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)  # unlike flock, it does not live on in a killed process's own workers
        yield


def at_work(folder: Path) -> bool:
    """Whether another process of this machine runs the trial of a folder."""
    return locked(folder / _LOCK)


def locked(path: Path) -> bool:
    """Whether another process holds the lock of a file."""
    if not path.exists():
        return False
    with path.open("r+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
