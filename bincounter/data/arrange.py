"""Arrange photos of any layout as bin folders, by hard links or copies."""

import filecmp
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from bincounter.data.layouts.folders import Folders
from bincounter.data.records import BinRecord, Candidate, Listing, PhotoFile
from bincounter.errors import DataError
from bincounter.files import place, translate_disk_full
from bincounter.progress import track

Photo = TypeVar("Photo", BinRecord, Candidate)


class PlacedFiles(NamedTuple):
    """Result of placing files.

    Attributes:
        files: number of files that were missing and are now placed.
        bytes: their total size.
    """

    files: int
    bytes: int


def arrange(listing: Listing, destination: Path) -> PlacedFiles:
    """Arrange the photos of a listing as ``<destination>/<count>/<photo>``, which ``Folders`` reads.

    Each photo is placed atomically. Existing photos are kept, so that an interrupted call can be repeated.

    Args:
        listing: of any layout.
        destination: folder of the arrangement, created if missing.

    Returns:
        The files that were missing.

    Raises:
        DataError: a photo is part of a shard, or the destination holds other photos, also under the same names.
        ResourceError: the disk is full.
    """
    targets = name_targets((str(photo.count), photo) for photo in listing.candidates)
    if destination.exists():
        strange = [photo.id for photo in Folders().list(destination).candidates if photo.id not in targets]
        strange = strange or other_files(targets, destination)
        if strange:
            raise DataError(f"{destination} holds other photos, such as {strange[0]}: name an empty folder.")
    return place_files({name: photo.file for name, photo in targets.items()}, destination)


def other_files(targets: Mapping[str, Photo], destination: Path) -> list[str]:
    """Names under which a folder holds files of another content than the photos to be placed there."""
    return [
        name
        for name, photo in targets.items()
        if (target := destination / name).exists()
        and not is_same_file(photo.file.path, target)
        and not filecmp.cmp(photo.file.path, target, shallow=False)
    ]


def name_targets(photos: Iterable[tuple[str, Photo]]) -> dict[str, Photo]:
    """Name photos ``<folder>/<photo>``: the last part of the id, with the suffix of the file.

    Photos that would share a name, such as photos numbered separately in each split, get the first folder of their id
    as a prefix, ``1/train-0000.jpg``, or the whole id, or a number. The names depend on the photos and their order.

    Args:
        photos: pairs of folder and photo.

    Raises:
        DataError: a photo is part of a shard.
    """
    named: dict[str, list[Photo]] = {}
    for folder, photo in photos:
        if photo.file.size is not None:
            raise DataError(f"{photo.file.name} is part of a shard: use the source that the shards were packed from")
        ending = photo.file.path.suffix
        name = f"{PurePosixPath(photo.id).name.removesuffix(ending)}{ending}"
        named.setdefault(f"{folder}/{name}", []).append(photo)
    targets = {name: same[0] for name, same in named.items() if len(same) == 1}
    for name, same in named.items():
        for photo in same if len(same) > 1 else ():
            longer = _longer_names(name, photo.id)
            targets[next(each for each in longer if each not in named and each not in targets)] = photo
    return targets


def _longer_names(name: str, photo_id: str) -> Iterator[str]:
    """Yield alternative names of a photo that shares its name with others."""
    folder, _, last = name.rpartition("/")
    above = PurePosixPath(photo_id).parts[:-1]
    if above:
        yield f"{folder}/{above[0]}-{last}"
        yield f"{folder}/{'-'.join(above)}-{last}"
    yield from (f"{folder}/{number}-{last}" for number in count(2))


def place_files(targets: Mapping[str, PhotoFile], destination: Path) -> PlacedFiles:
    """Place the files that are missing in a folder, each one atomically.

    Args:
        targets: name in the folder -> file of a single photo.
        destination: the folder, created if missing.

    Raises:
        ResourceError: the disk is full.
    """
    files = size = 0
    with translate_disk_full(destination):
        for folder in {name.rpartition("/")[0] for name in targets}:
            (destination / folder).mkdir(parents=True, exist_ok=True)
        for name, file in track(targets.items(), "Arranging photos", len(targets)):
            target = destination / name
            if not is_same_file(file.path, target):
                place(file.path, target)
                files += 1
                size += target.stat().st_size
    return PlacedFiles(files, size)


def is_same_file(source: Path, target: Path) -> bool:
    """Return True if a placed file is a link to its source, or has its size and time of modification."""
    with suppress(FileNotFoundError):
        old, new = target.stat(), source.stat()
        return os.path.samestat(old, new) or (old.st_size, old.st_mtime_ns) == (new.st_size, new.st_mtime_ns)
    return False
