"""The demo bins as a data source that makes its own photos."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bincounter.data.demo.rendering import render
from bincounter.data.layouts import Folders, Found
from bincounter.data.records import Listing


@dataclass(frozen=True)
class DemoBins:
    """Rendered bins in bin folders; ``make`` is what tells a layout that needs no ``data.source``.

    Args:
        photos: how many.
        size: width and height in pixels.
        seed: of all scenes.
    """

    photos: int = 3000
    size: int = 128
    seed: int = 0

    def make(self, data_dir: Path) -> Path:
        """Render the photos, unless they are there; returns their folder."""
        folder = data_dir / f"demo-{self.photos}-{self.size}-{self.seed}"
        return render(folder, photos=self.photos, size=self.size, seed=self.seed)

    def walk(self, root: Path) -> Iterator[Found]:
        """As :class:`Folders`."""
        return Folders().walk(root)

    def list(self, root: Path) -> Listing:
        """As :class:`Folders`."""
        return Folders().list(root)
