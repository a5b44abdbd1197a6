"""Results of a study: its own trials, the best ones, ties, and printed tables."""

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from bincounter.config.checks import metric_mode
from bincounter.errors import UserError
from bincounter.names import first_of
from bincounter.number_format import format_interval, format_score, is_fraction
from bincounter.redaction import mask_argument
from bincounter.training.results import read_metrics

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

WORDS = {"COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
"""Optuna's states and their names in texts."""

_LONGEST = 22  # characters of a column's name
_SHOWN = 10  # ties listed in a sentence


def own_trials(study: "Study") -> "list[FrozenTrial]":
    """Return the trials of this search in order, without those of a warm start."""
    return [trial for trial in study.get_trials(deepcopy=False) if "warm_start" not in trial.user_attrs]


def completed(study: "Study") -> "list[FrozenTrial]":
    """Return own completed trials with finite values."""
    trials = [trial for trial in own_trials(study) if trial.state.name == "COMPLETE"]  # pruned ones have values, too
    return [trial for trial in trials if trial.values and all(map(math.isfinite, trial.values))]


def best_trials(study: "Study") -> "list[FrozenTrial]":
    """Return the best completed own trial, or with several objectives the Pareto front.

    Returns:
        At most one trial, the first of equal ones; or the front, best first by the first objective.
    """
    trials = completed(study)
    losses = {trial.number: _losses(study, trial) for trial in trials}
    ranked = sorted(trials, key=lambda trial: losses[trial.number])
    if len(study.directions) == 1:
        return ranked[:1]
    return [one for one in ranked if not any(_dominates(losses[other.number], losses[one.number]) for other in trials)]


def seconds(trial: "FrozenTrial") -> float | None:
    """Return the wall time of a trial's run; ``None`` if it has not ended."""
    measured = trial.user_attrs.get("seconds")
    return measured if measured is not None or trial.duration is None else trial.duration.total_seconds()


def saved_seconds(trial: "FrozenTrial") -> float:
    """Return the seconds saved by pruning a trial; 0 if its job completed before it was stopped."""
    return float(trial.user_attrs.get("saved_seconds", 0)) if trial.state.name == "PRUNED" else 0.0


def state(trial: "FrozenTrial") -> str:
    """Return the name of a trial's state."""
    return WORDS[trial.state.name]


def format_tally(study: "Study") -> str:
    """Format counts, such as ``20 trials: 16 completed, 3 pruned, 1 failed``."""
    trials = own_trials(study)
    found = Counter(map(state, trials))
    parts = ", ".join(f"{found[word]} {word}" for word in WORDS.values() if found[word])
    earlier = len(study.get_trials(deepcopy=False)) - len(trials)
    others = f", and {_trials(earlier)} of earlier searches" if earlier else ""
    return f"{_trials(len(trials))}{': ' if parts else ''}{parts}{others}"


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the shortest unambiguous suffix of each dotted key, cut to 22 characters."""
    short = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        name = next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1 or end == key)
        short[key] = shorten(name)
    return short


def shorten(text: str, longest: int = _LONGEST) -> str:
    """Cut a text in its middle to at most ``longest`` characters."""
    head = longest * 2 // 5 + 1
    return text if len(text) <= longest else f"{text[:head]}…{text[head + 1 - longest :]}"


def format_value(value: Any) -> str:
    """Format a value: floats with four digits, others as in Hydra."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _trials(number: int) -> str:
    return f"{number} trial{'s' * (number != 1)}"


def _losses(study: "Study", trial: "FrozenTrial") -> list[float]:
    return [
        -value if direction.name == "MAXIMIZE" else value
        for value, direction in zip(trial.values, study.directions, strict=True)
    ]


def _dominates(one: list[float], other: list[float]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))


@dataclass(frozen=True)
class Search:
    """Facts about a search that are not in its study.

    Attributes:
        metrics: names of the objectives, in order.
        command: parameters of a trial, as in the study, -> shell command that trains it.
        title: name of the study.
        folder: the sweep's folder; ``None`` to take trials' folders from the study alone.
    """

    metrics: list[str]
    command: Callable[[Mapping[str, Any]], str]
    title: str
    folder: Path | None = None


def run_folder(trial: "FrozenTrial", sweep: Path | None, file: str) -> Path | None:
    """Return the folder of a trial's run if it holds ``file``, also after the sweep's folder was moved."""
    stored = trial.user_attrs.get("folder")
    folders = ([Path(stored)] if stored else []) + ([sweep / str(trial.number)] if sweep else [])
    return next((folder for folder in folders if (folder / file).is_file()), None)


@dataclass(frozen=True)
class Ties:
    """Interval of the best trial's score, and the trials with scores within it.

    Attributes:
        photos: number of photos behind the score.
        interval: 95 % interval.
        numbers: numbers of the other trials, ascending.
    """

    photos: int
    interval: tuple[float, float]
    numbers: list[int]

    def describe(self, metric: str, completed: int) -> str:
        """Describe the ties in one or two sentences."""
        interval = format_interval(metric, self.interval, unit=True)
        text = f"Its 95 % interval on {self.photos:,} validation photos is {interval}"
        others = completed - 1
        if not others:
            return f"{text}."
        if not self.numbers:
            return f"{text}, and no other trial's score lies within it."
        ties = f"{len(self.numbers)} of the {others} other trials tie{'s' * (len(self.numbers) == 1)} with it"
        return f"{text}: {ties} ({first_of(self.numbers, _SHOWN)}), as their scores lie within it."


def ties(study: "Study", search: Search) -> Ties | None:
    """Find the trials that tie with the best one.

    The interval is that of the run's report (percentile bootstrap, see :func:`bincounter.model.scores.score`). For a
    fraction it is Wilson's (Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953) if the bootstrap's is missing
    or has no width, as when all photos were counted right.

    Returns:
        ``None`` with several objectives, without a completed trial, and without ``metrics.json`` or an interval.
    """
    best = best_trials(study)
    side, _, name = search.metrics[0].rpartition("/")
    folder = run_folder(best[0], search.folder, "metrics.json") if best and len(search.metrics) == 1 else None
    if folder is None:
        return None
    try:
        scores = read_metrics(folder)[side]
        photos, found = int(scores["n"]), scores.get("intervals", {}).get(name)
    except UserError as error:
        log.warning("%s", error)
        return None
    except KeyError:
        return None
    if (not found or found[0] == found[1]) and is_fraction(name):
        from bincounter.training.scoring import wilson_interval  # here: it imports lightning

        found = wilson_interval(best[0].values[0], photos)
    if not found:
        return None
    low, high = map(float, found)
    others = [trial for trial in completed(study) if trial.number != best[0].number]
    return Ties(photos, (low, high), [trial.number for trial in others if low <= trial.values[0] <= high])


def print_results(study: "Study", search: Search) -> None:
    """Print the best trial, or the Pareto front of several objectives, with their commands."""
    print(f"{search.title}: {format_tally(study)}")
    if saved := sum(map(saved_seconds, own_trials(study))):
        print(f"Pruning saved about {saved:.0f} s.")
    best = best_trials(study)
    if not best:
        print("No trial has completed, so there is no best trial.")
    elif len(search.metrics) == 1:
        _show_best(best[0], search)
        if tied := ties(study, search):
            print(tied.describe(search.metrics[0], len(completed(study))))
        print("Train it with:")
        print(search.command(best[0].params))
    else:
        _show_front(best, search)


def print_jobs(jobs: Sequence[JobReturn]) -> None:
    """Print the jobs of a sweep over listed values, best first, with their folders and differing settings.

    Args:
        jobs: jobs returned by a launcher. Nothing is printed for fewer than two, or if none has a value or failed, as
            after ``dry_run=true``.
    """
    values = [_value(job) for job in jobs]
    failed = [job.status == JobStatus.FAILED for job in jobs]
    known = any(failed) or any(value is not None for value in values)
    if len(jobs) < 2 or not known:
        return
    metrics = ["value" if job.cfg is None else str(job.cfg.optimized_metric) for job in jobs]
    ranked = len(set(metrics)) == 1  # values of different metrics are not comparable
    sign = -1 if metric_mode(metrics[0]) == "max" else 1
    order = list(range(len(jobs)))
    if ranked:
        order.sort(key=lambda job: math.inf if (each := values[job]) is None else sign * each)
    overrides = [[mask_argument(each) for each in job.overrides or () if "=" in each] for job in jobs]
    settings = [dict(each.lstrip("+~").split("=", 1) for each in given) for given in overrides]
    keys = [key for key in dict.fromkeys(key for each in settings for key in each) if not key.startswith("hydra.")]
    short = short_names([key for key in keys if len({each.get(key) for each in settings}) > 1])
    folders = [_folder(job) for job in jobs]
    sweep = Path(os.path.commonpath([folder.parent for folder in folders]))
    some = f", {sum(failed)} of them failed" if any(failed) else ""
    print(f"{len(jobs)} jobs{some}{', best first' if ranked else ''}:")
    rows = [
        [
            str(folders[job].relative_to(sweep)),
            "failed" if failed[job] else format_score(metrics[job], values[job], unit=True),
            *(settings[job].get(key, "-") for key in short),
        ]
        for job in order
    ]
    print_table(["folder", metrics[0] if ranked else "value", *short.values()], rows)
    print(sweep, flush=True)


def _folder(job: JobReturn) -> Path:
    """Return the folder of a job; in Hydra's own launchers ``working_dir`` is the current one."""
    made = OmegaConf.select(job.hydra_cfg, "hydra.runtime.output_dir") if job.hydra_cfg else None
    return Path(str(made or job.working_dir))


def _value(job: JobReturn) -> float | None:
    """Return the value of a completed job, if it is a finite number."""
    found = job.return_value if job.status == JobStatus.COMPLETED else None  # raises the error of a failed job
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


def _show_best(best: "FrozenTrial", search: Search) -> None:
    print(f"Best trial: {best.number}")
    names = [*search.metrics, *best.params]
    values = [*_scores(best, search.metrics), *map(format_value, best.params.values())]
    print_table(["", ""], [list(pair) for pair in zip(names, values, strict=True)])


def _show_front(front: "Sequence[FrozenTrial]", search: Search) -> None:
    print(f"Pareto front of {' and '.join(search.metrics)}:")
    short = short_names(list(dict.fromkeys(key for trial in front for key in trial.params)))
    rows = [
        [
            str(trial.number),
            *_scores(trial, search.metrics),
            *(format_value(trial.params.get(key, "-")) for key in short),
        ]
        for trial in front
    ]
    print_table(["trial", *search.metrics, *short.values()], rows)
    print("Train them with:")
    for trial in front:
        print(f"# trial {trial.number}")
        print(search.command(trial.params))


def _scores(trial: "FrozenTrial", metrics: Sequence[str]) -> list[str]:
    return [format_score(metric, value, unit=True) for metric, value in zip(metrics, trial.values, strict=True)]


def print_table(names: list[str], rows: list[list[str]]) -> None:
    """Print rows in columns, with a header unless all names are empty."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=any(names))
    for name in names:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # Text, as brackets in values are not markup
    Console().print(table)
