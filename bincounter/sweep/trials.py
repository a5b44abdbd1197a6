"""Jobs of trials: their overrides, and their outcomes in trial.json.

A job writes its outcome into the trial's folder, where a resumed search reads it: the sweeper may be killed before the
study has it.

Hydra imports this module with the sweeper, so heavy imports are inside functions.
"""

import io
import json
import math
import socket
import time
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.types import TaskFunction
from omegaconf import DictConfig

from bincounter.cloud.jobs import JOB_RECORD, Job, read_job
from bincounter.config.overrides import drop_overrides
from bincounter.config.quoting import override_of
from bincounter.errors import BinCounterError, Interrupted, Pruned, Stopped
from bincounter.files import lock, read_file, write_json
from bincounter.redaction import mask_text
from bincounter.sweep.search_plan import Plan

OUTCOME = "trial.json"
_LOCK = ".trial.lock"


@dataclass(frozen=True)
class Outcome:
    """Outcome of a job.

    Attributes:
        values: values of the objectives, if the job completed.
        error: one sentence, if it failed.
        pruned: it was ended by the pruner.
        seconds: wall time of the job, if measured.
    """

    values: list[float] | None = None
    error: str | None = None
    pruned: bool = False
    seconds: float | None = None


class RecordedTask:
    """Task function that locks its job's folder and writes an :class:`Outcome` into it.

    Args:
        task: task function of Hydra.
    """

    def __init__(self, task: TaskFunction) -> None:
        self._task, self._host = task, socket.gethostname()

    def __call__(self, cfg: DictConfig) -> Any:
        """Run the task; return its value or raise its error."""
        folder = Path(HydraConfig.get().runtime.output_dir)
        if socket.gethostname() != self._host:  # the launcher fetches the folder of a remote job
            return self._task(cfg)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _LOCK).open("w") as file:
            lock(file, inherited=False)  # not inherited by workers, which may survive a killed process
            started = time.monotonic()
            try:
                value = self._task(cfg)
            except (Interrupted, Stopped):  # to be resumed: no outcome
                raise
            except Exception as error:
                _record(folder, outcome_of_error(error), started)
                raise
            _record(folder, outcome_of_value(value), started)
        return value


def _record(folder: Path, outcome: Outcome, started: float) -> None:
    seconds = round(time.monotonic() - started, 3)
    write_json(folder / OUTCOME, {**asdict(outcome), "seconds": seconds}, indent=None)


def read_outcome(folder: Path) -> Outcome | None:
    """Read the outcome in a folder; ``None`` if there is none yet."""
    return read_file(folder / OUTCOME, lambda file: Outcome(**json.load(file)), "delete it to run the trial again")


def outcome_of_return(returned: JobReturn) -> Outcome:
    """Convert a job's return from a launcher to its outcome.

    Raises:
        Interrupted, Stopped: Ctrl-C or SIGTERM ended the job, which can be resumed.
    """
    try:
        with redirect_stderr(io.StringIO()):  # return_value prints the overrides of a failed job
            value = returned.return_value
    except Exception as error:
        return outcome_of_error(error)
    return outcome_of_value(value)


def outcome_of_error(error: BaseException) -> Outcome:
    """Convert an error to an outcome; re-raise an interruption."""
    if isinstance(error, (Interrupted, Stopped)):
        raise error
    if isinstance(error, Pruned):
        return Outcome(pruned=True)
    sentence = mask_text(next(iter(str(error).splitlines()), ""))
    return Outcome(error=sentence if isinstance(error, BinCounterError) else f"{type(error).__name__}: {sentence}")


def outcome_of_value(value: float | None) -> Outcome:
    """Convert the return value of a job to an outcome; a missing or infinite one is an error."""
    if value is None:
        return Outcome(error="the job returned no score: read its log")
    if not math.isfinite(value):
        return Outcome(error=f"the job returned {value}: it has diverged, so search smaller learning rates")
    return Outcome(values=[float(value)])


def is_running(folder: Path) -> bool:
    """Return True if another process of this machine runs the trial of a folder."""
    return is_locked(folder / _LOCK)


def is_locked(path: Path) -> bool:
    """Return True if another process holds the lock of a file."""
    if not path.exists():
        return False
    with path.open("r+") as file:
        return not lock(file, wait=0, inherited=False)


def job_overrides(
    plan: Plan, values: Mapping[str, Any], place: str, *, resuming: bool, trial: int | None = None
) -> list[str]:
    """Return all overrides of one job.

    Args:
        plan: the search.
        values: values of the trial by key.
        place: the job's folder inside the sweep's.
        resuming: resume an earlier run of the job, if there is one.
        trial: its number in the study; ``None`` for the best trial's retraining, which is scored on the test photos.
    """
    overrides = [*common_overrides(plan), *(override_of(key, value) for key, value in values.items())]
    if trial is None:
        overrides = drop_overrides(overrides, "hparams_search")
    else:
        overrides += _trial_overrides(plan, trial, overrides)
    if resuming and plan.local:
        overrides.append("ckpt_path=last")
    return [*overrides, override_of("hydra.sweep.dir", str(plan.folder)), f"hydra.sweep.subdir={place}"]


def common_overrides(plan: Plan) -> list[str]:
    """Return the overrides shared by all trials."""
    # A database's URL may hold a password, and a job's overrides are logged.
    return drop_overrides(plan.others, "paths.output_dir", "hparams_search.storage", "hparams_search.warm_start")


def _trial_overrides(plan: Plan, number: int, overrides: list[str]) -> list[str]:
    added = [f"hparams_search.trial={number}", override_of("hparams_search.study_name", plan.name)]
    if not any(each.partition("=")[0].lstrip("+") == "test" for each in overrides):
        added.append("test=false")
    pruner = plan.settings["pruner"]
    if pruner and "max_resource" in pruner:
        added.append(f"hparams_search.pruner.max_resource={pruner['max_resource']}")
    return added


def with_objectives(plan: Plan, outcome: Outcome, folder: Path) -> Outcome:
    """Return an outcome with one value per objective, read from ``metrics.json`` if the job does not return them."""
    if outcome.values is None or not plan.scored_in_folder:
        return outcome
    names = [metric.removeprefix("val/") for metric in plan.metrics]
    values = read_file(
        folder / "metrics.json",
        lambda file: [float(scores[name]) for scores in [json.load(file)["val"]] for name in names],
        "delete the trial's folder to run it again",
    )
    return replace(outcome, values=values, error=None if values else f"{folder / 'metrics.json'} is missing")


def trial_attributes(outcome: Outcome, folder: Path) -> dict[str, Any]:
    """Return attributes of the study's trial that describe its job: folder, seconds, cost, error."""
    found: dict[str, Any] = {"folder": str(folder), "seconds": outcome.seconds, "error": outcome.error}
    if (folder / JOB_RECORD).exists():
        found |= billed_attributes(read_job(folder / JOB_RECORD))
    return {name: value for name, value in found.items() if value is not None}


def billed_attributes(job: Job) -> dict[str, Any]:
    """Return attributes of the study's trial for the time and cost of its job, as far as they are known."""
    trained, billed = (job.description.get(f"{name}TimeInSeconds") for name in ("Training", "Billable"))
    usd = None if billed is None else round(billed / 3600 * job.usd_per_hour, 6)
    found = {"seconds": trained, "billed_seconds": billed, "usd": usd}
    return {name: value for name, value in found.items() if value is not None}
