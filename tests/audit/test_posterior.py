"""Probabilities that records are wrong, and the yield of checks: against brute force, on any input, and calibrated."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bincounter.audit import expected_yield
from bincounter.audit.expected_yield import Costs, checks_worth, expected_found, first_checks
from bincounter.audit.posterior import ERROR_RATE, EXTRA, MISSING, SPREAD, RecordJudge, training_shares
from bincounter.cli import audit_command
from bincounter.config.deploy_schema import AuditConfig

COUNTS = (0, 1, 2, 3, 5)
SHARES = training_shares({0: 9, 1: 49, 2: 29, 5: 9}, COUNTS)


def brute_force(judge: RecordJudge, row: np.ndarray, recorded: int) -> dict[int, float]:
    """The formula, count by count."""
    weights = {}
    for k, model, trained, stock in zip(judge.counts, row, judge.training_shares, judge.stock_shares, strict=True):
        errors = {r: judge.spread ** (abs(r - k) - 1) for r in judge.counts if r != k}
        rates = {r: judge.error_rate * share / sum(errors.values()) for r, share in errors.items()}
        weights[k] = model / trained * stock * (rates | {k: 1 - judge.error_rate})[recorded]
    return {k: weight / sum(weights.values()) for k, weight in weights.items()}


def test_verdicts_are_those_of_the_formula() -> None:
    judge = RecordJudge(COUNTS, SHARES, error_rate=0.1, spread=0.5, stock_shares=(0.1, 0.1, 0.2, 0.2, 0.4))
    generator = np.random.default_rng(0)
    rows, recorded = generator.dirichlet(np.ones(5), 200), generator.choice(COUNTS, 200)
    rows[:20, 2] = 0
    verdicts = judge.judge(rows, recorded)
    for place, (row, count) in enumerate(zip(rows, recorded, strict=True)):
        posterior = brute_force(judge, row, count)
        fewer, more = (sum(p for k, p in posterior.items() if (k - count) * side > 0) for side in (-1, 1))
        assert verdicts.record_wrong[place] == pytest.approx(fewer + more)
        assert verdicts.direction[place] == (MISSING if fewer > more else EXTRA)
        assert verdicts.units_off[place] == pytest.approx(sum(p * (k - count) for k, p in posterior.items()))


def test_the_shares_in_training_are_replaced_by_those_of_the_stock() -> None:
    model: dict[str, Any] = {"counts": [0, 1], "train_counts": {0: 9, 1: 89}, "model": {"class_weights": None}}
    plain = RecordJudge.of_model(model)
    assert plain.training_shares == plain.stock_shares == (0.1, 0.9) == training_shares({0: 9, 1: 89}, (0, 1))
    for even in ({"balanced": True}, {"model": {"class_weights": "balanced"}}):
        judge = RecordJudge.of_model({**model, **even})
        assert (judge.training_shares, judge.stock_shares) == ((0.5, 0.5), (0.1, 0.9))
    # The shares themselves say nothing on the photo: the record and the stock are left.
    even_stock = RecordJudge((0, 1), (0.1, 0.9), error_rate=0.2, stock_shares=(0.5, 0.5))
    assert even_stock.judge([[0.1, 0.9]] * 2, [0, 1]).record_wrong == pytest.approx([0.2, 0.2])
    same_stock = RecordJudge((0, 1), (0.1, 0.9), error_rate=0.2)
    assert same_stock.judge([[0.1, 0.9]] * 2, [0, 1]).record_wrong == pytest.approx([0.18 / 0.26, 0.02 / 0.74])


def test_shares_of_the_stock_are_estimated_from_wrong_records() -> None:
    judge, true = RecordJudge(COUNTS, SHARES, error_rate=0.2), np.array([0.4, 0.0, 0.0, 0.1, 0.5])
    recorded = np.exp(judge._log_recorded(np.array(COUNTS))) @ true  # shares of the recorded counts
    numbers = (recorded * 1e6).round().astype(int)
    assert judge.for_stock(np.repeat(COUNTS, numbers).tolist()).stock_shares == pytest.approx(true, abs=0.02)
    assert judge.for_stock([5]).stock_shares == pytest.approx(SHARES, abs=0.05)  # a record is no stock
    assert judge.for_stock([]).stock_shares == pytest.approx(SHARES)


@given(
    probabilities=st.lists(st.floats(0, 1), min_size=1, max_size=40).filter(lambda row: sum(row) > 1e-6),
    error_rate=st.floats(1e-12, 1 - 1e-12),
    spread=st.floats(1e-300, 1),
    data=st.data(),
)
def test_any_distribution_gives_a_probability(
    probabilities: list[float], error_rate: float, spread: float, data: st.DataObject
) -> None:
    row = np.array(probabilities) / sum(probabilities)
    counts = tuple(range(0, 3 * len(row), 3))
    recorded = data.draw(st.sampled_from(counts))
    judge = RecordJudge(counts, training_shares({}, counts), error_rate, spread).for_stock([recorded] * 9)
    verdicts = judge.judge([row], [recorded])
    assert 0 <= verdicts.record_wrong[0] <= 1
    assert counts[0] - recorded - 1e-9 <= verdicts.units_off[0] <= counts[-1] - recorded + 1e-9
    assert judge.posterior([row], np.array([recorded])).sum() == pytest.approx(1)


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(ValueError, match="does not know the count 4"):
        RecordJudge(COUNTS, SHARES).judge([[0.2] * 5], [4])
    for error_rate, spread in product((0, 1, 0.1), (0, 1.1)):
        with pytest.raises(ValueError, match="error_rate"):
            RecordJudge(COUNTS, SHARES, error_rate, spread)
    with pytest.raises(ValueError, match="training_shares"):
        RecordJudge(COUNTS, SHARES[:2])
    with pytest.raises(ValueError, match="stock_shares"):
        RecordJudge(COUNTS, SHARES, stock_shares=(1.0, 0, 0, 0, 0))
    assert len(RecordJudge(COUNTS, SHARES).judge(np.zeros((0, 5)), []).record_wrong) == 0


def test_defaults_are_the_same_everywhere() -> None:
    assert (ERROR_RATE, SPREAD) == (audit_command.ERROR_RATE, audit_command.SPREAD)
    assert (AuditConfig().error_rate, AuditConfig().spread) == (ERROR_RATE, SPREAD)


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=0, max_size=9))
def test_yield_is_the_sum_over_all_outcomes(probabilities: list[float]) -> None:
    chances = np.zeros(len(probabilities) + 1)
    for outcome in product((0, 1), repeat=len(probabilities)):
        chances[sum(outcome)] += np.prod([p if hit else 1 - p for p, hit in zip(probabilities, outcome, strict=True)])
    found = expected_found(np.array(probabilities), len(probabilities))
    cumulative = np.cumsum(chances)
    assert found.expected == pytest.approx(sum(probabilities))
    assert found.low == 0 or cumulative[found.low - 1] < 0.025 + 1e-9
    assert cumulative[found.high] >= 0.975 - 1e-9


def test_the_approximation_of_many_checks_is_near_the_exact_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    for n, a in ((500, 0.05), (500, 0.5), (300, 3.0)):
        probabilities = generator.beta(a, 3, n)
        exact = expected_found(probabilities, n)
        with monkeypatch.context() as patch:
            patch.setattr(expected_yield, "_EXACT", 0)
            near = expected_found(probabilities, n)
        assert abs(near.low - exact.low) <= 1 and abs(near.high - exact.high) <= 1
    assert expected_found(np.array([1.0] * 600 + [0.0] * 600), 1200)[1:] == (600.0, 600, 600)


@pytest.mark.parametrize("stock", [(0.125, 0.375, 0.25, 0.125, 0.0625, 0.0625), (0.05, 0.05, 0.05, 0.1, 0.25, 0.5)])
def test_the_promised_yield_is_kept(stock: tuple[float, ...]) -> None:
    """In a stock like the training photos, and in another one, 95 % of intervals hold what is found."""
    generator = np.random.default_rng(0)
    counts = np.arange(6)
    likelihood = np.exp(
        -1.2 * np.abs(counts[:, None] - np.arange(12) / 2) ** 2
    )  # of 12 kinds of photo, given the count
    likelihood /= likelihood.sum(1, keepdims=True)
    shares = training_shares({0: 99, 1: 299, 2: 199, 3: 99, 4: 49, 5: 49}, counts.tolist())
    model = (likelihood * np.array(shares)[:, None]).T
    model /= model.sum(1, keepdims=True)  # exactly calibrated under the shares in training
    judge = RecordJudge(tuple(counts.tolist()), shares, error_rate=0.05)
    recording = np.exp(judge._log_recorded(counts)).T
    inside, total, found_early = [], 0, 0
    for _ in range(400):
        truth = generator.choice(counts, 400, p=stock)
        recorded = (recording[truth].cumsum(1) < generator.random((400, 1))).sum(1)
        kinds = (likelihood[truth].cumsum(1) < generator.random((400, 1))).sum(1)
        record_wrong = judge.for_stock(recorded).judge(model[np.minimum(kinds, 11)], recorded).record_wrong
        order = np.argsort(-record_wrong)
        first = first_checks(400)[1]
        promised = expected_found(record_wrong[order], first)
        found = int((truth != recorded)[order[:first]].sum())
        inside.append(promised.low <= found <= promised.high)
        total, found_early = total + int((truth != recorded).sum()), found_early + found
    assert 0.93 <= np.mean(inside) <= 1
    assert found_early / total > 0.3  # a random order finds 0.1


def test_checks_are_made_while_they_are_worth_it() -> None:
    wrong = np.array([0.9, 0.5, 0.2, 0.1, 0.01])
    assert checks_worth(wrong, Costs(check=1, error=6)) == 3
    assert checks_worth(wrong, Costs(check=1, error=1)) == 0
    assert checks_worth(wrong, Costs(check=1, error=1000)) == 5
    assert first_checks(40) == [2, 4, 8] and first_checks(3) == [1, 1, 1] and first_checks(0) == [0, 0, 0]
