"""Bin folders, and what ``prepare`` left beside them."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from bincounter.data.layouts.base import COUNT_NAME, PHOTO_SUFFIXES, Found, Refused, walk
from bincounter.data.records import QUARANTINE_FILE, Candidate, Listing, PhotoFile, Refusal, read_quarantine
from bincounter.data.splits import read_split
from bincounter.errors import DataError

log = logging.getLogger(__name__)

SPLIT_FILE = "split.csv"

NOT_THERE = ("listed in split.csv, but no such folder", "listed in split.csv, but no such photo")
"""Why photos are refused that ``split.csv`` lists."""

_LARGEST_GROUP = 10**9

SPLIT_FOLDERS = {
    "train": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}
"""Names of split folders (in any case) and the split they stand for."""


@dataclass(frozen=True)
class Folders:
    """Photos in folders named by their count; a photo's id is its path relative to the root.

    Every file under the root that is not hidden is a photo or is refused, but for the tables that ``prepare`` leaves
    there: photos that ``split.csv`` lists have the groups it says, and what ``quarantine.csv`` lists stays refused.
    """

    def walk(self, root: Path) -> Iterator[Found]:
        """Go through every file under the root."""
        return walk(root)

    def list(self, root: Path) -> Listing:
        """List the photos of all count folders.

        Raises:
            DataError: the root is no folder.
        """
        if not root.is_dir():
            raise DataError(f"{root} is no folder: give data.source the folder that holds the bin folders.")
        prepared = read_prepared(root)
        listing = Listing(refusals=prepared.refusals)
        for found in self.walk(root):
            if found.name in prepared.tables:
                continue
            try:
                listing.candidates.append(_candidate(root, found, prepared.groups.pop(found.name, None)))
            except Refused as reason:
                listing.refusals.append(Refusal(found.name, str(reason)))
        listing.refusals += missing_photos(root, prepared.groups)
        return listing


def _candidate(root: Path, found: Found, group: int | None) -> Candidate:
    """Read split and count off the path ``[split/]count/photo``."""
    if found.problem:
        raise Refused(found.problem)
    *folders, name = found.name.split("/")
    split = SPLIT_FOLDERS.get(folders[0].lower()) if folders else None
    labels = folders[1:] if split else folders
    if not labels:
        raise Refused("not inside a count folder")
    if not COUNT_NAME.fullmatch(labels[0]):
        raise Refused(f"folder name {labels[0]!r} is no count")
    if len(labels) > 1:
        raise Refused("nested deeper than its count folder")
    if PurePosixPath(name).suffix.lower() not in PHOTO_SUFFIXES:
        raise Refused("not a .jpg, .jpeg, .png or .webp file")
    return Candidate(found.name, PhotoFile(root / found.name), int(labels[0]), group=group, split=split)


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
