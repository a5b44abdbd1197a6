"""Which layout a folder has, by what lies in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bincounter.data.layouts.abid import METADATA, PHOTOS, Abid
from bincounter.data.layouts.base import COUNT_NAME, Layout
from bincounter.data.layouts.folders import SPLIT_FOLDERS, Folders
from bincounter.data.layouts.walking import Found
from bincounter.data.records import Listing
from bincounter.errors import DataError


@dataclass(frozen=True)
class Detected:
    """Whichever layout the root turns out to have."""

    def walk(self, root: Path) -> Iterator[Found]:
        """Go through the files of that layout."""
        return detect(root).walk(root)

    def list(self, root: Path) -> Listing:
        """List the photos of that layout.

        Raises:
            DataError: it is none of the known ones.
        """
        return detect(root).list(root)


def detect(root: Path) -> Layout:
    """Tell the layout of a folder: ABID when it has both of its folders, else bin folders.

    Raises:
        DataError: the root is no folder or holds neither.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder: give data.source a folder of bin photos.")
    names = {path.name for path in root.iterdir() if path.is_dir()}
    if {PHOTOS, METADATA} <= names:
        return Abid()
    if any(COUNT_NAME.fullmatch(name) or name.lower() in SPLIT_FOLDERS for name in names):
        return Folders()
    raise DataError(
        f"no bin photos in {root}: looked for {PHOTOS}/ beside {METADATA}/ (ABID), for folders named by "
        "counts (0/, 1/, ...) and for train/, valid/ and test/; give data.source the folder right above them."
    )
