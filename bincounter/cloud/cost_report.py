"""``bincounter cost``: table and JSON of the bills.

Instances are what is counted: SageMaker bills ``BillableTimeInSeconds`` of a training job at the on-demand price of its
instances, spot or not (https://docs.aws.amazon.com/sagemaker/latest/dg/model-managed-spot-training.html). Disks,
storage, logs, the network and what a warm pool keeps after a job come on top, mostly cents, and are in no record of
ours.

A *point* is one percentage point of accuracy above the majority baseline, which answers every photo with the most
frequent count of the training photos: a run of 62 % accuracy where the baseline has 25 % has gained 37 points, and at
0.74 US dollars each of them cost 0.02. The test photos decide, the validation photos where a run has no test score. A
search costs what all its jobs cost, and gains the points of its best run by validation accuracy.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group as Stack
from rich.console import JustifyMethod, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bincounter.cloud.cost_records import Bill, EndpointBill, Found, Group, NoPoint, Score, Total, add_up
from bincounter.report.compare import distinct_names

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
        "USD/\npoint": lambda bill: _per_point_text(bill.per_point, bracketed=bill.rehearsed),
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
        "USD/\npoint": _per_point_text(total.per_point, bracketed=total.rehearsed),
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


def _per_point_text(value: float | NoPoint, *, bracketed: bool) -> str:
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


def document(found: Found) -> dict[str, Any]:
    """All that was found. Rehearsed jobs cost 0 in it; what they would have cost has keys of its own."""
    return {
        "groups": [
            {
                "kind": group.kind,
                "folder": None if group.folder is None else str(group.folder),
                "runs": [_run(bill) for bill in group.bills],
                "total": _total(add_up(group.bills), of_sweep=group.kind != "runs"),
            }
            for group in found.groups
            if group.bills
        ],
        "endpoints": [_endpoint(bill) for bill in found.endpoints],
        "total": {
            **_total(add_up(found.bills), of_sweep=False),
            "endpoints_cost_usd": sum(bill.usd for bill in found.endpoints if not bill.rehearsed),
            "endpoints_cost_is_at_most": any(bill.at_most for bill in found.endpoints if not bill.rehearsed),
            "endpoints_usd_per_hour": sum(bill.usd_per_hour or 0 for bill in found.endpoints if not bill.rehearsed),
        },
        "notes": found.notes,
        "errors": found.errors,
    }


def _run(bill: Bill) -> dict[str, Any]:
    told: dict[str, Any] = {
        "folder": str(bill.folder),
        "job": bill.job,
        "carried_out": "here" if bill.job is None else "sagemaker",
        "state": bill.state,
        "rehearsed": bill.rehearsed,
    }
    if bill.job is None:
        return {**told, "wall_seconds": bill.training_seconds, **_score(bill.score)}
    return {
        **told,
        "instance_type": bill.instance_type or None,
        "instance_count": bill.instance_count if bill.instance_type else None,
        "training_seconds": bill.training_seconds,
        "billable_seconds": bill.billable_seconds,
        "spot": bill.spot,
        "spot_saving_percent": bill.saving,
        "usd_per_hour": bill.usd_per_hour,
        "price_origin": bill.price_origin,
        **_cost(bill.usd, rehearsed=bill.rehearsed),
        "cost_so_far_at_most_usd": 0.0 if bill.rehearsed and bill.usd_at_most is not None else bill.usd_at_most,
        **_score(bill.score),
        **_per_point_entry(bill.per_point, rehearsed=bill.rehearsed),
    }


def _total(total: Total, *, of_sweep: bool) -> dict[str, Any]:
    told = {
        "jobs": total.jobs,
        "rehearsed": total.rehearsed,
        "rehearsed_jobs_left_out": total.left_out,
        "jobs_of_unknown_cost": total.unknown,
        "training_seconds": total.training_seconds,
        "billable_seconds": total.billable_seconds,
        "spot_saving_percent": total.saving,
        **_cost(total.usd, rehearsed=total.rehearsed),
        "spot_saving_usd": 0.0 if total.rehearsed else total.usd_saved,
        "runs_here": total.runs_here,
        "wall_seconds_here": total.seconds_here,
    }
    if not of_sweep:
        return told
    best: Mapping[str, Any] = {} if total.best is None else _score(total.best.score)
    return {
        **told,
        "best_run": None if total.best is None else str(total.best.folder),
        **best,
        **_per_point_entry(total.per_point, rehearsed=total.rehearsed),
    }


def _cost(usd: float | None, *, rehearsed: bool) -> dict[str, Any]:
    return {"cost_usd": 0.0 if rehearsed else usd, "rehearsed_cost_usd": usd if rehearsed else None}


def _score(score: Score | None) -> dict[str, Any]:
    if score is None:
        return {"scored_on": None, "accuracy_percent": None, "majority_accuracy_percent": None, "points": None}
    return {
        "scored_on": score.side,
        "accuracy_percent": 100 * score.accuracy,
        "majority_accuracy_percent": 100 * score.majority,
        "points": score.points,
    }


def _per_point_entry(value: float | NoPoint, *, rehearsed: bool) -> dict[str, Any]:
    reason = str(value) if isinstance(value, NoPoint) else None
    usd = None if isinstance(value, NoPoint) else value
    return {
        "usd_per_point": None if rehearsed else usd,
        "rehearsed_usd_per_point": usd if rehearsed else None,
        "usd_per_point_missing": reason or ("rehearsed, nothing was paid" if rehearsed else None),
    }


def _endpoint(bill: EndpointBill) -> dict[str, Any]:
    return {
        "folder": str(bill.folder),
        "name": bill.name,
        "region": bill.region,
        "kind": bill.kind,
        "capacity": bill.capacity,
        "state": bill.state,
        "rehearsed": bill.rehearsed,
        "since": bill.since.isoformat(),
        "until": None if bill.until is None else bill.until.isoformat(),
        "usd_per_hour": 0.0 if bill.rehearsed else bill.usd_per_hour,
        "price_origin": bill.price_origin,
        **_cost(bill.usd, rehearsed=bill.rehearsed),
        "cost_is_at_most": bill.at_most,
        "requests_come_on_top": bill.kind == "serverless",
    }
