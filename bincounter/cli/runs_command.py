"""The command ``runs``: a list of the runs and sweeps below folders, best first."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bincounter.cloud.cost_bills import RUNNING, state_of
from bincounter.cloud.cost_records import is_run, is_sweep, runs_inside
from bincounter.cloud.jobs import JOB_RECORD, read_job
from bincounter.cloud.tuning_job import load_tuning_job
from bincounter.config.checks import METRICS
from bincounter.errors import BinCounterError, UserError
from bincounter.number_format import is_number
from bincounter.sweep.trials import is_locked, is_running, read_outcome
from bincounter.training.results import RunResults, read_metrics, read_results
from bincounter.training.resume import is_debug_run, is_in_use

DONE, RESUMABLE, BROKEN = "done", "resumable", "broken"
_OTHER_TYPES = (TypeError, ValueError, KeyError, AttributeError)  # raised by values that were not checked before
_ENDED = (DONE, "pruned", "failed")


@dataclass(frozen=True, kw_only=True)
class ListedRun:
    """A run; the fields are the keys of ``bincounter runs --json``.

    Attributes:
        folder: of the run.
        started: in ISO 8601.
        task_name: of its configuration.
        model: name of its backbone.
        photos: number of training photos; ``None`` if it is unknown, or the run has not trained.
        epochs: number of epochs begun.
        planned_epochs: ``None`` if unknown.
        scored_on: ``test``, or ``val`` if it has no scores on test photos; ``None`` without any.
        scored_photos: number of those photos.
        scores: on those photos, by name; fractions are 0-1.
        intervals: 95 % intervals of the scores that have one.
        state: ``done``, ``running``, ``resumable``, ``failed``, ``pruned``, ``submitted``, ``not fetched``,
            ``stopped`` or ``broken``.
        reason: of a failed or broken run.
        debug: it was a debug run.
        rehearsed: its job ran on this machine.
        caveats: on its scores.
    """

    folder: str
    started: str | None = None
    task_name: str | None = None
    model: str | None = None
    photos: int | None = None
    epochs: int = 0
    planned_epochs: int | None = None
    scored_on: str | None = None
    scored_photos: int | None = None
    scores: Mapping[str, float | None] = field(default_factory=dict)
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    state: str = BROKEN
    reason: str | None = None
    debug: bool = False
    rehearsed: bool = False
    caveats: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class ListedSweep:
    """A sweep; the fields are the keys of ``bincounter runs --json``.

    Attributes:
        folder: of the sweep.
        started: start of its first trial, in ISO 8601.
        trials: number of trials in each state.
        planned_trials: ``None`` if unknown, as without a search.
        metric: score that chooses the best trial.
        best: run of its best trial.
        state: ``done``, ``running``, ``resumable`` or ``broken``.
        reason: of a broken sweep.
    """

    folder: str
    started: str | None
    trials: Mapping[str, int]
    planned_trials: int | None
    metric: str | None
    best: ListedRun | None
    state: str
    reason: str | None = None


@dataclass(frozen=True)
class RunList:
    """Runs and sweeps, best first.

    Attributes:
        runs: outside the listed sweeps.
        sweeps: with their trials summed up.
    """

    runs: Sequence[ListedRun]
    sweeps: Sequence[ListedSweep]


def list_runs(folders: Sequence[Path]) -> RunList:
    """List the runs and sweeps below folders; a folder that is a sweep itself stands for its runs.

    Raises:
        UserError: one is not a folder.
    """
    runs, sweeps, seen = list[ListedRun](), list[ListedSweep](), set[Path]()
    for top in folders:
        if not top.is_dir():
            raise UserError(f"{top} is not a folder: name a folder that holds runs, as paths.log_dir")
        for path, trials in _find(top):
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            if trials is None:
                runs.append(_read_run(path))
            elif path == top:
                runs += [_read_run(trial) for trial in trials]
            else:
                sweeps.append(_read_sweep(path, trials))
    runs.sort(key=lambda run: run.started or "", reverse=True)  # newest first among equals
    sweeps.sort(key=lambda sweep: sweep.started or "", reverse=True)
    on, best_on = ranked_on(runs), ranked_on([sweep.best for sweep in sweeps])
    return RunList(
        sorted(runs, key=lambda run: _rank(run, on)), sorted(sweeps, key=lambda sweep: _rank(sweep.best, best_on))
    )


def ranked_on(runs: Sequence[ListedRun | None]) -> str:
    """Return the side that most runs were scored on; runs of the other side are ranked behind."""
    return max(("test", "val"), key=lambda side: sum(run is not None and run.scored_on == side for run in runs))


def _rank(run: ListedRun | None, on: str) -> tuple[int, float]:
    accuracy = run.scores.get("accuracy") if run else None
    if run is None or not is_number(accuracy):
        return 2, 0.0
    return int(run.scored_on != on), -accuracy


def _find(folder: Path) -> Iterator[tuple[Path, list[Path] | None]]:
    """Yield the runs at or below a folder, and the sweeps with their trials."""
    walked = set[str]()
    for path, below, _ in os.walk(folder, followlinks=True):
        place = Path(path)
        below[:] = sorted(name for name in below if not name.startswith("."))
        if (real := os.path.realpath(path)) in walked:  # a link to a folder already read
            below.clear()
            continue
        walked.add(real)
        try:
            trials = None if is_run(place) else runs_inside(place)
        except OSError:  # reading it as a run gives the reason
            trials = None
        if trials is None or is_sweep(place, trials):
            below.clear()
            yield place, trials


def _read_run(folder: Path) -> ListedRun:
    try:
        results = read_results(folder, predictions=False)
        job = read_job(folder / JOB_RECORD) if (folder / JOB_RECORD).is_file() else None
        state, reason = _state(results, job.description if job else None)
        side = results.headline_side
        scores = results.metrics.get(side) or {}
        epochs, planned = results.epochs
        return ListedRun(
            folder=str(folder),
            started=str(results.provenance.get("started") or _written(folder / "config.yaml")),
            task_name=results.config.get("task_name"),
            model=results.model,
            photos=results.learnt or None,
            epochs=epochs,
            planned_epochs=planned,
            scored_on=side if scores else None,
            scored_photos=scores.get("n"),
            scores={name: scores.get(name) for name in METRICS if name in scores},
            intervals=scores.get("intervals", {}),
            state=state,
            reason=reason,
            debug=is_debug_run(folder),
            rehearsed=bool(job and job.rehearsed),
            caveats=results.caveats,
        )
    except BinCounterError as error:
        return ListedRun(folder=str(folder), reason=str(error))
    except OSError as error:
        return ListedRun(folder=str(folder), reason=f"{error.filename}: {error.strerror}")
    except _OTHER_TYPES as error:
        return ListedRun(folder=str(folder), reason=f"one of its files is corrupt ({type(error).__name__}): restore it")


def _written(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")


def _state(results: RunResults, described: Mapping[str, Any] | None) -> tuple[str, str | None]:
    """Return the state of a run, and the reason of a failure; sends no request to AWS."""
    outcome = read_outcome(results.path)
    if outcome and outcome.pruned:
        return "pruned", None
    if outcome and outcome.error:
        return "failed", outcome.error
    if results.metrics:
        return DONE, None
    if described is not None:
        state = state_of(described)
        known = {RUNNING: "submitted", "completed": "not fetched"}
        return known.get(state, state), described.get("FailureReason")
    if is_in_use(results.path) or is_running(results.path):
        return "running", None
    if (results.path / "checkpoints" / "last.ckpt").exists():
        return RESUMABLE, None
    return "failed", "it ended before its first checkpoint, see the .log file in its folder"


def _read_sweep(folder: Path, trials: Sequence[Path]) -> ListedSweep:
    runs = {path.name: _read_run(path) for path in trials}
    numbered = {name: run for name, run in runs.items() if name.isdecimal()} or runs  # without the retrained run
    config: Mapping[str, Any] = {}
    planned, reason = None, None
    try:
        if numbered:
            newest = max(numbered, key=lambda name: (name.isdecimal() and int(name), name))  # a search can be extended
            config = read_results(folder / newest, predictions=False).config
        tuning = load_tuning_job(folder)
        planned = tuning.trials if tuning else (config.get("hparams_search") or {}).get("n_trials")
    except BinCounterError as error:
        reason = str(error)
    except _OTHER_TYPES as error:
        reason = f"the configuration of its trials is corrupt ({type(error).__name__}): restore it"
    states = [run.state for run in numbered.values()]
    ended = sum(state in _ENDED for state in states)
    metric = str(config.get("optimized_metric") or "val/accuracy")
    busy = "running" in states or any(is_locked(path) for path in (folder / ".sweepers").glob("*.lock"))
    all_done = ended == len(states) and ended >= (planned or 0)
    return ListedSweep(
        folder=str(folder),
        started=min((run.started for run in numbered.values() if run.started), default=None),
        trials={state: states.count(state) for state in dict.fromkeys(states)},
        planned_trials=planned,
        metric=metric,
        best=_best(list(numbered.values()), metric),
        state=BROKEN if reason else "running" if busy else DONE if all_done else RESUMABLE,
        reason=reason,
    )


def _best(runs: Sequence[ListedRun], metric: str) -> ListedRun | None:
    """Find the best trial by its validation score."""
    name = metric.rpartition("/")[2]
    sign = -1 if METRICS.get(name) == "max" else 1
    scores = [read_metrics(Path(run.folder)).get("val") or {} if run.scores else {} for run in runs]
    scored = [(sign * value, number) for number, each in enumerate(scores) if is_number(value := each.get(name))]
    return runs[min(scored)[1]] if scored else None
