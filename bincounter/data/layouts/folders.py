"""Layout of bin folders, and the tables that ``prepare`` writes beside them."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from bincounter.data.layouts.base import COUNT_NAME, PHOTO_SUFFIXES, InputFile, UnusableInput, walk
from bincounter.data.photos import failure_clause
from bincounter.data.records import QUARANTINE_FILE, Candidate, Listing, PhotoFile, RejectedInput, read_quarantine
from bincounter.data.splits import read_split
from bincounter.errors import DataError

log = logging.getLogger(__name__)

SPLIT_FILE = "split.csv"

MISSING_REASONS = ("listed in split.csv, but no such folder", "listed in split.csv, but no such photo")
"""Reasons for rejecting photos that ``split.csv`` lists."""

_LARGEST_GROUP = 10**9

SPLIT_FOLDERS = {
    "train": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}
"""Names of split folders (in any case) -> split."""


@dataclass(frozen=True)
class Folders:
    """Photos in folders named by their count; a photo's id is its path relative to the root.

    Every file under the root that is not hidden is a photo or is rejected, except for the tables of ``prepare``: photos
    in ``split.csv`` have the groups given there, and inputs in ``quarantine.csv`` stay rejected.
    """

    def walk(self, root: Path) -> Iterator[InputFile]:
        """Yield every file under the root."""
        return walk(root)

    def list(self, root: Path) -> Listing:
        """List the photos of all count folders.

        Raises:
            DataError: the root is not a folder.
        """
        if not root.is_dir():
            raise DataError(f"{root} is not a folder: set data.source to the folder that holds the bin folders.")
        prepared = read_prepared(root)
        listing = Listing(refusals=prepared.refusals)
        for found in self.walk(root):
            if found.name in prepared.tables:
                continue
            try:
                listing.candidates.append(_candidate(root, found, prepared.groups.pop(found.name, None)))
            except UnusableInput as reason:
                listing.refusals.append(RejectedInput(found.name, str(reason), reason.passing))
        listing.refusals += reject_missing_photos(root, prepared.groups)
        return listing


def _candidate(root: Path, found: InputFile, group: int | None) -> Candidate:
    """Parse split and count from the path ``[split/]count/photo``."""
    if found.problem:
        raise UnusableInput(found.problem, passing=found.passing)
    *folders, name = found.name.split("/")
    split = SPLIT_FOLDERS.get(folders[0].lower()) if folders else None
    labels = folders[1:] if split else folders
    if not labels:
        raise UnusableInput("not inside a count folder")
    if not COUNT_NAME.fullmatch(labels[0]):
        raise UnusableInput(f"folder name {labels[0]!r} is not a count")
    if len(labels) > 1:
        raise UnusableInput("nested deeper than its count folder")
    if PurePosixPath(name).suffix.lower() not in PHOTO_SUFFIXES:
        raise UnusableInput("not a .jpg, .jpeg, .png or .webp file")
    return Candidate(found.name, PhotoFile(root / found.name), int(labels[0]), group=group, split=split)


@dataclass
class Prepared:
    """The tables right under the root of bin folders.

    Attributes:
        tables: names of the files that are tables, not photos.
        groups: id -> group, for each photo in ``split.csv``.
        refusals: inputs that were rejected when the photos were prepared, and invalid tables.
    """

    tables: set[str] = field(default_factory=set)
    groups: dict[str, int] = field(default_factory=dict)
    refusals: list[RejectedInput] = field(default_factory=list)


def read_prepared(root: Path) -> Prepared:
    """Read ``split.csv`` and the ``quarantine.csv`` beside it, if they exist."""
    prepared = Prepared()
    if not (root / SPLIT_FILE).is_file():
        return prepared
    prepared.tables.add(SPLIT_FILE)
    try:
        prepared.groups = _groups(root / SPLIT_FILE)
    except DataError as error:
        log.warning("%s; photos are grouped by their content instead", error)
        prepared.refusals.append(_unread_table(SPLIT_FILE, "not a table of id,count,group,split", error))
    if (root / QUARANTINE_FILE).is_file():
        prepared.tables.add(QUARANTINE_FILE)
        try:
            prepared.refusals += read_quarantine(root / QUARANTINE_FILE)
        except DataError as error:
            prepared.refusals.append(_unread_table(QUARANTINE_FILE, "not a table of path,reason", error))
    return prepared


def _unread_table(name: str, reason: str, error: DataError) -> RejectedInput:
    cause = error.__cause__
    if isinstance(cause, OSError):
        return RejectedInput(name, failure_clause(cause), passing=True)
    return RejectedInput(name, reason)


def reject_missing_photos(root: Path, ids: Iterable[str]) -> Iterator[RejectedInput]:
    """Yield a rejection for each photo of ``split.csv`` that is missing; one for all photos of a missing folder."""
    folders: dict[str, bool] = {}
    for name in ids:
        folder = name.rpartition("/")[0]
        if folder not in folders:
            folders[folder] = (root / folder).is_dir()
            if not folders[folder]:
                yield RejectedInput(f"{folder}/", MISSING_REASONS[0])
        if folders[folder]:
            yield RejectedInput(name, MISSING_REASONS[1])


def _groups(path: Path) -> dict[str, int]:
    rows = read_split(path)
    groups = {row.id: row.group for row in rows}
    if len(groups) < len(rows):
        raise DataError(f"{path} is not a split: it lists a photo twice")
    if not all(0 <= group <= _LARGEST_GROUP for group in groups.values()):
        raise DataError(f"{path} is not a split: its groups must be integers from 0 to {_LARGEST_GROUP}")
    return groups
