"""Sums of times and costs of runs, for any seconds and prices."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bincounter.cloud.cost_bills import NO_GAIN, JobBill, add_up, job_bill
from bincounter.cloud.jobs import Job

seconds = st.floats(0, 1e6)
fractions = st.floats(0, 1)


@st.composite
def bills(draw: st.DrawFn) -> JobBill:
    trained = draw(seconds)
    job = Job(
        name="job",
        number=0,
        folder=Path("run"),
        region="us-east-1",
        checkpoint_uri="s3://bucket/run",
        overrides=[],
        usd_per_hour=draw(st.floats(0, 1000)),
        rehearsed=draw(st.booleans()),
    )
    described = {
        "TrainingTimeInSeconds": trained,
        "BillableTimeInSeconds": trained * draw(fractions),
        "EnableManagedSpotTraining": draw(st.booleans()),
    }
    accuracy, majority = (draw(st.integers(0, 10_000)) / 10_000 for _ in range(2))
    score = {
        "scored_on": "val",
        "accuracy_percent": 100 * accuracy,
        "majority_accuracy_percent": 100 * majority,
        "points": 100 * (accuracy - majority),
        "_rank": accuracy,
    }
    return job_bill(job, described, "completed", score if draw(st.booleans()) else {})


@given(bill=bills())
def test_a_bill_is_seconds_times_price_and_a_point_is_its_share(bill: JobBill) -> None:
    assert bill.usd is not None and bill.billable_seconds is not None and bill.training_seconds is not None
    assert bill.usd == pytest.approx(bill.billable_seconds * bill.usd_per_hour / 3600)
    assert bill.cost_usd == (0 if bill.rehearsed else bill.usd)
    if bill.spot_saving_percent is not None and bill.training_seconds:
        spared = bill.training_seconds * bill.spot_saving_percent / 100
        assert 0 <= bill.spot_saving_percent <= 100
        assert spared + bill.billable_seconds == pytest.approx(bill.training_seconds)
    per_point = bill.rehearsed_usd_per_point if bill.rehearsed else bill.usd_per_point
    if per_point is None:
        assert bill.points is None or (bill.points <= 0 and bill.usd_per_point_missing == NO_GAIN)
    else:
        assert bill.points is not None
        assert per_point * bill.points == pytest.approx(bill.usd)
        assert per_point >= bill.usd / 100


@given(several=st.lists(bills()), data=st.data())
def test_sums_do_not_depend_on_order_or_grouping(several: list[JobBill], data: st.DataObject) -> None:
    paid = [bill for bill in several if not bill.rehearsed]
    total = add_up(several)
    assert total["rehearsed"] == (bool(several) and not paid)
    assert total["jobs"] + total["rehearsed_jobs_left_out"] == len(several)
    usd = "rehearsed_cost_usd" if total["rehearsed"] else "cost_usd"
    assert total[usd] == pytest.approx(sum(bill.usd or 0 for bill in (paid or several)))
    assert total["spot_saving_usd"] >= 0 and 0 <= (total["spot_saving_percent"] or 0) <= 100
    shuffled = add_up(data.draw(st.permutations(several)))
    for name in (usd, "training_seconds"):
        assert shuffled[name] == pytest.approx(total[name])
    cut = data.draw(st.integers(0, len(paid)))
    parts = [add_up(paid[:cut]), add_up(paid[cut:])]
    whole = add_up(paid, best=True)
    for name in ("cost_usd", "spot_saving_usd", "billable_seconds", "jobs"):
        assert sum(part[name] for part in parts) == pytest.approx(whole[name])
    accuracies = [bill.accuracy_percent for bill in paid if bill.accuracy_percent is not None]
    assert whole["accuracy_percent"] == max(accuracies, default=None)
