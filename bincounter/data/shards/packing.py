"""Packing of photos into tar shards: resumable, with the same bytes each time."""

import hashlib
import io
import json
import logging
import re
import tarfile
from collections.abc import Generator, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from bincounter.data.photos import photo_suffix, read_ahead
from bincounter.data.records import (
    QUARANTINE_FILE,
    SPLITS,
    Manifest,
    lists_usable_inputs,
    read_quarantine,
    write_quarantine,
)
from bincounter.data.shards.index import INDEX_FILE, Place, Shards, hold_same_photos, is_shard, shard_name, write_index
from bincounter.errors import DataError
from bincounter.files import atomic_write, lock_folder, translate_disk_full
from bincounter.progress import track

log = logging.getLogger(__name__)

SHARD_BYTES = 100_000_000
"""Size of a shard: large enough that a thousand of them hold all of ABID, small enough to be copied again."""

JOURNAL = ".packing"
"""Name of the file that lists the finished shards while a folder is packed."""

_READERS = 8  # threads that read photos of a file each
_PART = re.compile(r"\..*\.part")


def pack_files(
    manifest: Manifest,
    kept: np.ndarray,
    assignment: np.ndarray | None,
    folder: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> Generator[Path, None, None]:
    """Pack photos into shards; the index is written last, so that a folder which has one is complete.

    The same call resumes an interrupted one. After a complete one it does nothing, unless rejected photos have become
    usable: then all photos are packed again.

    Args:
        manifest: of the source.
        kept: ``int[N]``, positions in ``manifest.records`` of the photos to pack, ascending.
        assignment: ``int8[N]``, their splits as positions in ``SPLITS``; ``None`` for those that the source fixes.
        folder: of the shards, created if missing.
        shard_bytes: size above which a shard gets no further photo.

    Yields:
        each file as soon as it is finished: the shards, the quarantine list and, last, the index.

    Raises:
        DataError: the folder holds other files, or a photo was changed or lost since it was scanned.
        ResourceError: the disk is full.
    """
    sides = [manifest.given_splits[i] for i in kept] if assignment is None else [SPLITS[side] for side in assignment]
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder), translate_disk_full(folder):
        packing = _Packing(manifest, kept, sides, folder, shard_bytes)
        if (folder / INDEX_FILE).exists() and packing.is_done():
            log.info("%s holds these photos already", folder)
            yield from packing.update_quarantine()
        else:
            yield from packing.pack()


class _Packing:
    """Packing of one set of photos into one folder."""

    def __init__(
        self, manifest: Manifest, kept: np.ndarray, sides: Sequence[str | None], folder: Path, shard_bytes: int
    ) -> None:
        self._manifest, self._kept, self._sides = manifest, kept, sides
        self._folder, self._shard_bytes = folder, shard_bytes
        self._records = [manifest.records[i] for i in kept]
        # Shuffled, so that a sequential reader sees all counts from the beginning.
        order = sorted(range(len(kept)), key=lambda i: hashlib.blake2b(self._records[i].id.encode()).digest())
        self._order = np.array(order, np.int64)

    def is_done(self) -> bool:
        """Return True if a complete folder holds the photos to pack; ``False`` if it lacks new ones.

        Raises:
            DataError: it is damaged, or holds others.
        """
        try:
            there = Shards().manifest(self._folder)
        except DataError as error:
            raise DataError(f"{self._folder} holds damaged shards ({error}): name an empty folder") from error
        if hold_same_photos(there, self._manifest, self._kept, self._sides):
            return True
        photos = zip(self._records, self._manifest.content[self._kept].tolist(), strict=True)
        ours = {(record.id, record.count, content) for record, content in photos}
        photos = zip(there.records, there.content.tolist(), strict=True)
        lost = {(record.id, record.count, content) for record, content in photos} - ours
        if lost or not lists_usable_inputs(self._folder / QUARANTINE_FILE, self._manifest):
            raise DataError(f"{self._folder} holds shards of other photos or another split: name an empty folder")
        log.info("%s lacks photos that can be used now: packing all again", self._folder)
        return False

    def update_quarantine(self) -> Iterator[Path]:
        """Rewrite the quarantine list of a complete folder if it is missing or outdated."""
        path = self._folder / QUARANTINE_FILE
        wanted = [(refusal.path, refusal.reason) for refusal in self._manifest.refusals]
        if not path.exists() or [(each.path, each.reason) for each in read_quarantine(path)] != wanted:
            write_quarantine(path, self._manifest.refusals)
            yield path

    def pack(self) -> Iterator[Path]:
        """Pack the photos that are not packed yet."""
        journal = Journal(self._folder, self._plan())
        index = self._folder / INDEX_FILE
        self._check_other_files(ours=journal.exists() or index.exists())
        finished = journal.finished()
        index.unlink(missing_ok=True)  # outdated; there is a journal now
        self._delete_leftovers(finished)
        places = []
        for number, shard in enumerate(chain(finished, self._pack(finished))):
            if number >= len(finished):
                journal.record(shard)
            places += shard
            yield self._folder / shard[0].shard
        write_quarantine(self._folder / QUARANTINE_FILE, self._manifest.refusals)
        yield self._folder / QUARANTINE_FILE
        by_row = [places[i] for i in np.argsort(self._order)]
        write_index(index, self._manifest, self._kept, self._sides, by_row)
        journal.close()
        yield index

    def _plan(self) -> str:
        """Hash of everything that the bytes of the shards depend on."""
        plan = json.dumps([self._manifest.digest, self._kept.tolist(), self._sides, self._shard_bytes])
        return hashlib.sha256(plan.encode()).hexdigest()

    def _check_other_files(self, *, ours: bool) -> None:
        for path in self._folder.iterdir():
            packed = is_shard(path.name) or path.name in (QUARANTINE_FILE, INDEX_FILE)
            if not path.name.startswith(".") and not (ours and packed):
                raise DataError(f"{self._folder} holds other files, such as {path.name}: name an empty folder")

    def _delete_leftovers(self, finished: Sequence[list[Place]]) -> None:
        whole = {shard[0].shard for shard in finished}
        for path in self._folder.iterdir():
            if path.name not in whole and (is_shard(path.name) or _PART.fullmatch(path.name)):
                path.unlink()

    def _pack(self, finished: Sequence[list[Place]]) -> Iterator[list[Place]]:
        """Write the shards that follow the finished ones, and yield the places of the photos in each."""
        order = self._order[sum(map(len, finished)) :]
        files = [record.file for record in self._records]
        content = self._manifest.content[self._kept]
        read = read_ahead(files, content, order, workers=_READERS)
        photos = zip(order.tolist(), track(read, "Packing photos", len(order)), strict=True)
        photo = next(photos, None)
        number = len(finished)
        while photo is not None:
            places: list[Place] = []
            name = shard_name(number)
            with (
                atomic_write(self._folder / name, "wb") as file,
                tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
            ):
                while photo is not None and (not places or tar.offset + _room(photo[1]) <= self._shard_bytes):
                    places.append(Place(name, self._add(tar, *photo), len(photo[1])))
                    photo = next(photos, None)
            yield places
            number += 1

    def _add(self, tar: tarfile.TarFile, row: int, photo: bytes) -> int:
        """Write the three members of a photo; return the offset of its first byte."""
        record = self._records[row]
        about = {"id": record.id, "count": record.count, "group": record.group, "split": self._sides[row]}
        key = f"{row:09d}"
        _add_member(tar, f"{key}{photo_suffix(photo)}", photo)
        offset = tar.offset - _padded(len(photo))
        _add_member(tar, f"{key}.cls", str(record.count).encode())
        _add_member(tar, f"{key}.json", json.dumps(about).encode())
        return offset


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # of owner 0 and time 0
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _room(photo: bytes) -> int:
    """Bytes of a photo in a shard, with its headers and labels."""
    return _padded(len(photo)) + 5 * tarfile.BLOCKSIZE


class Journal:
    """Places of the photos in all finished shards, a line per shard.

    A line is written after its shard; a shard with a torn or missing line is packed again.

    Args:
        folder: of the shards.
        plan: hash of the photos and the settings; a journal of another plan is discarded.
    """

    def __init__(self, folder: Path, plan: str) -> None:
        self._folder, self._path = folder, folder / JOURNAL
        self._plan = json.dumps(plan)

    def exists(self) -> bool:
        """Return True if the folder holds an unfinished packing."""
        return self._path.exists()

    def finished(self) -> list[list[Place]]:
        """Read the places in the finished shards, and start the journal anew with these."""
        shards: list[list[Place]] = []
        try:
            plan, *lines = self._path.read_text(encoding="utf-8").splitlines()
            if plan == self._plan:
                for line in lines:
                    size, places = json.loads(line)
                    shard = [Place(*place) for place in places]
                    if (self._folder / shard[0].shard).stat().st_size != size:
                        break
                    shards.append(shard)
        except (OSError, ValueError, TypeError, IndexError):
            pass  # the lines before are valid
        self._write(shards)
        return shards

    def record(self, shard: list[Place]) -> None:
        """Record a finished shard."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(self._line(shard))

    def close(self) -> None:
        """Delete the journal of a folder that is complete."""
        self._path.unlink()

    def _write(self, shards: list[list[Place]]) -> None:
        self._path.write_text("".join([self._plan + "\n", *map(self._line, shards)]), encoding="utf-8")

    def _line(self, shard: list[Place]) -> str:
        return json.dumps([(self._folder / shard[0].shard).stat().st_size, shard]) + "\n"
