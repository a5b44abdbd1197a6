"""Wrong stock records found by the first checks of `bincounter audit`, and how well it keeps its promise.

    python benchmarks/audit.py --run RUN            20 draws of 3 % and of 10 % wrong records, on the run's test photos
    python benchmarks/audit.py --run RUN --quick    5 draws

The true counts are the labels of the test photos, and the distributions those of predictions.csv, so that no photo is
read. A draw makes each record wrong with that probability, on its own; the wrong count is drawn by its distance, each
further item four times rarer. Records are then checked

- audit: by the probability that the record is wrong, as `bincounter audit --error-rate` ranks them;
- recorded count: by the model's probability of the recorded count, the smallest first;
- difference: by |predicted - recorded|, the largest first;
- random: in any order.

Columns: share of the wrong records that the first 5, 10 and 20 % of checks find, and the area under the share found
against the share checked (0.5 at random); means over the draws, ties in a random order. "Kept" are the draws in which
the first 10 % of the audit find a number inside the promised 95 % interval. The last line is one JSON object: how many
times more wrong records than at random the first 10 % find.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bincounter.audit.expected_yield import SHARES, Found, expected_found, first_checks
from bincounter.audit.posterior import SPREAD, RecordJudge
from bincounter.errors import BinCounterError
from bincounter.training.results import Predictions, read_results

RATES = (0.03, 0.1)
ORDERS = ("audit", "recorded count", "difference", "random")


@dataclass(frozen=True)
class Draw:
    """One draw.

    Attributes:
        found: by order, the share of wrong records that the first n checks find, float ``[N + 1]``.
        promised: yield that the audit promises of its first 10 %.
        kept: wrong records that they find.
        wrong: wrong records in all.
    """

    found: dict[str, np.ndarray]
    promised: Found
    kept: int
    wrong: int


def main() -> int:
    """Corrupt, rank, and print a table for each share of wrong records."""
    options = _options()
    try:
        results = read_results(options.run)
    except BinCounterError as error:
        sys.exit(str(error))
    scored = results.predictions and results.predictions.of("test")
    if not scored or not len(scored.ids):
        sys.exit(f"{options.run} has no predictions of test photos: name a run that has scored them")
    known = np.isin(scored.counts, scored.support)
    scored = scored.rows(np.flatnonzero(known))
    model = {"counts": scored.support, "train_counts": results.photos("train"), "model": results.config["model"]}
    model["balanced"] = results.config["data"].get("balanced", False)
    right = (scored.counts == scored.predicted).mean()
    print(f"{options.run}: {len(scored.ids):,} test photos, {right:.1%} counted right, {options.draws} draws")
    ratios = {}
    for rate in RATES:
        judge = RecordJudge.of_model(model, error_rate=rate)
        draws = [draw(scored, judge, seed) for seed in range(5 if options.quick else options.draws)]
        ratios[f"{rate:.0%} wrong"] = round(_print(rate, draws), 2)
    print(json.dumps({"found in the first 10 %, times random": ratios}))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run with scored test photos")
    parser.add_argument("--draws", type=int, default=20, help="draws of wrong records (20)")
    parser.add_argument("--quick", action="store_true", help="5 draws")
    return parser.parse_args()


def draw(scored: Predictions, judge: RecordJudge, seed: int) -> Draw:
    """Corrupt records, and check them in each order."""
    generator = np.random.default_rng(seed)
    support, true = np.array(scored.support), scored.counts
    distance = np.abs(support - true[:, None])
    odds = np.where(distance > 0, SPREAD ** (distance - 1.0), 0)
    wrong_count = (odds.cumsum(1) / odds.sum(1, keepdims=True) > generator.random((len(true), 1))).argmax(1)
    wrong = generator.random(len(true)) < judge.error_rate
    recorded = np.where(wrong, support[wrong_count], true)
    record_wrong = judge.for_stock(recorded).judge(scored.probabilities, recorded).record_wrong
    of_recorded = scored.probabilities[np.arange(len(true)), np.searchsorted(support, recorded)]
    keys = {
        "audit": -record_wrong,
        "recorded count": of_recorded,
        "difference": -np.abs(scored.predicted - recorded).astype(float),
        "random": np.zeros(len(true)),
    }
    found = {}
    for name in ORDERS:
        order = np.lexsort((generator.random(len(true)), keys[name]))
        found[name] = np.concatenate([[0], wrong[order].cumsum()]) / max(wrong.sum(), 1)
        if name == "audit":
            checks = first_checks(len(true))[1]
            promised, kept = expected_found(record_wrong[order], checks), int(wrong[order[:checks]].sum())
    return Draw(found, promised, kept, int(wrong.sum()))


def _print(rate: float, draws: list[Draw]) -> float:
    """Print the table of one share of wrong records; return how much more the audit finds than a random order."""
    print(f"\n{rate:.0%} of the records wrong ({np.mean([each.wrong for each in draws]):.1f} of them)")
    print(f"{'order':<16}" + "".join(f"{f'first {share:.0%}':>11}" for share in SHARES) + f"{'area':>9}")
    at_ten = {}
    for name in ORDERS:
        curves = np.array([each.found[name] for each in draws])
        firsts = [curves[:, checks].mean() for checks in first_checks(curves.shape[1] - 1)]
        area = ((curves[:, 1:] + curves[:, :-1]) / 2).mean()
        print(f"{name:<16}" + "".join(f"{share:>11.1%}" for share in firsts) + f"{area:>9.3f}")
        at_ten[name] = firsts[1]
    inside = sum(each.promised.low <= each.kept <= each.promised.high for each in draws)
    promised, kept = (np.mean(values) for values in zip(*((d.promised.expected, d.kept) for d in draws), strict=True))
    print(f"promised of the first 10 %: {promised:.1f}, found {kept:.1f}; kept in {inside} of {len(draws)} draws")
    return float(
        at_ten["audit"] * (draws[0].found["audit"].size - 1) / first_checks(draws[0].found["audit"].size - 1)[1]
    )


if __name__ == "__main__":
    sys.exit(main())
