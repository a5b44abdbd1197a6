"""Where the bytes of a photo lie, and how they are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PhotoFile:
    """A file, or the part of one, that holds the bytes of one photo.

    Attributes:
        path: a local file.
        offset: of the photo's first byte in it.
        size: in bytes; ``None`` for all of the file.
    """

    path: Path
    offset: int = 0
    size: int | None = None

    @property
    def name(self) -> str:
        """The file, and the place in it where it holds more than the photo."""
        return str(self.path) if self.size is None else f"{self.path} at byte {self.offset}"


def read_photos(files: Sequence[PhotoFile]) -> list[bytes]:
    """Read the bytes of photos, in the order asked for.

    Raises:
        OSError: a file cannot be read.
    """
    return [file.path.read_bytes() for file in files]
