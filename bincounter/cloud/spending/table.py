"""What was spent, as tables for the terminal; the document for programs is ``document``."""

from collections.abc import Callable, Sequence

from rich.console import Group as Stack
from rich.console import JustifyMethod, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bincounter.cloud.spending.bills import Bill, NoPoint, Score, Total, add_up
from bincounter.cloud.spending.endpoints import EndpointBill
from bincounter.cloud.spending.found import Found, Group
from bincounter.inspect.compare import distinct_names

_ABSENT = "-"
_REASONS = {NoPoint.UNSCORED: "no score", NoPoint.NO_GAIN: "no gain"}
_POINT = (
    "USD/point: US dollars per percentage point of accuracy above the majority baseline on the same photos; no gain: "
    "not above it."
)
_OF_SWEEP = "That of a sweep: what all its jobs cost, per point of its best run by validation accuracy."
_REHEARSED = (
    "Rehearsed, nothing was paid: in brackets, what the seconds would have cost; the spot saving in them is invented."
)
_BESIDE = "Instances alone are counted; disks, storage and the network come on top, mostly cents."
_HERE = "Runs carried out here have a wall time, since they were last started, and no price."


def render(found: Found) -> RenderableType:
    """Lay out what was found, for 80 columns or more."""
    groups = [group for group in found.groups if group.bills]
    parts: list[RenderableType] = []
    for group in groups:
        parts += [_title(group), Padding(_runs(group), (0, 0, 1, 0))]
    if found.endpoints:
        parts += [Text("Endpoints", style="bold"), Padding(_endpoints(found.endpoints), (0, 0, 1, 0))]
    if groups or found.endpoints:
        parts += [Text(line) for line in _sums(found)]
        parts += [Text(line, style="dim") for line in _footnotes(found)]
    parts += [Text(f"Note: {note}") for note in found.notes]
    return Stack(*parts)


def _title(group: Group) -> Text:
    """What a table is of, with what its rows have in common."""
    name = "Runs" if group.folder is None else f"{group.folder}, a {group.kind} of {len(group.bills)}"
    common = {_priced(bill) for bill in group.bills}
    told = f": {common.pop()}" if len(common) == 1 and group.bills[0].job is not None else ""
    return Text(name, style="bold").append(told, style="not bold")


def _priced(bill: Bill) -> str:
    return "" if bill.job is None else f"{_instances(bill)} at {bill.usd_per_hour:.4g} USD/h"


def _instances(bill: Bill) -> str:
    return f"{bill.instance_count} x {bill.instance_type}" if bill.instance_type else "unknown instances"


def _runs(group: Group) -> Table:
    columns: dict[str, Callable[[Bill], str]] = {
        "trained\ns": lambda bill: _whole(bill.training_seconds),
        "billed\ns": lambda bill: _whole(bill.billable_seconds),
        "saved": lambda bill: _percent(bill.saving),
        "USD": _usd,
        "accuracy": lambda bill: _accuracy(bill.score),
        "USD/\npoint": lambda bill: _per_point(bill.per_point, bracketed=bill.rehearsed),
        "": _state,
    }
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_footer=group.kind != "runs")
    footers = _footers(add_up(group.bills))
    table.add_column("", overflow="fold", footer="all")
    for column in columns:
        justify: JustifyMethod = "right" if column else "left"
        table.add_column(column, justify=justify, no_wrap=bool(column), footer=Text(footers.get(column, "")))
    several = len({_priced(bill) for bill in group.bills}) > 1
    for name, bill in zip(_names(group.bills), group.bills, strict=True):
        told = Text(name).append(f"\n{_priced(bill)}" if several and bill.job else "", style="dim")
        table.add_row(told, *(Text(write(bill)) for write in columns.values()))
    return table


def _names(bills: Sequence[Bill]) -> list[str]:
    """Short names of the runs; a run's earlier jobs come before its last."""
    folders = list(dict.fromkeys(bill.folder for bill in bills))
    names = dict(zip(folders, distinct_names(folders), strict=True))
    last = {bill.folder: number for number, bill in enumerate(bills)}
    return [
        names[bill.folder] + ("" if last[bill.folder] == number else ", before") for number, bill in enumerate(bills)
    ]


def _footers(total: Total) -> dict[str, str]:
    if not total.jobs:
        return {"trained\ns": _whole(total.seconds_here)}
    return {
        "trained\ns": _whole(total.training_seconds),
        "billed\ns": _whole(total.billable_seconds),
        "saved": _percent(total.saving),
        "USD": _bracketed(f"{total.usd:.4f}", total.rehearsed),
        "accuracy": _accuracy(total.best.score if total.best else None),
        "USD/\npoint": _per_point(total.per_point, bracketed=total.rehearsed),
    }


def _usd(bill: Bill) -> str:
    if bill.usd_at_most is not None:
        return _bracketed(f"< {bill.usd_at_most:.4f}", bill.rehearsed)
    return _ABSENT if bill.usd is None else _bracketed(f"{bill.usd:.4f}", bill.rehearsed)


def _state(bill: Bill) -> str:
    words = [*([] if bill.state == "completed" else [bill.state]), *(["rehearsed"] if bill.rehearsed else [])]
    return ", ".join(words)


def _accuracy(score: Score | None) -> str:
    return _ABSENT if score is None else f"{100 * score.accuracy:.1f} % {score.side}"


def _per_point(value: float | NoPoint, *, bracketed: bool) -> str:
    return _REASONS.get(value, _ABSENT) if isinstance(value, NoPoint) else _bracketed(f"{value:.3g}", bracketed)


def _bracketed(text: str, really: bool) -> str:
    return f"({text})" if really else text


def _whole(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:.0f}"


def _percent(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:.1f} %"


def _endpoints(bills: Sequence[EndpointBill]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("", "on", "", "since", "until", "USD/h now", "USD so far"):
        table.add_column(column, justify="right" if column.startswith("USD") else "left", overflow="fold")
    for bill in bills:
        now = _ABSENT if bill.usd_per_hour is None else f"{bill.usd_per_hour:.4g}"
        usd = f"{'< ' if bill.at_most else ''}{bill.usd:.4f}{' + requests' if bill.kind == 'serverless' else ''}"
        state = ", ".join([bill.state, *(["rehearsed"] if bill.rehearsed else [])])
        times = (f"{moment.astimezone():%Y-%m-%d %H:%M}" if moment else "" for moment in (bill.since, bill.until))
        cells = (bill.name, bill.capacity, state, *times, *(_bracketed(text, bill.rehearsed) for text in (now, usd)))
        table.add_row(*map(Text, cells))
    return table


def _sums(found: Found) -> list[str]:
    """What all of it comes to, in sentences."""
    total, lines = add_up(found.bills), []
    if total.jobs:
        than = "less" if total.usd_saved >= 0 else "more"
        saved = f", {abs(total.usd_saved):.4f} USD {than} than on demand" if total.saving is not None else ""
        paid = "would have been paid" if total.rehearsed else "paid"
        jobs = f"{total.jobs} {'rehearsed ' if total.rehearsed else ''}training job{'s' * (total.jobs != 1)}"
        lines.append(f"{jobs}: {total.usd:.4f} USD {paid} for {total.billable_seconds:.0f} s billed{saved}")
    if total.left_out:
        lines.append(f"{total.left_out} rehearsed ones are not in these sums.")
    if total.unknown:
        lines.append(f"{total.unknown} of them, whose billed seconds are not known yet, are in no sum.")
    if total.runs_here:
        lines.append(f"{total.runs_here} run{'s' * (total.runs_here != 1)} here: {total.seconds_here:.0f} s")
    served = [bill for bill in found.endpoints if not bill.rehearsed]
    if served:
        most = "at most " if any(bill.at_most for bill in served) else ""
        more = "" if all(bill.usd_per_hour is not None for bill in served) else " or more"
        now = sum(bill.usd_per_hour or 0.0 for bill in served)
        requests = ", and requests" if any(bill.kind == "serverless" for bill in served) else ""
        cost = f"{most}{sum(bill.usd for bill in served):.4f} USD{requests}"
        lines.append(f"Endpoints: {cost} so far, {now:.4g} USD/h{more} now.")
    return lines


def _footnotes(found: Found) -> list[str]:
    bills, jobs = found.bills, [bill for bill in found.bills if bill.job is not None]
    origins = dict.fromkeys([*(bill.price_origin for bill in jobs), *(bill.price_origin for bill in found.endpoints)])
    told = [f"Prices on demand: {'; '.join(origins)}."] if origins else []
    if any(bill.score for bill in jobs):
        told.append(_POINT)
        if any(group.kind != "runs" and len(group.bills) > 1 for group in found.groups):
            told.append(_OF_SWEEP)
    if any(bill.rehearsed for bill in jobs) or any(bill.rehearsed for bill in found.endpoints):
        told.append(_REHEARSED)
    if jobs:
        told.append(_BESIDE)
    if len(jobs) < len(bills):
        told.append(_HERE)
    return told
