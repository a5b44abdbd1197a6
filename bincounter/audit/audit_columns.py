"""Columns of tables of stock records, and of ``audit.csv``, which reviews read without the model's libraries."""

from collections.abc import Sequence

RECORD = ("bin", "photo", "expected")
"""Columns that a table of records must have; it may have others."""

ANSWER = ("predicted", "expected_count")
VERDICT = ("record_wrong", "direction", "units_off", "reason")


def audit_columns(counts: Sequence[int]) -> list[str]:
    """Columns of an ``audit.csv`` of a model of these counts, before those carried from the records."""
    return [*RECORD, *ANSWER, *(f"p_{count}" for count in counts), *VERDICT]
