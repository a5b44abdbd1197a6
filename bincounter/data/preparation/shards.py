"""A split data set as shards, which are packed here and, for a bucket, sent and deleted one after the other."""

import hashlib
import logging
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from bincounter.data.layouts.arrangement import Placed
from bincounter.data.locking import one_at_a_time
from bincounter.data.preparation.destination import is_of_a_data_set, refuse_inside
from bincounter.data.quarantine import QUARANTINE_FILE, write_quarantine
from bincounter.data.records import Manifest
from bincounter.data.s3.address import is_remote
from bincounter.data.s3.upload import Outbox
from bincounter.data.shards.index import INDEX_FILE, are_shards_of, is_shard, read_index
from bincounter.data.shards.packing import pack_files
from bincounter.data.source import folder_of
from bincounter.data.splits import SPLITS
from bincounter.errors import DataError

log = logging.getLogger(__name__)


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
        with Path(copy, INDEX_FILE).open("wb") as file:
            outbox.read(INDEX_FILE, file)
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
