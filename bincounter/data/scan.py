"""Folder -> manifest. The manifest is cached, and each photo is opened once."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch

from bincounter.data.grouping import FINGERPRINT_BYTES, assign_groups, fingerprint
from bincounter.data.layouts import Detected, detect
from bincounter.data.layouts.base import CACHE_TAG, IndexedLayout, InputFile, Layout
from bincounter.data.photo_bounds import PhotoError
from bincounter.data.photo_store import DECODERS, PhotoWriter, code_digest, has_room, photos_path
from bincounter.data.photos import content_hash, failure_clause, read_photos, retry
from bincounter.data.preprocessing import decode, photo_size
from bincounter.data.records import BinRecord, Candidate, Manifest, PhotoFile, RejectedInput, data_digest
from bincounter.errors import BinCounterError, DataError, ResourceError
from bincounter.files import atomic_write, translate_disk_full, write_text
from bincounter.names import one_line
from bincounter.parallel import map_ordered
from bincounter.progress import track

log = logging.getLogger(__name__)

MAX_BYTES = 500_000_000
"""Largest file that is read: above the uncompressed size of the largest photo that is decoded."""

_THUMB = 32  # pixels, side of the input of `fingerprint`
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# Cache of bincounter: may be deleted at any time.\n"


# Files that determine the content of a manifest: part of the cache key.
_SOURCES = [
    Path(__file__),
    Path(__file__).with_name("grouping.py"),
    *sorted(Path(__file__).parent.glob("layouts/*.py")),
    *DECODERS,
]


def scan(
    root: Path, layout: Layout | IndexedLayout | Detected, cache_dir: Path, *, image_size: int | None, workers: int
) -> Manifest:
    """Read every photo of a data source once and return the manifest: readable photos, sizes and near-copy groups.

    The manifest is cached in ``cache_dir``: while no input changes its name, size or modification time, no photo is
    opened, except those that could not be read for a cause outside their bytes. A layout with an index of its own,
    such as shards, supplies the manifest itself.

    Args:
        root: folder of the photos.
        layout: of the photos in it.
        cache_dir: cache folder, created if missing; it may be inside the root.
        image_size: side in pixels at which photos that are read are also stored for ``PhotoStore``, if the disk has
            room, so that they are decoded once; ``None`` to store none.
        workers: threads that read and decode.

    Raises:
        DataError: the root does not have the layout, or has no readable photo.
        ResourceError: the disk is full, or no photo can be read for now.
    """
    if isinstance(layout, Detected):
        layout = detect(root)
    if isinstance(layout, IndexedLayout):
        return layout.manifest(root)
    signature = _signature(layout.walk(root))
    code = code_digest(*_SOURCES) + PIL.__version__
    key = hashlib.sha256(json.dumps([str(root.resolve()), repr(layout), code]).encode()).hexdigest()[:16]
    kept = cache_dir / "manifests" / f"{key}.npz"
    manifest = load_manifest(kept, root, signature)
    if manifest is not None and manifest.has_passing_refusals:
        manifest = _without_change(manifest, layout)
    if manifest is None:
        with translate_disk_full(cache_dir):
            write_text(cache_dir / CACHE_TAG, _TAG)
            manifest = _read_source(root, layout, cache_dir, image_size, workers)
            save_manifest(kept, manifest, signature)
    return manifest


def save_manifest(file: Path, manifest: Manifest, signature: str) -> None:
    """Write a manifest with the signature of the inputs it was made from."""
    prefix = f"{manifest.root}/"
    header = {
        "signature": signature,
        "digest": manifest.digest,
        "ids": [record.id for record in manifest.records],
        "paths": [str(record.file.path).removeprefix(prefix) for record in manifest.records],
        "splits": manifest.given_splits,
        "refusals": [(refusal.path, refusal.reason, refusal.passing) for refusal in manifest.refusals],
    }
    with atomic_write(file, "wb") as opened:
        np.savez(
            opened,
            header=np.frombuffer(json.dumps(header).encode(), np.uint8),
            counts=np.array([record.count for record in manifest.records], np.int64),
            groups=np.array([record.group for record in manifest.records], np.int64),
            sizes=manifest.sizes,
            content=manifest.content,
        )


def load_manifest(file: Path, root: Path, signature: str) -> Manifest | None:
    """Read a cached manifest; ``None`` if it is missing or corrupt, or its inputs have changed."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            header = json.loads(kept["header"].tobytes())
            if header["signature"] != signature:
                return None
            rows = zip(header["ids"], header["paths"], kept["counts"].tolist(), kept["groups"].tolist(), strict=True)
            return Manifest(
                root=root,
                records=tuple(BinRecord(id, PhotoFile(root / path), count, group) for id, path, count, group in rows),
                given_splits=tuple(header["splits"]),
                sizes=kept["sizes"],
                content=kept["content"],
                refusals=tuple(RejectedInput(*refusal) for refusal in header["refusals"]),
                digest=header["digest"],
            )
    except FileNotFoundError:
        return None
    except Exception as error:  # broken bytes raise nearly anything; a scan makes a new manifest
        log.info("%s is corrupt (%s): scanning again", file, error)
        return None


class _Looks(NamedTuple):
    """Values read from one photo."""

    size: tuple[int, int]
    content: np.uint64
    fingerprint: np.ndarray
    photo: torch.Tensor | None


class _Rows:
    """Values read from all photos, in arrays, so that memory does not grow with the pixels."""

    def __init__(self, most: int) -> None:
        self.candidates: list[Candidate] = []
        self._sizes = np.empty((most, 2), np.int32)
        self._content = np.empty(most, np.uint64)
        self._fingerprints = np.empty((most, FINGERPRINT_BYTES), np.uint8)

    def append(self, candidate: Candidate, looks: _Looks) -> None:
        row = len(self.candidates)
        self.candidates.append(candidate)
        self._sizes[row], self._content[row], self._fingerprints[row] = looks.size, looks.content, looks.fingerprint

    def manifest(self, root: Path, refusals: Sequence[RejectedInput]) -> Manifest:
        number = len(self.candidates)
        content = self._content[:number].copy()
        items = [candidate.items for candidate in self.candidates]
        names = [candidate.id for candidate in self.candidates]
        given = [candidate.group for candidate in self.candidates]
        groups = assign_groups(items, self._fingerprints[:number], content, names, given).tolist()
        records = tuple(
            BinRecord(candidate.id, candidate.file, candidate.count, group)
            for candidate, group in zip(self.candidates, groups, strict=True)
        )
        return Manifest(
            root=root,
            records=records,
            given_splits=tuple(candidate.split for candidate in self.candidates),
            sizes=self._sizes[:number].copy(),
            content=content,
            refusals=tuple(sorted(refusals, key=lambda refusal: refusal.path)),
            digest=data_digest(records, content),
        )


def _read_source(root: Path, layout: Layout, cache_dir: Path, image_size: int | None, workers: int) -> Manifest:
    listing = layout.list(root)
    candidates = sorted(listing.candidates, key=lambda candidate: candidate.id)
    refusals = list(listing.refusals)
    rows = _Rows(len(candidates))
    photos = cache_dir / "photos"
    keep = image_size is not None and has_room(photos, len(candidates), image_size)
    with ExitStack() as stack:
        writer = stack.enter_context(PhotoWriter(photos)) if keep else None
        look = partial(_look, root=root, image_size=image_size if keep else None)
        looks_of_all = map_ordered(look, candidates, workers)
        for candidate, looks in zip(candidates, track(looks_of_all, "Reading photos", len(candidates)), strict=True):
            if isinstance(looks, RejectedInput):
                refusals.append(looks)
                continue
            if writer and looks.photo is not None:
                writer.put(len(rows.candidates), looks.photo)
            rows.append(candidate, looks)
        if not rows.candidates:
            raise _no_photo(root, refusals)
        manifest = rows.manifest(root, refusals)
        if writer and image_size is not None:
            writer.publish(photos_path(cache_dir, manifest, image_size))
    return manifest


def _without_change(manifest: Manifest, layout: Layout) -> Manifest | None:
    """Return the cached manifest, with current reasons, if its temporarily unreadable inputs are still unreadable."""
    listing = layout.list(manifest.root)
    refusals = {refusal.path: refusal for refusal in listing.refusals}
    names = {refusal.path for refusal in manifest.refusals if refusal.passing}
    for candidate in listing.candidates:
        name = _name(candidate, manifest.root)
        if name in names and isinstance(looks := _look(candidate, manifest.root, None), RejectedInput):
            refusals[name] = looks
    if any(name not in refusals or not refusals[name].passing for name in names):
        return None
    now = tuple(refusals[each.path] if each.passing else each for each in manifest.refusals)
    return replace(manifest, refusals=now)


def _name(candidate: Candidate, root: Path) -> str:
    return candidate.file.name.removeprefix(f"{root}/")


def _look(candidate: Candidate, root: Path, image_size: int | None) -> _Looks | RejectedInput:
    """Read one photo; returns the reason if it cannot be used."""
    try:
        return retry(partial(_read, candidate, image_size))
    except PhotoError as error:
        return RejectedInput(_name(candidate, root), str(error))
    except (MemoryError, OSError) as error:
        return RejectedInput(_name(candidate, root), failure_clause(error), passing=True)


def _read(candidate: Candidate, image_size: int | None) -> _Looks:
    if candidate.file.path.stat().st_size > MAX_BYTES:
        raise PhotoError(f"larger than {MAX_BYTES // 1_000_000} megabytes")
    (data,) = read_photos([candidate.file])
    return _Looks(
        photo_size(data),
        content_hash(data),
        fingerprint(decode(data, _THUMB)),
        None if image_size is None else decode(data, image_size),
    )


def _signature(inputs: Iterable[InputFile]) -> str:
    signature = hashlib.blake2b(digest_size=16)
    for found in inputs:
        signature.update(
            f"{found.name}\0{found.problem}\0{found.size}\0{found.modified}\n".encode("utf-8", "surrogateescape")
        )
    return signature.hexdigest()


def _no_photo(root: Path, refusals: Sequence[RejectedInput]) -> BinCounterError:
    found = f"No readable photo in {root} ({_reasons(refusals)})"
    if any(refusal.passing for refusal in refusals):
        return ResourceError(f"{found}: give this process the right, the memory or the open files, and run again.")
    return DataError(f"{found}: check data.source and data.layout.")


def _reasons(refusals: Sequence[RejectedInput]) -> str:
    """Count the reasons, the most frequent first."""
    counts = Counter(refusal.reason for refusal in refusals).most_common()
    shown = [f"{number} {one_line(reason)}" for reason, number in counts[:4]]
    others = sum(number for _, number in counts[4:])
    return ", ".join(shown + ([f"{others} for other reasons"] if others else [])) or "it is empty"
