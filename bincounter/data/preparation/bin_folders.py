"""A split data set as ``{train,valid,test}/<count>/<photo>``, with what the split is and what was left out.

Beside the photos lie ``quarantine.csv``, with what was left out and why, and ``split.csv``, which comes last, so that a
place that has one is whole. ``Folders`` takes the groups from it: who trains on what was prepared has the same split.
"""

import filecmp
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from bincounter.data.disk import full_disk_answered
from bincounter.data.layouts import walk
from bincounter.data.layouts.arrangement import Placed, named, place
from bincounter.data.layouts.prepared import SPLIT_FILE
from bincounter.data.preparation.destination import is_of_a_data_set, refuse_inside
from bincounter.data.quarantine import QUARANTINE_FILE, write_quarantine
from bincounter.data.records import BinRecord, Manifest
from bincounter.data.s3.address import is_remote
from bincounter.data.s3.upload import send
from bincounter.data.source import folder_of
from bincounter.data.splits import write_split
from bincounter.errors import DataError
from bincounter.files import replacing

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


def _fill(folder: Path, manifest: Manifest, photos: Mapping[str, BinRecord], tables: list[Path]) -> Placed:
    """Put photos and tables into a folder here."""
    refuse_inside(folder, manifest.root)
    expected = photos.keys() | {table.name for table in tables}
    strange = next((f.name for f in walk(folder) if is_of_a_data_set(f.name) and f.name not in expected), None)
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


def _is_same(table: Path, there: Path) -> bool:
    return there.is_file() and filecmp.cmp(table, there, shallow=False)
