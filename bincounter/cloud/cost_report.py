"""Tables of ``bincounter cost``.

Only instances are counted: SageMaker bills ``BillableTimeInSeconds`` of a training job at the on-demand price of its
instances, spot or not (https://docs.aws.amazon.com/sagemaker/latest/dg/model-managed-spot-training.html). Disks,
storage, logs, the network and the idle time of a warm pool come on top, mostly cents, and are in no record of ours.

A *point* is one percentage point of accuracy above the majority baseline, which predicts the most frequent
count of the training photos for every photo: a run of 62 % accuracy where the baseline has 25 % has gained 37 points,
and at 0.74 US dollars each of them cost 0.02. The test photos decide, the validation photos where a run has no test
score. The cost of a search is that of all its jobs, and its points are those of its best run by validation accuracy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bincounter.cloud.cost_bills import NO_GAIN, NO_SCORE, Bill, Costs, EndpointBill, JobBill, RunBills
from bincounter.names import escape_name, one_line
from bincounter.report.compare import distinct_names

_ABSENT = "-"
_REASONS = {NO_SCORE: "no score", NO_GAIN: "no gain"}
_COLUMNS = ("trained\ns", "billed\ns", "saved", "USD", "accuracy", "USD/\npoint")
_POINT = (
    "USD/point: US dollars per percentage point of accuracy above the majority baseline on the same photos (no gain: "
    "not above it); of a sweep: of all its jobs, per point of its best run by validation accuracy."
)
_REHEARSED = (
    "Rehearsed, nothing was paid: in brackets, what the seconds would have cost; the spot saving in them is invented."
)
_BESIDE = "Instances alone are counted; disks, storage and the network come on top, mostly cents."


def render_costs(costs: Costs) -> RenderableType:
    """Lay bills out for 80 columns or more."""
    parts: list[RenderableType] = []
    for group in costs.groups:
        parts += [_title(group), Padding(_runs(group), (0, 0, 1, 0))]
    if costs.endpoints:
        parts += [Text("Endpoints", style="bold"), Padding(_endpoints(costs.endpoints), (0, 0, 1, 0))]
    parts += [Text(line) for line in _sums(costs)]
    parts += [Text(line, style="dim") for line in _footnotes(costs)]
    parts += [Text(f"Note: {one_line(note)}") for note in costs.notes]
    return Stack(*parts)


def _title(group: RunBills) -> Text:
    """Name of a group, with the instances that all its rows have in common."""
    number = len(group.runs)
    plain = f"{number} run{'s' * (number != 1)}"
    name = f"{escape_name(group.folder or '')}, {plain if group.kind == 'folder' else f'a {group.kind} of {number}'}"
    name = "Runs" if group.folder is None else name
    common = {_instances(bill) for bill in group.runs}
    instances = common.pop() if len(common) == 1 else ""
    return Text(name, style="bold").append(f": {instances}" if instances else "", style="not bold")


def _instances(bill: Bill) -> str:
    if not isinstance(bill, JobBill):
        return ""
    instances = f"{bill.instance_count} x {bill.instance_type}" if bill.instance_type else "unknown instances"
    return f"{instances} at {bill.usd_per_hour:.4g} USD/h"


def _runs(group: RunBills) -> Table:
    """Make a table with one row per run, and the sums of a sweep."""
    total, no_sums = group.total, [""] * (len(_COLUMNS) - 1)
    sums = _cells(total) if total["jobs"] else [_whole(total["wall_seconds_here"]), *no_sums]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_footer=bool(group.folder))
    table.add_column("", overflow="fold", footer="all")
    for column, footer in zip(_COLUMNS, sums, strict=True):
        table.add_column(column, justify="right", no_wrap=True, footer=Text(footer))
    table.add_column("")
    several = len({_instances(bill) for bill in group.runs}) > 1
    for name, bill in zip(_names(group.runs), group.runs, strict=True):
        label = Text(name).append(f"\n{_instances(bill)}" if several and bill.job else "", style="dim")
        state = [*([] if bill.state == "completed" else [bill.state]), *(["rehearsed"] if bill.rehearsed else [])]
        table.add_row(label, *map(Text, _cells(asdict(bill))), Text(", ".join(state)))
    return table


def _cells(bill: Mapping[str, Any]) -> list[str]:
    """Texts of :data:`_COLUMNS` for a bill or a total; missing keys are shown as absent."""
    rehearsed = bill["rehearsed"]
    usd, at_most = bill.get("rehearsed_cost_usd" if rehearsed else "cost_usd"), bill.get("cost_so_far_at_most_usd")
    point = bill.get("rehearsed_usd_per_point" if rehearsed else "usd_per_point")
    accuracy, saving = bill.get("accuracy_percent"), bill.get("spot_saving_percent")
    no_point = _REASONS.get(bill.get("usd_per_point_missing", ""), _ABSENT)
    return [
        _whole(bill.get("wall_seconds", bill.get("training_seconds"))),
        _whole(bill.get("billable_seconds")),
        _ABSENT if saving is None else f"{saving:.1f} %",
        _bracketed(_ABSENT if usd is None else f"{usd:.4f}", rehearsed) if at_most is None else f"< {at_most:.4f}",
        _ABSENT if accuracy is None else f"{accuracy:.1f} % {bill['scored_on']}",
        no_point if point is None else _bracketed(f"{point:.3g}", rehearsed),
    ]


def _names(bills: Sequence[Bill]) -> list[str]:
    """Short names of the runs; a run's earlier jobs come before its last."""
    folders = list(dict.fromkeys(bill.folder for bill in bills))
    names = dict(zip(folders, distinct_names([Path(folder) for folder in folders]), strict=True))
    last = {bill.folder: number for number, bill in enumerate(bills)}
    return [
        names[bill.folder] + ("" if last[bill.folder] == number else ", before") for number, bill in enumerate(bills)
    ]


def _bracketed(text: str, rehearsed: bool) -> str:
    return f"({text})" if rehearsed and text != _ABSENT else text


def _whole(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:.0f}"


def _endpoints(bills: Sequence[EndpointBill]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("", "on", "", "since", "until", "USD/h now", "USD so far"):
        table.add_column(column, justify="right" if column.startswith("USD") else "left", overflow="fold")
    for bill in bills:
        now = _ABSENT if bill.usd_per_hour is None else f"{bill.usd_per_hour:.4g}"
        usd = f"{bill.rehearsed_cost_usd if bill.rehearsed else bill.cost_usd:.4f}"
        usd = f"{'< ' if bill.cost_is_at_most else ''}{usd}{' + requests' if bill.requests_come_on_top else ''}"
        state = f"{bill.state}, rehearsed" if bill.rehearsed else bill.state
        cells = (bill.name, bill.capacity, state, _time(bill.since), _time(bill.until), now)
        table.add_row(*map(Text, cells), Text(_bracketed(usd, bill.rehearsed)))
    return table


def _time(moment: str | None) -> str:
    return f"{datetime.fromisoformat(moment).astimezone():%Y-%m-%d %H:%M}" if moment else ""


def _sums(costs: Costs) -> list[str]:
    """Format the sums of all runs and endpoints."""
    total, lines = costs.total, []
    if total["jobs"]:
        saving = total["spot_saving_usd"]
        than = f", {abs(saving):.4f} USD {'less' if saving >= 0 else 'more'} than on demand"
        usd = total["rehearsed_cost_usd"] if total["rehearsed"] else total["cost_usd"]
        paid = f"{usd:.4f} USD {'would have been paid' if total['rehearsed'] else 'paid'}"
        jobs = f"{total['jobs']} {'rehearsed ' if total['rehearsed'] else ''}training job{'s' * (total['jobs'] != 1)}"
        spot = than if total["spot_saving_percent"] is not None and not total["rehearsed"] else ""
        lines.append(f"{jobs}: {paid} for {total['billable_seconds']:.0f} s billed{spot}")
    if total["rehearsed_jobs_left_out"]:
        lines.append(f"{total['rehearsed_jobs_left_out']} rehearsed ones are not in these sums.")
    if total["jobs_of_unknown_cost"]:
        lines.append(f"{total['jobs_of_unknown_cost']} of them, whose billed seconds are not known yet, are in no sum.")
    if total["runs_here"]:
        runs = f"{total['runs_here']} run{'s' * (total['runs_here'] != 1)}"
        lines.append(f"{runs} on this machine: {total['wall_seconds_here']:.0f} s since they were last started.")
    paid_for = [bill for bill in costs.endpoints if not bill.rehearsed]
    if paid_for:
        most = "at most " if total["endpoints_cost_is_at_most"] else ""
        more = "" if all(bill.usd_per_hour is not None for bill in paid_for) else " or more"
        requests = ", and requests" if any(bill.requests_come_on_top for bill in paid_for) else ""
        cost = f"{most}{total['endpoints_cost_usd']:.4f} USD{requests}"
        lines.append(f"Endpoints: {cost} so far, {total['endpoints_usd_per_hour']:.4g} USD/h{more} now.")
    return lines


def _footnotes(costs: Costs) -> list[str]:
    jobs = [bill for group in costs.groups for bill in group.runs if isinstance(bill, JobBill)]
    priced: list[JobBill | EndpointBill] = [*jobs, *costs.endpoints]
    origins = dict.fromkeys(bill.price_origin for bill in priced)
    notes = [f"Prices on demand: {'; '.join(origins)}."] if origins else []
    if any(bill.points is not None for bill in jobs):
        notes.append(_POINT)
    if any(bill.rehearsed for bill in priced):
        notes.append(_REHEARSED)
    return [*notes, _BESIDE] if jobs else notes
