"""Tables of ``bincounter runs``."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from bincounter.cli.runs_command import DONE, ListedRun, ListedSweep, RunList, ranked_on
from bincounter.names import escape_name, one_line
from bincounter.number_format import format_score, percent, score_name, whole
from bincounter.report.compare import fold
from bincounter.training.results import SPLIT_OF_SIDE

_ABSENT, _GAP, _MARK = "-", 2, " †"
_NARROWEST = 16  # characters of a name's column


@dataclass(frozen=True)
class RunTables:
    """A list of runs, laid out for 80 columns or more."""

    listed: RunList

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the tables, and the reasons for failed or broken runs and sweeps."""
        runs, sweeps = self.listed.runs, self.listed.sweeps
        if not runs and not sweeps:
            yield Text("No runs: start one by `bincounter train`, or name a folder that holds runs.")
        if runs:
            yield _title("Runs", runs)
            names = ("", "model", "photos", "epochs", "accuracy", "state")
            yield _table(names, [_run_cells(run) for run in runs], options.max_width)
        if runs and sweeps:
            yield Text()
        if sweeps:
            yield _title("Sweeps", [sweep.best for sweep in sweeps])
            names = ("", "trials", "best", "chosen by", "accuracy", "state")
            yield _table(names, [_sweep_cells(sweep) for sweep in sweeps], options.max_width)
        if any(run.caveats for run in runs):
            yield Text(f"\n{_MARK.strip()} Its scores have caveats: see its report.html.", style="dim")
        listed: list[ListedRun | ListedSweep] = [*runs, *sweeps]
        reasons = [f"{escape_name(each.folder)}: {one_line(each.reason)}" for each in listed if each.reason]
        if reasons:
            yield Text("\n" + "\n".join(reasons))


def _title(what: str, runs: Sequence[ListedRun | None]) -> Text:
    photos = SPLIT_OF_SIDE[ranked_on(runs)]
    return Text(f"{what}, best first by accuracy on {photos} photos, 95 % intervals below", style="bold")


def _run_cells(run: ListedRun) -> list[Text]:
    planned = "" if run.planned_epochs in (None, run.epochs) else f"/{run.planned_epochs}"
    caveats = [*(["debug"] if run.debug else []), *(["rehearsed"] if run.rehearsed else [])]
    return [
        _named(run.folder, run.started),
        Text(escape_name(run.model or _ABSENT)),
        Text(whole(run.photos) if run.photos else _ABSENT),
        Text(f"{run.epochs}{planned}" if run.epochs or planned else _ABSENT),
        _accuracy(run),
        Text(run.state + (_MARK if run.caveats else "")).append("".join(f"\n{each}" for each in caveats), style="dim"),
    ]


def _sweep_cells(sweep: ListedSweep) -> list[Text]:
    number = sum(sweep.trials.values())
    planned = "" if sweep.planned_trials in (None, number) else f"/{sweep.planned_trials}"
    others = "".join(f"\n{n} {state}" for state, n in sweep.trials.items() if state != DONE)
    return [
        _named(sweep.folder, sweep.started),
        Text(f"{number}{planned}").append(others, style="dim"),
        Text(Path(sweep.best.folder).name if sweep.best else _ABSENT),
        Text(fold(escape_name(score_name(sweep.metric)), 10) if sweep.metric else _ABSENT),
        _accuracy(sweep.best),
        Text(sweep.state),
    ]


def _named(folder: str, started: str | None) -> Text:
    try:
        day = f"{datetime.fromisoformat(started or '').astimezone():%Y-%m-%d %H:%M}"
    except ValueError:
        day = "date unknown"
    return Text(escape_name(folder)).append(f"\n{day}", style="dim")


def _accuracy(run: ListedRun | None) -> Text:
    if run is None or run.scored_on is None:
        return Text(_ABSENT)
    cell = Text(f"{format_score('accuracy', run.scores.get('accuracy'))} {run.scored_on}")
    if interval := run.intervals.get("accuracy"):
        low, high = map(percent, interval)
        cell.append(f"\n{low.removesuffix(' %')} to {high}", style="dim")
    return cell


def _table(names: Sequence[str], rows: Sequence[Sequence[Text]], width: int) -> Table:
    """Lay rows out; the first column takes the width that the others leave."""
    others = list(zip(*rows, strict=True))[1:]
    longest = [
        max(len(name), *(len(line) for cell in column for line in cell.plain.split("\n")))
        for name, column in zip(names[1:], others, strict=True)
    ]
    room = max(width - sum(longest) - _GAP * (len(names) - 1), _NARROWEST)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for name in names:
        right = name in ("photos", "epochs", "trials", "accuracy")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for first, *cells in rows:
        folder, day = first.split("\n")
        lines = [fold(line, room) for line in fold(folder.plain, room, breaks="(?<=/)").split("\n")]
        table.add_row(Text("\n".join(lines)).append("\n").append_text(day), *cells)
    return table
