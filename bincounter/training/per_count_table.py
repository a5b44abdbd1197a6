"""Per-count scores of a run: rows of ``per_count.csv``, written and read."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bincounter.files import write_table


@dataclass(frozen=True, slots=True)
class CountRow:
    """Scores of the photos of one count in one split: a row of ``per_count.csv``.

    Attributes:
        scored: number of scored photos.
        accuracy: 0-1; ``None`` without photos.
        accuracy_interval: 95 %, Wilson (1927), https://doi.org/10.1080/01621459.1927.10502953.
        loss: mean cross entropy in nats; ``None`` without photos.
        loss_interval: 95 %, Student's t; ``None`` for fewer photos than
            :data:`~bincounter.training.scoring.FEWEST_FOR_LOSS`.
        photos: number of photos in the split; ``None`` if unknown.
    """

    scored: int
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    loss: float | None = None
    loss_interval: tuple[float, float] | None = None
    photos: int | None = None


def parse_per_count(file: IO[str]) -> dict[tuple[int, str], CountRow]:
    """Parse the rows of ``per_count.csv`` by count and split."""
    return {
        (int(row["count"]), row["split"]): CountRow(
            photos=int(row["photos"]) if row["photos"] else None,
            scored=int(row["scored"]),
            accuracy=float(row["accuracy"]) if row["accuracy"] else None,
            accuracy_interval=_interval(row, "accuracy"),
            loss=float(row["cross_entropy"]) if row["cross_entropy"] else None,
            loss_interval=_interval(row, "cross_entropy"),
        )
        for row in csv.DictReader(file)
    }


def _interval(row: Mapping[str, str], name: str) -> tuple[float, float] | None:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return (float(low), float(high)) if low and high else None


def write_per_count(run: Path, rows: Mapping[tuple[int, str], CountRow]) -> None:
    """Write ``per_count.csv``, one row per count and split (``train``, ``validation``, ``test``).

    Columns: ``count``; ``split``; ``photos`` of that count in that split (of ``train`` the model's training photos),
    empty if unknown; ``scored``, the number of photos behind the rest of the row; ``accuracy``, 0-1;
    ``cross_entropy``, mean in nats of the final model on photos without augmentation; ``_low`` and ``_high``, their
    95 % intervals. Cells without scored photos are empty.

    Args:
        run: the run's folder.
        rows: rows by count and split, in the order of the file.
    """
    scores = ("accuracy", "accuracy_low", "accuracy_high", "cross_entropy", "cross_entropy_low", "cross_entropy_high")

    def cells(row: CountRow) -> Iterable[str]:
        nothing = (None, None)
        numbers = (row.accuracy, *(row.accuracy_interval or nothing), row.loss, *(row.loss_interval or nothing))
        return ("" if number is None else f"{number:.6g}" for number in numbers)

    lines = (
        [count, split, "" if row.photos is None else row.photos, row.scored, *cells(row)]
        for (count, split), row in rows.items()
    )
    write_table(run / "per_count.csv", ("count", "split", "photos", "scored", *scores), lines)
