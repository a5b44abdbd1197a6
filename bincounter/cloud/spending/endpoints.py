"""The bills of endpoints, from the records that deploy.py leaves; AWS is asked whether they are still there."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bincounter.cloud.endpoints.record import RECORD, Period, load
from bincounter.cloud.spending.aws import Aws, Rehearsed
from bincounter.errors import BinCounterError

UNKNOWN = "not known"


@dataclass(frozen=True)
class EndpointBill:
    """What one endpoint bills, and has billed while it served one archive.

    Attributes:
        folder: of the archive.
        name: of the endpoint.
        region: that it is in.
        kind: ``realtime``, ``serverless`` or ``async``.
        capacity: what it was given last.
        state: AWS's, such as ``InService``; ``deleted``, ``replaced``, ``failed`` or ``gone``; or :data:`UNKNOWN`.
        since: when it began to serve the archive.
        until: when it ended, where that is known.
        usd_per_hour: that it bills now; ``None`` where that is not known.
        usd: US dollars by now, requests to a serverless one not counted.
        at_most: whether ``usd`` is an upper bound, since it scales or may have ended before.
        price_origin: where the price is from, in words.
        rehearsed: whether it was on this machine, so that nothing was paid.
    """

    folder: Path
    name: str
    region: str
    kind: str
    capacity: str
    state: str
    since: datetime
    until: datetime | None
    usd_per_hour: float | None
    usd: float
    at_most: bool
    price_origin: str
    rehearsed: bool


def records(folder: Path) -> list[Path]:
    """The endpoints' records of a folder that deploy.py has left, or of a run."""
    return [path for path in (folder / RECORD, folder / "endpoint" / RECORD) if path.is_file()]


def endpoint_bills(path: Path, aws: Aws, notes: list[str]) -> list[EndpointBill]:
    """The bills of the endpoints of a record.

    Args:
        path: of the record.
        aws: is asked for those that nobody here has ended.
        notes: is given what there is to say beside the figures.

    Raises:
        UserError: the record is damaged.
    """
    of: dict[tuple[str, str, bool], list[Period]] = {}
    for period in load(path):
        of.setdefault((period.name, period.region, period.rehearsed), []).append(period)
    return [_bill(path.parent, periods, aws, notes) for periods in of.values()]


def _bill(folder: Path, periods: list[Period], aws: Aws, notes: list[str]) -> EndpointBill:
    last = periods[-1]
    state, now, ended_unseen = (last.ending or "ended", 0.0, False) if last.ended else _asked(last, aws, notes)
    scales = any(one.instance_count and one.usd_per_hour_most > one.usd_per_hour for one in periods)
    return EndpointBill(
        folder=folder,
        name=last.name,
        region=last.region,
        kind=last.kind,
        capacity=last.capacity,
        state=state,
        since=datetime.fromisoformat(periods[0].begun),
        until=datetime.fromisoformat(last.ended) if last.ended else None,
        usd_per_hour=now,
        usd=sum(one.hours * (one.usd_per_hour_most if one.instance_count else one.usd_per_hour) for one in periods),
        at_most=scales or ended_unseen,
        price_origin=last.price_origin,
        rehearsed=last.rehearsed,
    )


def _asked(period: Period, aws: Aws, notes: list[str]) -> tuple[str, float | None, bool]:
    """State, US dollars per hour now, and whether it may have ended at a time that is not known."""
    try:
        there = aws.endpoint(period.name, period.region, rehearsed=period.rehearsed)
    except Rehearsed:
        return "gone", 0.0, True
    except BinCounterError as error:
        see = f"python deploy.py target={period.kind} name={period.name} action=status"
        notes.append(
            f"AWS could not be asked whether the endpoint {period.name} is still there ({error}): if it is, it bills "
            f"{period.usd_per_hour:.4g} USD/h; see {see}"
        )
        return UNKNOWN, None, True
    if there is None:
        notes.append(f"The endpoint {period.name} is gone in {period.region}; when it was deleted is not known here")
        return "gone", 0.0, True
    if there["EndpointConfigName"] != period.config:
        notes.append(f"The endpoint {period.name} has been given another configuration elsewhere")
        return "replaced", 0.0, True
    variants = there.get("ProductionVariants") or [{}]
    running = variants[0].get("CurrentInstanceCount", period.instance_count)
    share = running / period.instance_count if period.instance_count else 1.0
    return str(there["EndpointStatus"]), period.usd_per_hour * share, False
