"""A trial as a job; trial.json with its outcome.

The process that searches may be killed while its jobs go on, or between the end of a job and the study's hearing of it.
So the outcome stands in the trial's folder the moment there is one, and whoever goes on with the search reads it there.

Hydra imports this module with the sweeper, so that everything heavy is imported on use.
"""

import fcntl
import json
import math
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import TaskFunction
from omegaconf import DictConfig

from bincounter.cloud.hyperparameters import override_of
from bincounter.cloud.jobs import RECORD, load
from bincounter.config.overrides import without
from bincounter.errors import BinCounterError, Interrupted, Pruned, Stopped
from bincounter.files import write_text
from bincounter.sweep.search_plan import Plan

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


def job_overrides(
    plan: Plan, values: Mapping[str, Any], place: str, *, goes_on: bool, trial: int | None = None
) -> list[str]:
    """All that one job is told.

    Args:
        plan: of the search.
        values: of the trial.
        place: the job's folder inside the sweep's.
        goes_on: whether it may have been begun before.
        trial: its number in the study; ``None`` for what is no trial, and is scored on the test photos.
    """
    overrides = [*common_overrides(plan), *(override_of(key, value) for key, value in values.items())]
    if plan.own:
        if trial is None:
            overrides = without(overrides, "hparams_search")
        else:
            overrides += _trial(plan, trial, overrides)
        if goes_on and plan.here:
            overrides.append("ckpt_path=last")
    return [*overrides, override_of("hydra.sweep.dir", str(plan.folder)), f"hydra.sweep.subdir={place}"]


def common_overrides(plan: Plan) -> list[str]:
    """What every trial's overrides begin with."""
    # URLs of databases may hold passwords, and a job's overrides are written down.
    unsaid = ("paths.output_dir", "hparams_search.storage", "hparams_search.warm_start")
    return without(plan.others, *unsaid) if plan.own else plan.others


def _trial(plan: Plan, number: int, overrides: list[str]) -> list[str]:
    said = [f"hparams_search.trial={number}", f"hparams_search.study_name={plan.name}"]
    if not any(each.partition("=")[0].lstrip("+") == "test" for each in overrides):
        said.append("test=false")
    pruner = plan.settings["pruner"]
    if pruner and "max_resource" in pruner:
        said.append(f"hparams_search.pruner.max_resource={pruner['max_resource']}")
    return said


def scored(plan: Plan, outcome: Outcome, folder: Path) -> Outcome:
    """An outcome with one value for each objective; those of ``metrics.json`` where a job does not return them."""
    if outcome.values is None:
        return outcome
    values = outcome.values
    if plan.scored_in_folder:
        scores = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["val"]
        values = [float(scores[metric.removeprefix("val/")]) for metric in plan.metrics]
    if len(values) == len(plan.metrics):
        return Outcome(values=values, seconds=outcome.seconds)
    return Outcome(
        error=f"the job returned {len(values)} values and the search has {len(plan.metrics)} objectives: name each "
        "in metrics",
        seconds=outcome.seconds,
    )


def attributes(outcome: Outcome, folder: Path) -> dict[str, Any]:
    """What a trial of the study is to carry of its job."""
    found: dict[str, Any] = {"folder": str(folder), "seconds": outcome.seconds, "error": outcome.error}
    if (folder / RECORD).exists():
        job = load(folder)[0]
        trained, billed = (job.description.get(f"{name}TimeInSeconds") for name in ("Training", "Billable"))
        found["seconds"] = trained if trained is not None else found["seconds"]
        if billed is not None:
            found |= {"billed_seconds": billed, "usd": round(billed / 3600 * job.usd_per_hour, 6)}
    return {name: value for name, value in found.items() if value is not None}
