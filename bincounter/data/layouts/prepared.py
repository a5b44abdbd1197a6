"""What ``prepare`` leaves beside bin folders: the groups its split was made by, and what it refused."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bincounter.data.quarantine import QUARANTINE_FILE, read_quarantine
from bincounter.data.records import Refusal
from bincounter.data.splits import read_split
from bincounter.errors import DataError

log = logging.getLogger(__name__)

SPLIT_FILE = "split.csv"

NOT_THERE = ("listed in split.csv, but no such folder", "listed in split.csv, but no such photo")
"""Why photos are refused that ``split.csv`` lists."""

_LARGEST_GROUP = 10**9


@dataclass
class Prepared:
    """The tables right under the root of bin folders.

    Attributes:
        tables: names of the files that are such tables, hence no photos.
        groups: the group of each photo that ``split.csv`` lists, by its id.
        refusals: what was refused when the photos were prepared, and tables that are none.
    """

    tables: set[str] = field(default_factory=set)
    groups: dict[str, int] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)


def read_prepared(root: Path) -> Prepared:
    """Read ``split.csv`` and the ``quarantine.csv`` beside it, where there are any."""
    prepared = Prepared()
    if not (root / SPLIT_FILE).is_file():
        return prepared
    prepared.tables.add(SPLIT_FILE)
    try:
        prepared.groups = _groups(root / SPLIT_FILE)
    except DataError as error:
        log.warning("%s; photos are grouped by what they show", error)
        prepared.refusals.append(Refusal(SPLIT_FILE, "not a table of id,count,group,split"))
    if (root / QUARANTINE_FILE).is_file():
        prepared.tables.add(QUARANTINE_FILE)
        try:
            prepared.refusals += read_quarantine(root / QUARANTINE_FILE)
        except DataError:
            prepared.refusals.append(Refusal(QUARANTINE_FILE, "not a table of path,reason"))
    return prepared


def missing_photos(root: Path, ids: Iterable[str]) -> Iterator[Refusal]:
    """Refuse photos that ``split.csv`` lists and that are not there; folders that are not there once for all."""
    folders: dict[str, bool] = {}
    for name in ids:
        folder = name.rpartition("/")[0]
        if folder not in folders:
            folders[folder] = (root / folder).is_dir()
            if not folders[folder]:
                yield Refusal(f"{folder}/", NOT_THERE[0])
        if folders[folder]:
            yield Refusal(name, NOT_THERE[1])


def _groups(path: Path) -> dict[str, int]:
    rows = read_split(path)
    groups = {row.id: row.group for row in rows}
    if len(groups) < len(rows):
        raise DataError(f"{path} is no split: it lists a photo twice")
    if not all(0 <= group <= _LARGEST_GROUP for group in groups.values()):
        raise DataError(f"{path} is no split: its groups have to be numbers from 0 to {_LARGEST_GROUP}")
    return groups
