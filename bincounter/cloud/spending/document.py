"""What was spent, as one JSON document: the units stand in the keys."""

from collections.abc import Mapping
from typing import Any

from bincounter.cloud.spending.bills import Bill, NoPoint, Score, Total, add_up
from bincounter.cloud.spending.endpoints import EndpointBill
from bincounter.cloud.spending.found import Found


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
        **_per_point(bill.per_point, rehearsed=bill.rehearsed),
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
        **_per_point(total.per_point, rehearsed=total.rehearsed),
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


def _per_point(value: float | NoPoint, *, rehearsed: bool) -> dict[str, Any]:
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
