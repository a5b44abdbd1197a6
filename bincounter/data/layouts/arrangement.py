"""From the ABID layout to bin folders."""

import os
import shutil
from contextlib import suppress
from pathlib import Path, PurePosixPath

from bincounter.data.disk import full_disk_answered
from bincounter.data.layouts.folders import Folders
from bincounter.data.records import Candidate, Listing
from bincounter.errors import DataError
from bincounter.progress import track


def arrange(listing: Listing, destination: Path, link: bool = True) -> None:
    """Arrange the photos of a listing as ``<destination>/<count>/<photo>``, which ``Folders`` reads.

    Each photo appears whole or not at all. Photos that are there already stay as they are, so that a call that was
    cut short can be repeated.

    Args:
        listing: of any layout.
        destination: folder of the arrangement, made when it is missing.
        link: hard links, which take no space, where the file system allows them; copies otherwise.

    Raises:
        DataError: two photos would have one name, or the destination holds photos the listing does not put there.
        ResourceError: the disk is full.
    """
    targets: dict[str, Candidate] = {}
    for photo in listing.candidates:
        name = PurePosixPath(photo.id).name.removesuffix(photo.file.path.suffix) + photo.file.path.suffix
        if targets.setdefault(f"{photo.count}/{name}", photo) is not photo:
            raise DataError(f"two photos of count {photo.count} are called {name}: rename one of them.")
    if destination.exists():
        strange = next((photo.id for photo in Folders().list(destination).candidates if photo.id not in targets), None)
        if strange is not None:
            raise DataError(f"{destination} holds other photos, such as {strange}: name an empty folder.")
    with full_disk_answered(destination):
        for count in {photo.count for photo in listing.candidates}:
            (destination / str(count)).mkdir(parents=True, exist_ok=True)
        for name, photo in track(targets.items(), "Arranging photos", len(targets)):
            _place(photo, destination / name, link)


def _place(photo: Candidate, target: Path, link: bool) -> None:
    if _is_there(photo.file.path, target):
        return
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    aside.unlink(missing_ok=True)
    try:
        if not (link and _linked(photo.file.path, aside)):
            shutil.copy2(photo.file.path, aside)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _is_there(source: Path, target: Path) -> bool:
    with suppress(FileNotFoundError):
        there, wanted = target.stat(), source.stat()
        return os.path.samestat(there, wanted) or (there.st_size, there.st_mtime_ns) == (
            wanted.st_size,
            wanted.st_mtime_ns,
        )
    return False


def _linked(source: Path, aside: Path) -> bool:
    """Make a hard link unless the file system, the device or the owner forbids it."""
    with suppress(OSError):
        aside.hardlink_to(source.resolve())
        return True
    return False
