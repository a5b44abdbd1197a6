"""Distributions over counts -> what is answered, as JSON or CSV."""

import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bincounter.serving.application.problems import Problem

JSON, CSV = "application/json", "text/csv"
_ANY = ("*/*", "application/*", "*")


class Answers:
    """Writes the answers of one model.

    Args:
        model: the model's id.
        counts: the counts it can answer, ascending.
    """

    def __init__(self, model: str, counts: Sequence[int]) -> None:
        self._model, self._counts = model, tuple(counts)

    def one(self, probabilities: Tensor) -> dict[str, Any]:
        """What is said of one photo.

        Args:
            probabilities: ``float32[K]``.

        Returns:
            The most likely count (of equally likely ones the smallest, as in the scores), the probability of each
            count, the mean of the distribution, and the model.
        """
        row = probabilities.tolist()
        return {
            "count": self._counts[row.index(max(row))],
            "probabilities": {str(count): probability for count, probability in zip(self._counts, row, strict=True)},
            "expected_count": sum(count * probability for count, probability in zip(self._counts, row, strict=True)),
            "model": self._model,
        }

    def json(self, rows: Sequence[Tensor], *, several: bool) -> bytes:
        """One photo's answer, or, where several were asked for, ``{"predictions": [...]}``."""
        answers = [self.one(row) for row in rows]
        return json.dumps({"predictions": answers} if several else answers[0]).encode()

    def csv(self, rows: Sequence[Tensor], *, header: bool) -> bytes:
        """A line per photo: ``count,expected_count,p_<count>...,model``."""
        names = ["count", "expected_count", *(f"p_{count}" for count in self._counts), "model"]
        lines = [",".join(names)] if header else []
        for answer in map(self.one, rows):
            cells = [answer["count"], answer["expected_count"], *answer["probabilities"].values(), answer["model"]]
            lines.append(",".join(map(str, cells)))
        return "".join(f"{line}\n" for line in lines).encode()


def wanted(accept: str | None) -> tuple[str, bool]:
    """Read an Accept header.

    Args:
        accept: such as ``text/csv; header=present``; several types in the order of preference.

    Returns:
        The content type to answer in, and whether a CSV begins with a header line.

    Raises:
        Problem: 415, none of its types can be given.
    """
    for choice in (accept or "*/*").split(","):
        kind, *parameters = (part.strip().lower() for part in choice.split(";"))
        if kind in (JSON, "", *_ANY):
            return JSON, False
        if kind in (CSV, "text/*"):
            return CSV, "header=present" in parameters
    raise Problem(
        415, f"Accept: {accept[:100] if accept else ''} is nothing that can be given; ask for {JSON} or {CSV}."
    )
