"""What instances cost: a dated table of prices, the ceiling of a training job, and what spot capacity saved."""

import difflib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from bincounter.errors import ConfigError


class Price(NamedTuple):
    """What one instance costs on demand.

    Attributes:
        usd: US dollars per hour.
        origin: where the figure comes from, in words to show beside it.
    """

    usd: float
    origin: str


def usd_per_hour(instance_type: str, given: float | None, group: str = "launcher") -> Price:
    """The price of one instance on demand.

    Args:
        instance_type: such as ``ml.g5.xlarge``.
        given: US dollars per hour that a person named, or ``None`` to look it up.
        group: of settings that both come from.

    Raises:
        ConfigError: neither the person nor the table names a price.
    """
    if given is not None:
        return Price(float(given), f"{group}.usd_per_hour")
    table = _table()
    types, date = table["types"], table["date"]
    usd = types.get(instance_type, {}).get("usd")
    if usd is not None:
        return Price(float(usd), _origin(table))
    step = f"say {group}.usd_per_hour=DOLLARS, the price of one instance"
    if instance_type not in types:
        near = difflib.get_close_matches(instance_type, types, n=1)
        step = f"correct it to {near[0]}, or {step}" if near else step
    raise ConfigError(f"{group}.instance_type={instance_type} has no price in the table of {date}: {step}")


def usd_per_second(memory_mb: int) -> Price:
    """The price of one second in which a serverless endpoint answers one request.

    Args:
        memory_mb: of the endpoint.
    """
    table = _table()
    return Price(table["serverless"]["usd_per_gb_second"] * memory_mb / 1024, _origin(table))


def gpus(instance_type: str) -> int | None:
    """How many GPUs an instance has, or ``None`` where that is not known."""
    return _table()["types"].get(instance_type, {}).get("gpus")


def ceiling(price: Price, *, max_run: int, instances: int, jobs: int) -> float:
    """The most US dollars that the instances can cost, should every job run to its limit on demand.

    Disks and storage come on top: cents beside the instances.

    Args:
        price: of one instance.
        max_run: seconds after which a job is stopped.
        instances: of each job.
        jobs: how many of them there are.
    """
    return price.usd * max_run / 3600 * instances * jobs


def saving_percent(training_seconds: float, billable_seconds: float) -> float:
    """What spot capacity saved, as SageMaker reckons it: 100 x (1 - billable / training), and 0 for no training."""
    if training_seconds <= 0:
        return 0.0
    return 100 * (1 - billable_seconds / training_seconds)


def _origin(table: dict[str, Any]) -> str:
    return f"table of {table['date']} for {table['region']}; other regions differ"


@cache
def _table() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("prices.yaml").read_text(encoding="utf-8"))
