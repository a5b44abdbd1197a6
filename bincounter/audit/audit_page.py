"""``audit.html``: wrong records that checks are expected to find, the first bins to check, and what was not judged."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from bincounter.audit.audit_run import Audit
from bincounter.audit.expected_yield import SHARES, Costs, Found, checks_worth, expected_found, first_checks
from bincounter.audit.posterior import RecordJudge
from bincounter.names import escape_name
from bincounter.number_format import decimals, percent, whole
from bincounter.report.page import write_page
from bincounter.report.plots import found_errors
from bincounter.report.report_photos import inline

SHOWN = 50
_POINTS = 60  # of the curve
_SIDE = 160  # pixels of a photo
_LISTED = 200  # records that were not judged


def write_audit_page(
    path: Path,
    audit: Audit,
    judge: RecordJudge,
    costs: Costs | None,
    about: Mapping[str, str],
    *,
    checks: int | None = None,
) -> Path:
    """Write the page of an audit.

    Args:
        path: of the page.
        audit: its records.
        judge: that judged them.
        costs: of a check and of an error, ``None`` if they were not given.
        about: the model and the settings, text by name.
        checks: number that people have time for.

    Returns:
        ``path``.
    """
    wrong = audit.judged
    stop = None if costs is None else checks_worth(wrong, costs)
    everything = expected_found(wrong, len(wrong))
    content: dict[str, object] = {
        "title": "Audit",
        "kicker": "bincounter audit",
        "headline": headline(everything),
        "lead": f"{whole(len(wrong))} of {whole(len(audit.order))} records and photos were judged, and are ranked by "
        "the probability that the count is wrong, given a photo of the bin and how often records are wrong.",
        "cards": [_card(expected_found(wrong, n), name, everything) for name, n in cards_of(wrong, checks)],
        "curve": _curve(wrong, stop),
        "stop_at": stop,
        "stop": stop_sentence(wrong, costs),
        "bins": [_bin(audit, int(row)) for row in audit.order[: min(SHOWN, len(wrong))]],
        "refused": _refused(audit),
        "about": {**about, "error rate": f"{judge.error_rate:g}", "spread": f"{judge.spread:g}"},
        "footer": "Made by bincounter. This file needs no network.",
    }
    return write_page(path, "audit.html", content)


def headline(everything: Found) -> str:
    """Summarise the expected number of wrong records."""
    if not everything.checks:
        return "No record could be judged"
    return f"{decimals(everything.expected, 1)} of {whole(everything.checks)} records are expected to be wrong"


def cards_of(record_wrong: np.ndarray, checks: int | None = None) -> list[tuple[str, int]]:
    """Return names and numbers of first checks: shares of the judged records, each number once, and ``checks``."""
    numbers = {
        number: f"first {percent(share, 0)}, {_checks(number)}"
        for number, share in zip(first_checks(len(record_wrong)), SHARES, strict=True)
    }
    named = [(name, number) for number, name in numbers.items() if number]
    if checks is not None and named:
        checks = min(checks, len(record_wrong))
        named.append((f"first {_checks(checks)}", checks))
    return named


def _checks(number: int) -> str:
    return f"{whole(number)} check{'s' * (number != 1)}"


def found_sentence(found: Found) -> str:
    """Format the wrong records that checks are expected to find."""
    return f"{decimals(found.expected, 1)} wrong records (95 % interval {found.low} to {found.high})"


def stop_sentence(record_wrong: np.ndarray, costs: Costs | None) -> str:
    """Describe the number of checks that are worth their cost; empty without costs."""
    if costs is None:
        return ""
    stop = checks_worth(record_wrong, costs)
    priced = f"a check costs {costs.check:g} and an unfound error {costs.error:g}"
    if not stop:
        return f"No check is worth its cost: {priced}, and no record is wrong with a probability that pays for it."
    found = expected_found(record_wrong, stop)
    saved = costs.error * found.expected - costs.check * stop
    return (
        f"Stop after {whole(stop)} checks: {priced}. Expected are {found_sentence(found)}, which save {saved:,.2f} "
        "beyond the cost of checking."
    )


def _card(found: Found, name: str, everything: Found) -> dict[str, Any]:
    at_random = everything.expected * found.checks / everything.checks
    top = max(found.high, at_random, 1e-9) * 1.1
    return {
        "name": name,
        "value": decimals(found.expected, 1),
        "range": f"95 % interval {found.low} to {found.high}",
        "against": f"{decimals(at_random, 1)} in a random order",
        "at": [round(100 * each / top, 2) for each in (found.expected, found.low, found.high, at_random)],
    }


def _curve(wrong: np.ndarray, stop: int | None) -> object:
    if not len(wrong):
        return ""
    checks = np.unique(np.linspace(0, len(wrong), _POINTS).round().astype(int))
    points = [expected_found(wrong, int(number)) for number in checks]
    label = f"Expected wrong records against checks, up to {points[-1].expected:.1f} of {len(wrong)}"
    ends = [(point.low, point.high) for point in points]
    return found_errors(checks.tolist(), [point.expected for point in points], ends, stop=stop, label=label)


def _bin(audit: Audit, row: int) -> dict[str, Any]:
    record, counted = audit.stock.records[row], audit.count(row)
    assert counted is not None
    data = None
    with suppress(OSError):
        data = Path(record.file).read_bytes()
    return {
        "image": inline(data, _SIDE, quality=70),
        "bin": escape_name(record.bin),
        "photo": escape_name(record.photo),
        "expected": record.expected,
        "predicted": counted[0],
        "sure": percent(audit.probabilities[row, list(audit.counts).index(counted[0])], 0),
        "record_wrong": percent(audit.record_wrong[row]),
        "direction": audit.direction[row],
        "units_off": f"{audit.units_off[row]:+.1f}",
    }


def _refused(audit: Audit) -> dict[str, Any]:
    """Return what was not judged: numbers by reason, and the first records."""
    rows = [int(row) for row in audit.order[len(audit.judged) :]]
    records = [audit.stock.records[row] for row in rows]
    return {
        "number": len(records),
        "reasons": Counter(record.reason for record in records).most_common(10),
        "rows": [
            (escape_name(record.bin), escape_name(record.photo), record.expected, record.reason)
            for record in records[:_LISTED]
        ],
    }
