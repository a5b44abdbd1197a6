"""Probabilities that records are wrong, and the yield of checks: against brute force, on any input, and calibrated."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bincounter.audit import expected_yield
from bincounter.audit.expected_yield import Costs, checks_worth, expected_found, first_checks
from bincounter.audit.posterior import ERROR_RATE, EXTRA, MISSING, SPREAD, RecordJudge, is_balanced, training_shares
from bincounter.cli import audit_command
from bincounter.config.deploy_schema import AuditConfig

COUNTS = (0, 1, 2, 3, 5)
SHARES = training_shares({0: 9, 1: 49, 2: 29, 5: 9}, COUNTS)


def brute_force(judge: RecordJudge, row: np.ndarray, recorded: int) -> dict[int, float]:
    """The formula, count by count."""
    others = {k: judge.spread ** (abs(k - recorded) - 1) for k in judge.counts if k != recorded}
    prior = {k: judge.error_rate * share / sum(others.values()) for k, share in others.items()}
    prior[recorded] = 1 - judge.error_rate
    weights = {
        k: prior[k] * row[place] / judge.training_shares[place] for place, k in enumerate(judge.counts) if row[place]
    }
    return {k: weight / sum(weights.values()) for k, weight in weights.items()}


def test_verdicts_are_those_of_the_formula() -> None:
    judge = RecordJudge(COUNTS, SHARES, error_rate=0.1, spread=0.5)
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


def test_the_training_shares_are_divided_out() -> None:
    photos = {0: 9, 1: 89}
    assert training_shares(photos, (0, 1)) == (0.1, 0.9)
    assert training_shares({}, (0, 1)) == training_shares(photos, (0, 1), balanced=True) == (0.5, 0.5)
    assert is_balanced({"class_weights": "balanced"}, None) and is_balanced({}, {"data": {"balanced": True}})
    assert not is_balanced({"class_weights": None}, {"data": {"balanced": False}})
    # The shares themselves say nothing on the photo: the prior is left.
    judge = RecordJudge((0, 1), (0.1, 0.9), error_rate=0.2)
    assert judge.judge([[0.1, 0.9], [0.1, 0.9]], [0, 1]).record_wrong == pytest.approx([0.2, 0.2])


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
    judge = RecordJudge(counts, training_shares({}, counts), error_rate, spread)
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


def test_the_promised_yield_is_kept() -> None:
    """Truths drawn from the prior, photos from the model's own distribution: 95 % of intervals hold what is found."""
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
    inside, total, found_early = [], 0, 0
    for _ in range(400):
        recorded = generator.integers(0, 6, 400)
        prior = np.exp(judge._log_prior(recorded))
        truth = (prior.cumsum(1) < generator.random((400, 1))).sum(1)
        kinds = (likelihood[truth].cumsum(1) < generator.random((400, 1))).sum(1)
        record_wrong = judge.judge(model[np.minimum(kinds, 11)], recorded).record_wrong
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
