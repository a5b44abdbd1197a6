"""What AWS's List operations have in common: filters, an order, and pages."""

from collections.abc import Callable
from typing import Any

_PAGE = 10  # AWS's default of MaxResults


def is_wanted(summary: dict[str, Any], request: dict[str, Any], kind: str) -> bool:
    """Whether a request's filters let an entry through.

    Args:
        summary: the entry.
        request: the body of a List operation.
        kind: what the names of the entry's own members begin with, such as ``TrainingJob``.
    """
    if request.get("NameContains", "") not in summary[f"{kind}Name"]:
        return False
    status = summary.get(f"{kind}Status")  # what is but a description has none
    if request.get("StatusEquals", status) != status:
        return False
    return all(
        request.get(f"{moment}After", float("-inf")) <= summary[moment] <= request.get(f"{moment}Before", float("inf"))
        for moment in ("CreationTime", "LastModifiedTime")
        if moment in summary
    )


def page(
    member: str, found: list[dict[str, Any]], request: dict[str, Any], key: Callable[[dict[str, Any]], Any]
) -> dict[str, Any]:
    """One page of an answer.

    Args:
        member: the answer's member that holds the entries.
        found: all entries that are wanted.
        request: with ``SortOrder``, ``NextToken`` and ``MaxResults``, if any.
        key: what an entry is sorted by.
    """
    found = sorted(found, key=key, reverse=request.get("SortOrder") == "Descending")
    start = int(request.get("NextToken", "0"))
    end = start + request.get("MaxResults", _PAGE)
    answer: dict[str, Any] = {member: found[start:end]}
    return {**answer, "NextToken": str(end)} if end < len(found) else answer
