"""Layouts of photos in a folder; their ``_target_`` names are data of old runs. ``Detected`` picks one."""

from dataclasses import dataclass
from pathlib import Path

from bincounter.data.layouts.abid import METADATA, PHOTOS, Abid
from bincounter.data.layouts.base import COUNT_NAME
from bincounter.data.layouts.folders import SPLIT_FOLDERS, Folders
from bincounter.data.shards.index import INDEX_FILE, Shards, is_index, is_shard
from bincounter.errors import DataError

__all__ = ["Abid", "Detected", "Folders", "Shards", "detect"]


@dataclass(frozen=True)
class Detected:
    """Layout that is detected from the root by :func:`detect`."""


def detect(root: Path) -> Abid | Folders | Shards:
    """Detect the layout of a folder: shards by their index, ABID by its two folders, else bin folders.

    Raises:
        DataError: the root is not a folder or has none of these layouts.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: set data.source to a folder of bin photos.")
    if is_index(root / INDEX_FILE):
        return Shards()
    try:
        entries = list(root.iterdir())
    except OSError as error:
        raise DataError(f"{root} cannot be read ({error.strerror}): make it readable") from error
    names = {path.name for path in entries if path.is_dir()}
    if {PHOTOS, METADATA} <= names:
        return Abid()
    if any(COUNT_NAME.fullmatch(name) or name.lower() in SPLIT_FOLDERS for name in names):
        return Folders()
    if any(is_shard(path.name) for path in entries):
        raise DataError(
            f"{root} holds shards, but no {INDEX_FILE}, which locates the photos in them: restore it, or pack the "
            "photos again"
        )
    raise DataError(
        f"No bin photos in {root}: looked for {PHOTOS}/ beside {METADATA}/ (ABID), for folders named by "
        f"counts (0/, 1/, ...), for train/, valid/ and test/, and for the {INDEX_FILE} of shards; set data.source to "
        "the folder right above them."
    )
