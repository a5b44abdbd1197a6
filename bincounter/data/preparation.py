"""A data set, split: ``{train,valid,test}/<count>/<photo>`` in a folder or a bucket, and what the split is.

Beside the photos lie ``quarantine.csv``, with what was left out and why, and ``split.csv``, which comes last, so that a
place that has one is whole. ``Folders`` takes the groups from it: who trains on what was prepared has the same split.
"""

import csv
import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from bincounter.data.disk import full_disk_answered
from bincounter.data.layouts import PHOTO_SUFFIXES, walk
from bincounter.data.layouts.arrangement import named, place
from bincounter.data.records import BinRecord, Manifest
from bincounter.data.s3.address import is_remote, parse
from bincounter.data.s3.upload import reach, send
from bincounter.data.splits import write_split
from bincounter.errors import DataError
from bincounter.files import replacing

SIDES = ("train", "valid", "test")
"""Folders of training, validation and test photos."""


@dataclass(frozen=True)
class Prepared:
    """What a preparation did.

    Attributes:
        photos: of each of :data:`SIDES`.
        files: those that were not there yet, tables included.
        bytes: of those.
    """

    photos: Mapping[str, int]
    files: int
    bytes: int


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
    folder = _folder(destination)
    if source and not is_remote(source):
        _refuse_inside(folder, _folder(source))
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: name a folder to make")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = (error.strerror or type(error).__name__).lower()
        raise DataError(f"{folder} cannot be made ({why}): name a folder that you may write to") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{folder} cannot be written: name a folder that you may write to")


def prepare_folders(
    manifest: Manifest, kept: np.ndarray, assignment: np.ndarray, destination: str, *, connections: int = 64
) -> Prepared:
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
                refused=_is_of_a_data_set,
                connections=connections,
            )
            files, size = sent.sent, sent.bytes
        else:
            files, size = _fill(_folder(destination), manifest, photos, tables)
    sides = np.bincount(assignment, minlength=len(SIDES)).tolist()
    return Prepared(dict(zip(SIDES, sides, strict=True)), files, size)


def _fill(folder: Path, manifest: Manifest, photos: Mapping[str, BinRecord], tables: list[Path]) -> tuple[int, int]:
    """Put photos and tables into a folder here; returns how many files were not there yet, and their bytes."""
    _refuse_inside(folder, manifest.root)
    expected = photos.keys() | {table.name for table in tables}
    strange = next((f.name for f in walk(folder) if _is_of_a_data_set(f.name) and f.name not in expected), None)
    if strange is not None:
        raise DataError(f"{folder} holds other photos, such as {strange}: name an empty folder")
    changed = [table for table in tables if not _is_same(table, folder / table.name)]
    for table in changed:
        (folder / table.name).unlink(missing_ok=True)  # what it tells is true no more once the first photo is there
    files, size = place({name: photo.file for name, photo in photos.items()}, folder)
    with full_disk_answered(folder):
        for table in changed:
            with table.open("rb") as content, replacing(folder / table.name, "wb") as file:
                shutil.copyfileobj(content, file)
    return files + len(changed), size + sum(table.stat().st_size for table in changed)


@contextmanager
def _tables(manifest: Manifest, photos: Mapping[str, BinRecord]) -> Iterator[list[Path]]:
    """Write quarantine and split into a folder that goes away; the split is the last of them."""
    names = sorted(photos)
    with tempfile.TemporaryDirectory(prefix="bincounter-") as folder, full_disk_answered(Path(folder)):
        quarantine, split = Path(folder, "quarantine.csv"), Path(folder, "split.csv")
        with quarantine.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["path", "reason"])
            writer.writerows([refusal.path, refusal.reason] for refusal in manifest.refusals)
        sides = np.array([SIDES.index(name.partition("/")[0]) for name in names], np.int8)
        write_split(split, [replace(photos[name], id=name) for name in names], sides)
        yield [quarantine, split]


def _is_of_a_data_set(name: str) -> bool:
    """Whether a file would be read, or tell what is read, by who trains on the folder."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and (path.suffix.lower() in PHOTO_SUFFIXES | {".tar"} or name in ("split.csv", "index.csv"))


def _is_same(table: Path, there: Path) -> bool:
    return there.is_file() and filecmp.cmp(table, there, shallow=False)


def _folder(path: str) -> Path:
    return Path(path).expanduser()


def _refuse_inside(folder: Path, source: Path) -> None:
    if folder.resolve().is_relative_to(source.resolve()):
        raise _inside(str(folder), str(source))


def _inside(destination: str, source: str) -> DataError:
    return DataError(f"{destination} lies in the source {source}, which would then hold each photo twice: name another")
