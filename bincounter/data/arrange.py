"""Photos of any layout as bin folders: hard links or copies of their files."""

import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from bincounter.data.layouts.folders import Folders
from bincounter.data.records import BinRecord, Candidate, Listing, PhotoFile
from bincounter.errors import DataError
from bincounter.files import full_disk_answered
from bincounter.progress import track

Photo = TypeVar("Photo", BinRecord, Candidate)


class Placed(NamedTuple):
    """What was put into a folder.

    Attributes:
        files: how many were not there yet.
        bytes: of those.
    """

    files: int
    bytes: int


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
    targets = named((str(photo.count), photo) for photo in listing.candidates)
    if destination.exists():
        strange = next((photo.id for photo in Folders().list(destination).candidates if photo.id not in targets), None)
        if strange is not None:
            raise DataError(f"{destination} holds other photos, such as {strange}: name an empty folder.")
    place({name: photo.file for name, photo in targets.items()}, destination, link=link)


def named(photos: Iterable[tuple[str, Photo]]) -> dict[str, Photo]:
    """Name photos ``<folder>/<photo>``: by the last part of their ids, with their files' endings.

    Args:
        photos: each behind the folder it belongs into.

    Raises:
        DataError: two photos would have one name, or a photo lies in a shard, whose file holds others, too.
    """
    targets: dict[str, Photo] = {}
    for folder, photo in photos:
        if photo.file.size is not None:
            raise DataError(
                f"{photo.file.name} is no file of its own: name the source that the shards were packed from"
            )
        ending = photo.file.path.suffix
        name = f"{folder}/{PurePosixPath(photo.id).name.removesuffix(ending)}{ending}"
        if targets.setdefault(name, photo) is not photo:
            raise DataError(f"{targets[name].file.name} and {photo.file.name} would both be {name}: rename one of them")
    return targets


def place(targets: Mapping[str, PhotoFile], destination: Path, *, link: bool = True) -> Placed:
    """Put files into a folder, those that are not there; each appears whole or not at all.

    Args:
        targets: files, each whole, by their names in the folder.
        destination: the folder, made when it is missing.
        link: hard links, which take no space, where the file system allows them; copies otherwise.

    Raises:
        ResourceError: the disk is full.
    """
    files = size = 0
    with full_disk_answered(destination):
        for folder in {name.rpartition("/")[0] for name in targets}:
            (destination / folder).mkdir(parents=True, exist_ok=True)
        for name, file in track(targets.items(), "Arranging photos", len(targets)):
            target = destination / name
            if not _is_there(file.path, target):
                _put(file.path, target, link)
                files += 1
                size += target.stat().st_size
    return Placed(files, size)


def _put(source: Path, target: Path, link: bool) -> None:
    aside = target.with_name(f".{os.getpid()}.part")
    aside.unlink(missing_ok=True)
    try:
        if not (link and _linked(source, aside)):
            shutil.copy2(source, aside)
            with aside.open("rb") as file:
                os.fsync(file.fileno())  # before it gets its name: a power cut shall not leave it empty
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
