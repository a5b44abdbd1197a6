"""``quarantine.csv`` beside prepared photos: what was refused when they were prepared, and why."""

import csv
from collections.abc import Iterable
from pathlib import Path

from bincounter.data.records import Refusal
from bincounter.errors import DataError
from bincounter.files import replacing

QUARANTINE_FILE = "quarantine.csv"
_HEADER = ["path", "reason"]


def write_quarantine(path: Path, refusals: Iterable[Refusal]) -> None:
    """Write refusals as a table of ``path,reason``, whole or not at all."""
    with replacing(path) as file:
        # In quotes, since Python before 3.13 leaves them out round a "\r", which then cannot be read back.
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(_HEADER)
        writer.writerows((refusal.path, refusal.reason) for refusal in refusals)


def read_quarantine(path: Path) -> list[Refusal]:
    """Read what :func:`write_quarantine` wrote.

    Raises:
        DataError: the file is missing or is no such table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            if next(lines, None) != _HEADER:
                raise ValueError
            return [Refusal(name, reason) for name, reason in lines]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} is no table of {','.join(_HEADER)}: bring it back as it was, or delete it") from error
