"""Record of a deployment, ``endpoint.json`` beside its archive: begin, end and price of each serving period."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from bincounter.cloud.endpoints.deployment_plan import running_cost
from bincounter.cloud.endpoints.endpoint_requests import EndpointSpec
from bincounter.cloud.instances import usd_per_hour, usd_per_second
from bincounter.cloud.jobs import is_local_endpoint
from bincounter.errors import UserError
from bincounter.files import read_file, write_json

if TYPE_CHECKING:
    from bincounter.cloud.account import Account
    from bincounter.cloud.endpoints.deployment_plan import DeploymentPlan

log = logging.getLogger(__name__)

ENDPOINT_RECORD = "endpoint.json"  # in the archive's folder, which is a run's endpoint/ by default


@dataclass(frozen=True)
class ServingPeriod:
    """Period in which an endpoint served one archive with one configuration.

    Attributes:
        name: name of the endpoint.
        region: AWS region of the endpoint.
        kind: ``realtime``, ``serverless`` or ``async``.
        config: name of the endpoint configuration.
        capacity: instances or memory, such as ``1 x ml.m5.xlarge`` or ``4096 MB``.
        instance_count: instances at the beginning; 0 for a serverless endpoint.
        usd_per_hour: price without requests, for that many instances.
        usd_per_hour_most: highest price; above ``usd_per_hour`` with autoscaling or billing by requests.
        price_origin: source of the price, in words.
        begun: begin in ISO 8601 with its time zone.
        rehearsed: served by a rehearsal on this machine, so that nothing was billed.
        ended: end in ISO 8601; ``None`` while no command here has ended it.
        ending: ``deleted``, ``replaced`` by an update, or ``failed``.
    """

    name: str
    region: str
    kind: str
    config: str
    capacity: str
    instance_count: int
    usd_per_hour: float
    usd_per_hour_most: float
    price_origin: str
    begun: str
    rehearsed: bool
    ended: str | None = None
    ending: str | None = None

    @property
    def hours(self) -> float:
        """Duration in hours, until now if it has not ended."""
        ended = datetime.fromisoformat(self.ended) if self.ended else datetime.now(UTC)
        return max(0.0, (ended - datetime.fromisoformat(self.begun)).total_seconds() / 3600)


def read_periods(path: Path) -> list[ServingPeriod]:
    """Read the periods of a record, ordered by their begin; none if it is missing.

    Raises:
        UserError: the record is corrupt.
    """
    advice = "bring it back from a copy, or remove it and use bincounter deploy action=status"
    return read_file(path, _periods, advice) or []


def _periods(file: IO[str]) -> list[ServingPeriod]:
    periods = [ServingPeriod(**one) for one in json.load(file)]
    prices = [(one.usd_per_hour, one.usd_per_hour_most) for one in periods if one.hours >= 0]
    if not periods or any(not 0 <= usd <= most for usd, most in prices):
        raise ValueError("no periods, or prices that are none")
    return periods


def record_begin(
    account: "Account", spec: EndpointSpec, endpoint: "DeploymentPlan", begun: datetime | None = None
) -> None:
    """Record that an endpoint serves an archive from now on, once per configuration and price; ends an open period.

    A record that cannot be written is a warning, not an error: the endpoint exists, and is billed.

    Args:
        account: account of the endpoint.
        spec: settings of the endpoint.
        endpoint: its configuration and price.
        begun: begin of the period; ``None`` for now.
    """
    path = endpoint.model.package.path.parent / ENDPOINT_RECORD
    period = _period(account, spec, endpoint, begun or datetime.now(UTC))
    try:
        periods = read_periods(path)
        for one in periods:
            if _same(one, period) and one.config == period.config and one.ended is None:
                if one.usd_per_hour_most == period.usd_per_hour_most:
                    return
                period = replace(period, begun=_now())  # with other autoscaling; it served before, too
        _write(path, [*_ended(periods, period, "replaced"), period])
    except (UserError, OSError) as error:
        log.warning("The costs of the endpoint are not recorded for `bincounter cost`: %s", error)


def record_end(
    account: "Account", name: str, records: Sequence[Path], ending: str, *, serves: str | None = None
) -> None:
    """Record that an endpoint has stopped serving.

    Args:
        account: account of the endpoint.
        name: name of the endpoint.
        records: paths of records to update; missing or corrupt ones are skipped.
        ending: ``deleted``, ``replaced`` or ``failed``.
        serves: name of the configuration that still serves; its period stays open.
    """
    gone = ServingPeriod(name, account.region, "", "", "", 0, 0, 0, "", "", rehearsed=is_local_endpoint(account))
    for path in records:
        try:
            periods = read_periods(path)
            ended = _ended(periods, gone, ending, serves)
            if ended != periods:
                _write(path, ended)
        except (UserError, OSError) as error:
            log.debug("%s was skipped: %s", path, error)


_LIST = "endpoint_records.txt"  # one path a line


def list_record(archive: Path, state: Path) -> None:
    """Add the record beside an archive to the list of this machine, so that its end is recorded wherever it lies.

    A list that cannot be written is a warning, as a record is.

    Args:
        archive: path of the archive.
        state: folder of the list.
    """
    path = archive.resolve().parent / ENDPOINT_RECORD
    try:
        if path not in _listed(state):
            state.mkdir(parents=True, exist_ok=True)
            with (state / _LIST).open("ab") as file:
                file.write(os.fsencode(path) + b"\n")
    except OSError as error:
        log.warning("The end of the endpoint will not be recorded for `bincounter cost`: %s", error)


def find_records(folder: Path, state: Path) -> list[Path]:
    """Return the paths of the records of all runs below a folder, and of those in the list of this machine."""
    below = {path.resolve() for path in folder.rglob(f"endpoint/{ENDPOINT_RECORD}")}
    return sorted(below.union(_listed(state)))


def _listed(state: Path) -> list[Path]:
    path = state / _LIST
    return [Path(os.fsdecode(line)) for line in path.read_bytes().splitlines()] if path.is_file() else []


def _ended(
    periods: Sequence[ServingPeriod], of: ServingPeriod, ending: str, serves: str | None = None
) -> list[ServingPeriod]:
    """Return the periods, with the open ones of an endpoint ended."""
    now = _now()
    return [
        replace(one, ended=now, ending=ending) if _same(one, of) and one.ended is None and one.config != serves else one
        for one in periods
    ]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _same(one: ServingPeriod, other: ServingPeriod) -> bool:
    return (one.name, one.region, one.rehearsed) == (other.name, other.region, other.rehearsed)


def _write(path: Path, periods: Sequence[ServingPeriod]) -> None:
    write_json(path, [asdict(one) for one in periods])


def _period(account: "Account", spec: EndpointSpec, endpoint: "DeploymentPlan", begun: datetime) -> ServingPeriod:
    target = spec.target
    if spec.kind == "serverless":
        capacity, count = f"{target['memory_mb']} MB", 0
        price = usd_per_second(target["memory_mb"])
        idle = running_cost((), endpoint.config.request) or 0.0
    else:
        count = target["instance_count"]
        capacity = f"{count} x {target['instance_type']}"
        price = usd_per_hour(target["instance_type"], target["usd_per_hour"], "target")
        idle = price.usd * count
    return ServingPeriod(
        name=spec.name,
        region=account.region,
        kind=spec.kind,
        config=endpoint.name,
        capacity=capacity,
        instance_count=count,
        usd_per_hour=idle,
        usd_per_hour_most=max(idle, endpoint.cost.usd),
        price_origin=price.origin,
        begun=begun.astimezone(UTC).isoformat(timespec="seconds"),
        rehearsed=is_local_endpoint(account),
    )
