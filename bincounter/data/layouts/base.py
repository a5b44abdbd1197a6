"""What a layout is: how photos and their labels lie on disk."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from bincounter.data.layouts.walking import Found
from bincounter.data.records import Listing, Manifest

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
"""Endings of photo files, in lower case; any case is read."""

LARGEST_COUNT = 999_999
"""More items than any bin holds: a larger label is a mistake."""

COUNT_NAME = re.compile(r"[0-9]{1,6}")
"""Names of folders that are counts, up to :data:`LARGEST_COUNT`."""


class Layout(Protocol):
    """How a data source lies on disk; its ``repr`` holds all its settings, since scans are kept under it.

    To bring another one, write these two methods and name the class as ``data.layout._target_``.
    """

    def walk(self, root: Path) -> Iterator[Found]:
        """Go through every file whose change could change the listing or a photo, opening none."""

    def list(self, root: Path) -> Listing:
        """List the photos with their labels, opening none of them.

        Raises:
            DataError: the root holds nothing of this layout.
        """


@runtime_checkable
class KnownLayout(Protocol):
    """A layout that knows of each photo what reading it would tell, so that a scan opens none."""

    def manifest(self, root: Path) -> Manifest:
        """Tell what is known of the photos.

        Raises:
            DataError: the root holds nothing of this layout, or is damaged.
        """
