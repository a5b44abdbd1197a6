"""The bills of runs, read from what is in their folders."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bincounter.cloud.jobs import EARLIER, ENDED, RECORD, Job, read
from bincounter.cloud.spending.aws import Aws, Rehearsed
from bincounter.cloud.spending.bills import RUNNING, Bill, Score
from bincounter.errors import BinCounterError, UserError

CONFIG = "config.yaml"
_STATES = {"Completed": "completed", "Failed": "failed", "Stopped": "stopped"}
_LAST_SIGNS = ("metrics.json", "checkpoints/last.ckpt", "logs/metrics.csv", CONFIG)  # of a run, the surest first


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return (folder / RECORD).is_file() or (folder / CONFIG).is_file() or (folder / EARLIER).is_dir()


def bills_of(folder: Path, aws: Aws, notes: list[str]) -> list[Bill]:
    """The bills of one run: those of its earlier jobs, then its own.

    Args:
        folder: of the run.
        aws: is asked for a job that had not ended when it was last heard of.
        notes: is given what there is to say beside the figures.

    Raises:
        UserError: a record is damaged.
    """
    records = sorted((folder / EARLIER).glob("*.json"))
    earlier = [_job_bill(replace(read(path), folder=folder), aws, notes) for path in records]
    scores = _scores(folder / "metrics.json")
    if (folder / RECORD).is_file():
        job = read(folder / RECORD)
        bill = _job_bill(job, aws, notes)
        before = [one.usd for one in earlier if one.rehearsed == bill.rehearsed]  # nothing was paid for a rehearsal
        known = [usd for usd in before if usd is not None]
        return [*earlier, replace(bill, **scores, usd_before=sum(known) if len(known) == len(before) else None)]
    if (folder / CONFIG).is_file() and not earlier:
        return [_bill_of_run_here(folder, scores)]
    return earlier


def _job_bill(job: Job, aws: Aws, notes: list[str]) -> Bill:
    told: Mapping[str, Any] = job.description
    state = _state(told)
    if state == RUNNING:
        told, state = _asked(job, aws, notes)
    if state == "stopped" and job.pruned:
        state = "pruned"
    try:
        trained, billed = (_seconds(told.get(f"{kind}TimeInSeconds")) for kind in ("Training", "Billable"))
        if state == RUNNING:
            trained = _seconds_so_far(told)
        elif trained is None and billed is None and not told.get("TrainingStartTime") and state in _STATES.values():
            trained = billed = 0.0  # it ended before it was given an instance
    except (TypeError, ValueError):
        raise UserError(f"{job.folder / RECORD} is damaged (its seconds): get it anew with attach") from None
    return Bill(
        folder=job.folder,
        job=job.name,
        state=state,
        training_seconds=trained,
        billable_seconds=billed,
        spot=bool(told.get("EnableManagedSpotTraining")),
        instance_type=job.instance_type,
        instance_count=job.instance_count,
        usd_per_hour=job.usd_per_hour,
        price_origin=job.price_origin or "as it was recorded",
        rehearsed=job.rehearsed,
    )


def _state(told: Mapping[str, Any]) -> str:
    return _STATES.get(str(told.get("TrainingJobStatus")), RUNNING)


def _asked(job: Job, aws: Aws, notes: list[str]) -> tuple[Mapping[str, Any], str]:
    """What is known now of a job that had not ended when it was last heard of, and its state."""
    try:
        told = aws.training_job(job)
        if told is None and job.rehearsed:
            raise Rehearsed
    except Rehearsed:
        notes.append(f"{job.name} ended with its rehearsal, unfinished")
        return job.description, "cut off"
    except BinCounterError as error:
        heard = datetime.fromtimestamp((job.folder / RECORD).stat().st_mtime, UTC)
        notes.append(
            f"{job.name} was still running when it was last heard of, {heard:%Y-%m-%d %H:%M} UTC, and AWS could not be "
            f"asked ({error}): python -m bincounter attach {job.folder}"
        )
        return job.description, RUNNING
    if told is None:
        notes.append(f"{job.name} is unknown to AWS in {job.region} with these credentials")
        return job.description, "unknown"
    if told["TrainingJobStatus"] in ENDED:
        notes.append(f"{job.name} has ended; what it has is fetched by: python -m bincounter attach {job.folder}")
    return told, _state(told)


def _seconds_so_far(told: Mapping[str, Any]) -> float | None:
    """Seconds since a job was given its instances, should it still run."""
    started = told.get("TrainingStartTime")
    if not started:
        return None
    moment = started if isinstance(started, datetime) else datetime.fromisoformat(str(started))
    return max(0.0, round((datetime.now(UTC) - moment).total_seconds()))


def _seconds(value: Any) -> float | None:
    """Seconds as SageMaker tells them.

    Raises:
        ValueError: they cannot be that.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(value)
    return value


def _bill_of_run_here(folder: Path, scores: Mapping[str, Any]) -> Bill:
    """A run that this machine carried out; its files say when it began and when it wrote last."""
    started = _json(folder / "provenance.json").get("started")
    signs: Iterable[Path] = (folder / name for name in _LAST_SIGNS)
    ended = next((sign.stat().st_mtime for sign in signs if sign.exists()), None)
    seconds = None
    try:
        if started and ended is not None:
            seconds = max(0.0, round(ended - datetime.fromisoformat(started).timestamp()))
    except (TypeError, ValueError):
        raise UserError(f"{folder / 'provenance.json'} is damaged (started): bring it back from a copy") from None
    state = "here" if (folder / "metrics.json").exists() else "here, unfinished"
    return Bill(
        folder=folder, job=None, state=state, training_seconds=seconds, val=scores.get("val"), test=scores.get("test")
    )


def _scores(path: Path) -> dict[str, Any]:
    """What a run scored, by ``val`` and ``test``; a side without an accuracy or a baseline is left out."""
    scores = {}
    for side, told in _json(path).items():
        if side not in ("val", "test"):
            continue
        accuracy, majority = (_fraction(told, name) for name in ("accuracy", "majority_accuracy"))
        if accuracy is not None and majority is not None:
            scores[side] = Score(side, accuracy, majority)
    return scores


def _fraction(told: Any, name: str) -> float | None:
    value = told.get(name) if isinstance(told, dict) else None
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _json(path: Path) -> dict[str, Any]:
    """A JSON file with an object in it, or an empty one where it is missing.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: bring it back from a copy, or score the run again")
    return content
