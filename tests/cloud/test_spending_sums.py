"""What runs took and cost, added up: for any seconds and prices."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bincounter.cloud.cost_records import Bill, NoPoint, Score, add_up

seconds = st.floats(0, 1e6)
fractions = st.floats(0, 1)


@st.composite
def bills(draw: st.DrawFn, *, rehearsed: bool | None = None) -> Bill:
    trained = draw(seconds)
    score = st.none() | st.builds(Score, st.just("val"), fractions, fractions)
    return Bill(
        folder=Path("run"),
        job="job",
        state="completed",
        training_seconds=trained,
        billable_seconds=trained * draw(fractions),
        spot=draw(st.booleans()),
        usd_per_hour=draw(st.floats(0, 1000)),
        rehearsed=draw(st.booleans()) if rehearsed is None else rehearsed,
        val=draw(score),
    )


@given(bill=bills())
def test_a_bill_is_seconds_times_price_and_a_point_is_its_share(bill: Bill) -> None:
    assert bill.usd is not None and bill.billable_seconds is not None and bill.training_seconds is not None
    assert bill.usd == pytest.approx(bill.billable_seconds * bill.usd_per_hour / 3600)
    if bill.saving is not None and bill.training_seconds:
        spared = bill.training_seconds * bill.saving / 100
        assert 0 <= bill.saving <= 100
        assert spared + bill.billable_seconds == pytest.approx(bill.training_seconds)
    if isinstance(bill.per_point, NoPoint):
        assert bill.score is None or bill.score.accuracy <= bill.score.majority or bill.score.points <= 0
    else:
        assert bill.score is not None
        assert bill.per_point * bill.score.points == pytest.approx(bill.usd)
        assert bill.per_point >= bill.usd / 100


@given(several=st.lists(bills()), data=st.data())
def test_sums_do_not_depend_on_order_or_grouping(several: list[Bill], data: st.DataObject) -> None:
    paid = [bill for bill in several if not bill.rehearsed]
    total = add_up(several)
    assert total.rehearsed == (bool(several) and not paid)
    assert total.jobs + total.left_out == len(several)
    assert total.usd == pytest.approx(sum(bill.usd or 0 for bill in (paid or several)))
    assert total.usd_saved >= 0 and 0 <= (total.saving or 0) <= 100
    shuffled = add_up(data.draw(st.permutations(several)))
    assert (shuffled.usd, shuffled.training_seconds) == (
        pytest.approx(total.usd),
        pytest.approx(total.training_seconds),
    )
    cut = data.draw(st.integers(0, len(paid)))
    parts = [add_up(paid[:cut]), add_up(paid[cut:])]
    whole = add_up(paid)
    for name in ("usd", "usd_saved", "billable_seconds", "jobs"):
        assert sum(getattr(part, name) for part in parts) == pytest.approx(getattr(whole, name))
    if whole.best is not None:
        assert whole.best.val is not None
        assert all(bill.val is None or bill.val.accuracy <= whole.best.val.accuracy for bill in paid)
