"""Which photos of a source have a count that is wanted, before they are fetched."""

from collections.abc import Collection
from pathlib import Path

from bincounter.data.layouts.abid import METADATA, PHOTOS, read_metadata
from bincounter.data.layouts.base import COUNT_NAME
from bincounter.data.layouts.folders import SPLIT_FOLDERS
from bincounter.data.layouts.walking import Refused


class Chooser:
    """Tells by the name of an object whether it is wanted, and by its metadata where the name does not tell.

    Args:
        folder: of the local copy of the source.
        counts: the wanted ones.
    """

    def __init__(self, folder: Path, counts: Collection[int]) -> None:
        self._folder, self._counts = folder, frozenset(counts)

    def by_name(self, name: str) -> bool | None:
        """Whether the object is wanted; ``None`` for a photo whose metadata has to be here to tell.

        Args:
            name: of the object, relative to the source.
        """
        parts = name.split("/")
        if parts[0] == PHOTOS:
            return None
        if parts[0].lower() in SPLIT_FOLDERS:
            parts = parts[1:]
        if len(parts) > 1 and COUNT_NAME.fullmatch(parts[0]):
            return int(parts[0]) in self._counts
        return True

    def by_metadata(self, name: str) -> bool:
        """Whether a photo is wanted whose metadata was fetched; it is, where there is none that tells its count."""
        stem = name.rpartition("/")[2].rpartition(".")[0]
        try:
            count, _ = read_metadata(self._folder / METADATA / f"{stem}.json")
        except Refused:
            return True
        return count in self._counts
