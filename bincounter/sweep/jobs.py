"""A trial as a job: the overrides that a launcher gets, and the outcome that the study is told."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bincounter.cloud.jobs import RECORD, load
from bincounter.cloud.overrides import without
from bincounter.sweep.plan import Plan
from bincounter.sweep.space import override_of
from bincounter.sweep.trials import Outcome


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
