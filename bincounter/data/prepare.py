"""``bincounter prepare``: a split data set as folders or shards, in a local folder or a bucket.

Beside the photos are ``quarantine.csv``, the rejected inputs with reasons, and ``split.csv``, which is written last, so
that a destination with a ``split.csv`` is complete. ``Folders`` reads the groups from it: training on prepared photos
gives the same split.
"""

import filecmp
import hashlib
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from bincounter.data.arrange import PlacedFiles, is_same_file, name_targets, other_files, place_files
from bincounter.data.layouts.base import PHOTO_SUFFIXES, is_photo_name, walk
from bincounter.data.layouts.folders import SPLIT_FILE
from bincounter.data.records import QUARANTINE_FILE, SPLITS, BinRecord, Manifest, lists_usable_inputs, write_quarantine
from bincounter.data.s3.address import is_remote, parse_address
from bincounter.data.s3.upload import Uploader, check_reachable, send
from bincounter.data.shards.index import INDEX_FILE, hold_same_photos, is_shard, read_index
from bincounter.data.shards.packing import pack_files
from bincounter.data.source import expand_folder
from bincounter.data.splits import write_split
from bincounter.errors import DataError
from bincounter.files import atomic_write, check_writable, lock_folder, translate_disk_full

log = logging.getLogger(__name__)

SIDES = ("train", "valid", "test")
"""Folder names of training, validation and test photos."""


def prepare_folders(
    manifest: Manifest, kept: np.ndarray, assignment: np.ndarray, destination: str, *, connections: int = 64
) -> PlacedFiles:
    """Write the photos of a split data set to ``destination``; only missing or changed files are sent or placed.

    Each photo is written atomically. An interrupted call is resumed by the same call.

    Args:
        manifest: of the source.
        kept: ``int[N]``, positions in ``manifest.records`` of the photos to prepare.
        assignment: ``int8[N]``, the side of each of them.
        destination: a folder or an ``s3://`` address that passed :func:`check_destination`.
        connections: number of concurrent uploads.

    Returns:
        The files that were missing or changed, tables included.

    Raises:
        DataError: a photo is part of a shard, the destination holds other photos, or it cannot be written.
        ResourceError: the disk, the network or the server failed.
    """
    photos = name_targets(
        (f"{SIDES[side]}/{manifest.records[position].count}", manifest.records[position])
        for position, side in zip(kept.tolist(), assignment.tolist(), strict=True)
    )
    with _tables(manifest, photos) as tables:
        if is_remote(destination):
            sent = send(
                ((photo.file.path, name) for name, photo in photos.items()),
                destination,
                last=[(table, table.name) for table in tables],
                refused=is_dataset_file,
                connections=connections,
            )
            return PlacedFiles(sent.sent, sent.bytes)
        return _fill(expand_folder(destination), manifest, photos, tables)


def prepare_shards(
    manifest: Manifest,
    kept: np.ndarray,
    assignment: np.ndarray,
    destination: str,
    *,
    cache_dir: Path,
    connections: int = 64,
) -> PlacedFiles:
    """Write the shards of a split data set to ``destination``, the index last.

    Args:
        manifest: of the source.
        kept: ``int[N]``, positions in ``manifest.records`` of the photos to prepare.
        assignment: ``int8[N]``, the side of each of them.
        destination: a folder or an ``s3://`` address that passed :func:`check_destination`.
        cache_dir: folder in which shards are packed before they are sent.
        connections: number of concurrent requests.

    Returns:
        The files that were missing, tables included.

    Raises:
        DataError: the destination holds other photos, or it cannot be written.
        ResourceError: the disk, the network or the server failed.
    """
    if is_remote(destination):
        return _send(manifest, kept, assignment, destination, cache_dir, connections)
    folder = expand_folder(destination)
    check_outside(folder, manifest.root)
    sizes = [path.stat().st_size for path in pack_files(manifest, kept, assignment, folder)]
    return PlacedFiles(len(sizes), sum(sizes))


def check_destination(destination: str, source: str | None) -> None:
    """Check that a destination can be written, before the photos are fetched.

    Args:
        destination: a folder, created if missing, or an ``s3://`` address; its bucket is listed.
        source: of the photos, ``data.source``.

    Raises:
        DataError: the destination is inside the source, cannot be written, or is not an address.
        ResourceError: the network or the server failed.
    """
    if is_remote(destination):
        bucket, prefix = parse_address(destination)
        if source and is_remote(source):
            source_bucket, source_prefix = parse_address(source)
            if bucket == source_bucket and f"{prefix}/".startswith(f"{source_prefix}/" if source_prefix else ""):
                raise _inside(destination, source)
        check_reachable(destination)
        return
    check_local(expand_folder(destination), source)


def check_local(folder: Path, source: str | None) -> None:
    """Check that a local folder can be filled with the photos of a source.

    Raises:
        UserError: it is inside the source, cannot be written, or is the address of a bucket.
    """
    if is_remote(str(folder)):
        raise DataError(f"{folder} is not a local folder: name one, or fill a bucket by prepare")
    if source and not is_remote(source):
        check_outside(folder, expand_folder(source))
    check_writable(folder, folder=True)


def is_dataset_file(name: str) -> bool:
    """Return True if a file of this name is part of a data set: a photo, a shard, a split or an index."""
    return name in (SPLIT_FILE, INDEX_FILE) or is_photo_name(name, PHOTO_SUFFIXES | {".tar"})


def check_outside(folder: Path, source: Path) -> None:
    """Raise :class:`DataError` if a folder is the source or inside it."""
    if folder.resolve().is_relative_to(source.resolve()):
        raise _inside(str(folder), str(source))


def _inside(destination: str, source: str) -> DataError:
    return DataError(
        f"{destination} is inside the source {source}, which would then hold each photo twice: name another"
    )


def _fill(folder: Path, manifest: Manifest, photos: Mapping[str, BinRecord], tables: list[Path]) -> PlacedFiles:
    """Place photos and tables in a local folder."""
    check_outside(folder, manifest.root)
    expected = photos.keys() | {table.name for table in tables}
    strange = [file.name for file in walk(folder) if is_dataset_file(file.name) and file.name not in expected]
    if strange:
        # New photos change the split; photos that moved to another side are still in the source.
        sources = {name.partition("/")[2]: photo.file.path for name, photo in photos.items()}
        moved = (
            (source := sources.get(name.partition("/")[2])) and is_same_file(source, folder / name) for name in strange
        )
        if not (lists_usable_inputs(folder / QUARANTINE_FILE, manifest) and all(moved)):
            raise DataError(f"{folder} holds other photos, such as {strange[0]}: name an empty folder")
    replaced = other_files(photos, folder)
    if replaced:
        there = sum((folder / name).exists() for name in photos)
        prepared = any((folder / table.name).is_file() for table in tables)
        if not prepared or 2 * len(replaced) > there:
            raise DataError(f"{folder} holds other photos, such as {replaced[0]}: name an empty folder")
        log.info("%d of %d photos in %s have other content, and are replaced", len(replaced), there, folder)

    def differs(table: Path) -> bool:
        old = folder / table.name
        return not (old.is_file() and filecmp.cmp(table, old, shallow=False))

    if replaced or any(map(differs, tables)):
        # Outdated as soon as the first photo is placed. The old quarantine.csv stays, as it shows a later call that the
        # folder was prepared.
        (folder / SPLIT_FILE).unlink(missing_ok=True)
    for name in strange:
        (folder / name).unlink()
    changed = [table for table in tables if differs(table)]
    files, size = place_files({name: photo.file for name, photo in photos.items()}, folder)
    with translate_disk_full(folder):
        for table in changed:
            with table.open("rb") as content, atomic_write(folder / table.name, "wb") as file:
                shutil.copyfileobj(content, file)
    return PlacedFiles(files + len(changed), size + sum(table.stat().st_size for table in changed))


@contextmanager
def _tables(manifest: Manifest, photos: Mapping[str, BinRecord]) -> Iterator[list[Path]]:
    """Write quarantine.csv and split.csv, in this order, to a temporary folder."""
    names = sorted(photos)
    with tempfile.TemporaryDirectory(prefix="bincounter-") as folder, translate_disk_full(Path(folder)):
        quarantine, split = Path(folder, QUARANTINE_FILE), Path(folder, SPLIT_FILE)
        write_quarantine(quarantine, manifest.refusals)
        sides = np.array([SIDES.index(name.partition("/")[0]) for name in names], np.int8)
        write_split(split, [replace(photos[name], id=name) for name in names], sides)
        yield [quarantine, split]


def _send(
    manifest: Manifest, kept: np.ndarray, assignment: np.ndarray, uri: str, cache_dir: Path, connections: int
) -> PlacedFiles:
    here = cache_dir / "packed" / hashlib.sha256(uri.encode()).hexdigest()[:16]
    with (
        lock_folder(here),
        Uploader(uri, connections=connections) as outbox,
    ):  # a process that waited finds the shards sent
        outbox.look()
        outbox.refuse_others(lambda name: is_dataset_file(name) and not is_shard(name) and name != INDEX_FILE)
        if outbox.size_of(INDEX_FILE) is not None and _holds(outbox, uri, manifest, kept, assignment):
            return _send_list(outbox, uri, manifest)
        return _pack_and_send(outbox, uri, here / "shards", manifest, kept, assignment)


def _pack_and_send(
    outbox: Uploader, uri: str, folder: Path, manifest: Manifest, kept: np.ndarray, assignment: np.ndarray
) -> PlacedFiles:
    files = size = 0
    names: set[str] = set()
    if (folder / INDEX_FILE).exists():  # of a call that was interrupted after its shards were deleted
        shutil.rmtree(folder)
    for path in pack_files(manifest, kept, assignment, folder):
        names.add(path.name)
        if path.name == INDEX_FILE:  # tools that read every file named like a shard would read the others, too
            outbox.refuse_others(lambda name: is_shard(name) and name not in names)
        outbox.load([(path, path.name)])
        sent = outbox.send(f"Sending {path.name} to {uri}")
        files, size = files + sent.sent, size + sent.bytes
        if is_shard(path.name):
            path.unlink()
    shutil.rmtree(folder)
    return PlacedFiles(files, size)


def _send_list(outbox: Uploader, uri: str, manifest: Manifest) -> PlacedFiles:
    """Send quarantine.csv, which the index does not cover, if it is missing or different."""
    with tempfile.TemporaryDirectory(prefix="bincounter-") as folder:
        path = Path(folder, QUARANTINE_FILE)
        write_quarantine(path, manifest.refusals)
        outbox.load([(path, path.name)])
        sent = outbox.send(f"Sending {path.name} to {uri}")
    return PlacedFiles(sent.sent, sent.bytes)


def _holds(outbox: Uploader, uri: str, manifest: Manifest, kept: np.ndarray, assignment: np.ndarray) -> bool:
    """Return True if the bucket holds all shards of these photos; raises :class:`DataError` for other shards."""
    with tempfile.TemporaryDirectory(prefix="bincounter-") as copy:
        outbox.fetch(INDEX_FILE, Path(copy, INDEX_FILE))
        try:
            index = read_index(Path(copy), lambda _: sys.maxsize)
        except DataError as error:
            raise DataError(
                f"{uri} holds an {INDEX_FILE} that is corrupt or of another version: name an empty folder of the bucket"
            ) from error
        if not hold_same_photos(index, manifest, kept, [SPLITS[side] for side in assignment]):
            raise DataError(f"{uri} holds shards of other photos or another split: name an empty folder of the bucket")
        try:
            read_index(Path(copy), outbox.size_of)
        except DataError as error:
            log.warning("%s: sending the missing files again", error)
            return False
    return True
