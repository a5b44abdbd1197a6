"""A layout of your own: photos beside a table of their counts."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bincounter.data.layouts.base import InputFile, walk
from bincounter.data.records import Candidate, Listing, PhotoFile, RejectedInput
from bincounter.errors import DataError


@dataclass(frozen=True)
class CountTable:
    """Photos in a folder, with their counts in a table ``photo,count``.

    Args:
        table: its name in the folder.
    """

    table: str = "counts.csv"

    def walk(self, root: Path) -> Iterator[InputFile]:
        """Yield every file under the root, the table included: a change of it is seen."""
        return walk(root)

    def list(self, root: Path) -> Listing:
        """List the photos in the table; others are quarantined.

        Raises:
            DataError: there is no table.
        """
        path = root / self.table
        if not path.is_file():
            raise DataError(f"{path} does not exist: set data.source to the folder that holds it")
        with path.open(newline="", encoding="utf-8") as file:
            counts = {row["photo"]: int(row["count"]) for row in csv.DictReader(file)}
        listing = Listing()
        for found in self.walk(root):
            if found.name in counts and not found.problem:
                listing.candidates.append(Candidate(found.name, PhotoFile(root / found.name), counts[found.name]))
            elif found.name != self.table:
                reason = found.problem or f"not in {self.table}"
                listing.refusals.append(RejectedInput(found.name, reason, found.passing))
        return listing
