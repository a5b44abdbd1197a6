"""``bincounter prepare``: a split data set as folders or shards, here or in a bucket.

Beside the photos lie ``quarantine.csv``, with what was left out and why, and ``split.csv``, which comes last, so that a
place that has one is whole. ``Folders`` takes the groups from it: who trains on what was prepared has the same split.
"""

import filecmp
import hashlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from bincounter.data.arrange import Placed, named, place
from bincounter.data.layouts.base import PHOTO_SUFFIXES, walk
from bincounter.data.layouts.folders import SPLIT_FILE
from bincounter.data.records import QUARANTINE_FILE, SPLITS, BinRecord, Manifest, write_quarantine
from bincounter.data.s3.address import is_remote, parse
from bincounter.data.s3.upload import Outbox, reach, send
from bincounter.data.shards.index import INDEX_FILE, are_shards_of, is_shard, read_index
from bincounter.data.shards.packing import pack_files
from bincounter.data.source import folder_of
from bincounter.data.splits import write_split
from bincounter.errors import DataError
from bincounter.files import full_disk_answered, one_at_a_time, replacing

log = logging.getLogger(__name__)

SIDES = ("train", "valid", "test")
"""Folders of training, validation and test photos."""


def prepare_folders(
    manifest: Manifest, kept: np.ndarray, assignment: np.ndarray, destination: str, *, connections: int = 64
) -> Placed:
    """Make ``destination`` hold the photos of a split data set, and send or place only what is not there.

    Photos appear whole or not at all. A call that was cut short is gone on with by the same call.

    Args:
        manifest: of the source.
        kept: ``int[N]``, positions in ``manifest.records`` of the photos to prepare.
        assignment: ``int8[N]``, the side of each of them.
        destination: a folder or an ``s3://`` address that :func:`check_destination` let pass.
        connections: files sent at a time.

    Raises:
        DataError: two photos would have one name, the destination holds other photos, or it cannot be written.
        ResourceError: disk, network or server gave out.

    Returns:
        what was not there yet, tables included.
    """
    photos = named(
        (f"{SIDES[side]}/{manifest.records[position].count}", manifest.records[position])
        for position, side in zip(kept.tolist(), assignment.tolist(), strict=True)
    )
    with _tables(manifest, photos) as tables:
        if is_remote(destination):
            sent = send(
                ((photo.file.path, name) for name, photo in photos.items()),
                destination,
                last=[(table, table.name) for table in tables],
                refused=is_of_a_data_set,
                connections=connections,
            )
            return Placed(sent.sent, sent.bytes)
        return _fill(folder_of(destination), manifest, photos, tables)


def prepare_shards(
    manifest: Manifest,
    kept: np.ndarray,
    assignment: np.ndarray,
    destination: str,
    *,
    cache_dir: Path,
    connections: int = 64,
) -> Placed:
    """Make ``destination`` hold the shards of a split data set, whose index comes last.

    Args:
        manifest: of the source.
        kept: ``int[N]``, positions in ``manifest.records`` of the photos to prepare.
        assignment: ``int8[N]``, the side of each of them.
        destination: a folder or an ``s3://`` address that ``check_destination`` let pass.
        cache_dir: where shards are packed before they are sent.
        connections: requests at a time.

    Returns:
        what was not there yet, tables included.

    Raises:
        DataError: the destination holds other photos, or it cannot be written.
        ResourceError: disk, network or server gave out.
    """
    if is_remote(destination):
        return _send(manifest, kept, assignment, destination, cache_dir, connections)
    folder = folder_of(destination)
    refuse_inside(folder, manifest.root)
    sizes = [path.stat().st_size for path in pack_files(manifest, kept, assignment, folder)]
    return Placed(len(sizes), sum(sizes))


def check_destination(destination: str, source: str | None) -> None:
    """Refuse a place that cannot be prepared, before hours go into fetching what should go there.

    Args:
        destination: a folder, which is made when it is missing, or an ``s3://`` address, whose bucket is asked.
        source: of the photos, ``data.source``.

    Raises:
        DataError: it is in the source, cannot be written, or is no address.
        ResourceError: the network or the server gave out.
    """
    if is_remote(destination):
        bucket, prefix = parse(destination)
        if source and is_remote(source):
            source_bucket, source_prefix = parse(source)
            if bucket == source_bucket and f"{prefix}/".startswith(f"{source_prefix}/" if source_prefix else ""):
                raise _inside(destination, source)
        reach(destination)
        return
    folder = folder_of(destination)
    if source and not is_remote(source):
        refuse_inside(folder, folder_of(source))
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: name a folder to make")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = (error.strerror or type(error).__name__).lower()
        raise DataError(f"{folder} cannot be made ({why}): name a folder that you may write to") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{folder} cannot be written: name a folder that you may write to")


def is_of_a_data_set(name: str) -> bool:
    """Whether a file, by its name in the folder, is read by who trains on the folder, or tells what is."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and (path.suffix.lower() in PHOTO_SUFFIXES | {".tar"} or name in (SPLIT_FILE, INDEX_FILE))


def refuse_inside(folder: Path, source: Path) -> None:
    """Raise :class:`DataError` if a folder is the source or lies in it."""
    if folder.resolve().is_relative_to(source.resolve()):
        raise _inside(str(folder), str(source))


def _inside(destination: str, source: str) -> DataError:
    return DataError(f"{destination} lies in the source {source}, which would then hold each photo twice: name another")


def _fill(folder: Path, manifest: Manifest, photos: Mapping[str, BinRecord], tables: list[Path]) -> Placed:
    """Put photos and tables into a folder here."""
    refuse_inside(folder, manifest.root)
    expected = photos.keys() | {table.name for table in tables}
    strange = next((f.name for f in walk(folder) if is_of_a_data_set(f.name) and f.name not in expected), None)
    if strange is not None:
        raise DataError(f"{folder} holds other photos, such as {strange}: name an empty folder")
    kept = {path for path in tables if (folder / path.name).is_file() and filecmp.cmp(path, folder / path.name, False)}
    changed = [table for table in tables if table not in kept]
    for table in changed:
        (folder / table.name).unlink(missing_ok=True)  # what it tells is true no more once the first photo is there
    files, size = place({name: photo.file for name, photo in photos.items()}, folder)
    with full_disk_answered(folder):
        for table in changed:
            with table.open("rb") as content, replacing(folder / table.name, "wb") as file:
                shutil.copyfileobj(content, file)
    return Placed(files + len(changed), size + sum(table.stat().st_size for table in changed))


@contextmanager
def _tables(manifest: Manifest, photos: Mapping[str, BinRecord]) -> Iterator[list[Path]]:
    """Write quarantine and split into a folder that goes away; the split is the last of them."""
    names = sorted(photos)
    with tempfile.TemporaryDirectory(prefix="bincounter-") as folder, full_disk_answered(Path(folder)):
        quarantine, split = Path(folder, QUARANTINE_FILE), Path(folder, SPLIT_FILE)
        write_quarantine(quarantine, manifest.refusals)
        sides = np.array([SIDES.index(name.partition("/")[0]) for name in names], np.int8)
        write_split(split, [replace(photos[name], id=name) for name in names], sides)
        yield [quarantine, split]


def _send(
    manifest: Manifest, kept: np.ndarray, assignment: np.ndarray, uri: str, cache_dir: Path, connections: int
) -> Placed:
    here = cache_dir / "packed" / hashlib.sha256(uri.encode()).hexdigest()[:16]
    with one_at_a_time(here), Outbox(uri, connections=connections) as outbox:  # who had to wait finds the work done
        outbox.look()
        outbox.refuse_others(lambda name: is_of_a_data_set(name) and not is_shard(name) and name != INDEX_FILE)
        if outbox.size_of(INDEX_FILE) is not None and _holds(outbox, uri, manifest, kept, assignment):
            return _send_list(outbox, uri, manifest)
        return _pack_and_send(outbox, uri, here / "shards", manifest, kept, assignment)


def _pack_and_send(
    outbox: Outbox, uri: str, folder: Path, manifest: Manifest, kept: np.ndarray, assignment: np.ndarray
) -> Placed:
    files = size = 0
    names: set[str] = set()
    if (folder / INDEX_FILE).exists():  # of a call that was cut short when its shards were gone already
        shutil.rmtree(folder)
    for path in pack_files(manifest, kept, assignment, folder):
        names.add(path.name)
        if path.name == INDEX_FILE:  # tools that read whatever is called like a shard would meet the others, too
            outbox.refuse_others(lambda name: is_shard(name) and name not in names)
        outbox.load([(path, path.name)])
        sent = outbox.send(f"Sending {path.name} to {uri}")
        files, size = files + sent.sent, size + sent.bytes
        if is_shard(path.name):
            path.unlink()
    shutil.rmtree(folder)
    return Placed(files, size)


def _send_list(outbox: Outbox, uri: str, manifest: Manifest) -> Placed:
    """Send the quarantine list, which the shards do not tell of, if it is missing or another."""
    with tempfile.TemporaryDirectory(prefix="bincounter-") as folder:
        path = Path(folder, QUARANTINE_FILE)
        write_quarantine(path, manifest.refusals)
        outbox.load([(path, path.name)])
        sent = outbox.send(f"Sending {path.name} to {uri}")
    return Placed(sent.sent, sent.bytes)


def _holds(outbox: Outbox, uri: str, manifest: Manifest, kept: np.ndarray, assignment: np.ndarray) -> bool:
    """Whether all shards of these photos are there; raises :class:`DataError` if they are of others."""
    with tempfile.TemporaryDirectory(prefix="bincounter-") as copy:
        outbox.fetch(INDEX_FILE, Path(copy, INDEX_FILE))
        try:
            there = read_index(Path(copy), lambda _: sys.maxsize)
        except DataError as error:
            raise DataError(
                f"{uri} holds an {INDEX_FILE} that is damaged or of another version: name an empty folder of the bucket"
            ) from error
        if not are_shards_of(there, manifest, kept, [SPLITS[side] for side in assignment]):
            raise DataError(f"{uri} holds shards of other photos or another split: name an empty folder of the bucket")
        try:
            read_index(Path(copy), outbox.size_of)
        except DataError as error:
            log.warning("%s: sending again what is missing", error)
            return False
    return True
