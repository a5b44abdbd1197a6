"""Bin folders: ``<count>/<photo>.jpg``, or split beforehand as ``{train,valid,test}/<count>/<photo>.jpg``."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bincounter.data.layouts.base import COUNT_NAME, PHOTO_SUFFIXES
from bincounter.data.layouts.prepared import missing_photos, read_prepared
from bincounter.data.layouts.walking import Found, Refused, walk
from bincounter.data.photo_file import PhotoFile
from bincounter.data.records import Candidate, Listing, Refusal
from bincounter.errors import DataError

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
