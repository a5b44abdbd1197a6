"""Photos of ``data.source``: rendered, synced, streamed or read from a folder, as a manifest."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from bincounter.data.layouts import Detected
from bincounter.data.layouts.abid import METADATA, MISSING_PHOTO_REASONS, PHOTOS, read_metadata, read_photo_names
from bincounter.data.layouts.base import COUNT_NAME, PHOTO_SUFFIXES, IndexedLayout, Layout, UnusableInput
from bincounter.data.layouts.base import find_photos as photos_below
from bincounter.data.layouts.folders import MISSING_REASONS, SPLIT_FOLDERS
from bincounter.data.records import Manifest, RejectedInput
from bincounter.data.s3.address import is_remote, parse_address
from bincounter.data.s3.mirror import local_folder
from bincounter.data.s3.sync import fetch
from bincounter.data.scan import scan
from bincounter.data.shards.index import Shards, streamed_manifest
from bincounter.errors import ConfigError, DataError
from bincounter.names import escape_name


def find_photos(
    source: str | None,
    layout: Layout | IndexedLayout | Detected,
    *,
    counts: Sequence[int] | None,
    sync: Mapping[str, Any],
    data_dir: Path,
    cache_dir: Path,
    stored_size: int | None,
    workers: int,
) -> Manifest:
    """Fetch or render the missing photos, and scan all of them.

    Args:
        source: a folder or an ``s3://`` URI; ``None`` if the layout renders its photos.
        layout: of the source.
        counts: that will be used; ``None`` for all.
        sync: ``only, deleted, connections`` of :func:`fetch_photos`, and ``stream``.
        data_dir: folder of rendered and fetched photos.
        cache_dir: see :func:`bincounter.data.scan.scan`.
        stored_size: ``image_size`` of the scan.
        workers: threads of the scan.

    Raises:
        ConfigError: the source cannot be streamed.
        DataError: the source has no photos, or its address is wrong.
        ResourceError: the network, the server or the disk failed.
    """
    if sync.get("stream"):
        if source is None or not is_remote(source) or not isinstance(layout, Shards | Detected):
            raise ConfigError(
                "data.sync.stream=true is for shards in a bucket: set data=shards and data.source to their s3:// URI, "
                "or leave it false"
            )
        return streamed_manifest(source, cache_dir, sync["connections"])
    left_out: dict[str, str] = {}
    root = _root(source, layout, counts, sync, data_dir, left_out)
    manifest = scan(root, layout, cache_dir, image_size=stored_size, workers=workers)
    if left_out:
        refusals = [*manifest.refusals, *(RejectedInput(name, reason) for name, reason in left_out.items())]
        manifest = replace(manifest, refusals=tuple(sorted(refusals, key=lambda refusal: refusal.path)))
    left = source is not None and is_remote(source) and sync.get("only") == "counts" and counts is not None
    return _without_excluded(manifest, counts or ()) if left else manifest


def fetch_photos(
    source: str,
    data_dir: Path,
    *,
    ids: Sequence[str] | Mapping[str, str] | None = None,
    counts: Sequence[int] | None = None,
    only: str = "all",
    deleted: str = "mirror",
    connections: int = 64,
    left_out: dict[str, str] | None = None,
) -> Path:
    """Sync photos from ``s3://`` into a local folder; see :func:`bincounter.data.s3.sync.fetch`.

    Args:
        source: an ``s3://`` address.
        data_dir: the folder that holds the copies of all buckets.
        ids: of a source in ABID's layout fetch only the photos and the metadata of these bins, without a listing (the
            public bucket has a million objects); the layout reports missing files. A mapping holds file names of the
            photos, which are ``<id>.jpg`` otherwise.
        counts: that will be used; ``None`` for all.
        only: ``counts`` to fetch only photos with these counts, by folder or by metadata.
        deleted: ``mirror`` to delete local files without an object, ``keep`` to leave them.
        connections: requests at a time.
        left_out: filled with the names of objects that cannot be fetched, and the reasons.

    Returns:
        the local folder.

    Raises:
        DataError: the address or the credentials are wrong, or nothing exists there.
        ResourceError: the network, the server or the disk failed; the same call resumes.
    """
    names = wanted = None
    if ids is not None:
        photos = ids.values() if isinstance(ids, Mapping) else [f"{each}.jpg" for each in ids]
        names = [f"{METADATA}/{each}.json" for each in ids] + [f"{PHOTOS}/{each}" for each in photos]
    if only == "counts" and counts is not None:
        wanted = CountFilter(local_folder(data_dir, *parse_address(source)), counts)
    return fetch(
        source, data_dir, names=names, wanted=wanted, deleted=deleted, connections=connections, left_out=left_out
    )


def expand_folder(name: str) -> Path:
    """Path of a local source or destination, with ``~`` expanded.

    Raises:
        DataError: it begins with ``~`` and an unknown user.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise DataError(f"{name} is the home folder of an unknown user: write its full path") from error


class CountFilter:
    """Filter of objects by count: by name, or by metadata if the name does not contain the count.

    Args:
        folder: of the local copy of the source.
        counts: the wanted ones.
    """

    def __init__(self, folder: Path, counts: Collection[int]) -> None:
        self._folder, self._counts = folder, frozenset(counts)

    def by_name(self, name: str) -> bool | None:
        """Return True if the object is wanted; ``None`` for a photo whose count is in its metadata.

        Args:
            name: of the object, relative to the source.
        """
        parts = name.split("/")
        if parts[0] == PHOTOS:
            return None
        if parts[0].lower() in SPLIT_FOLDERS:
            parts = parts[1:]
        if len(parts) > 1 and COUNT_NAME.fullmatch(parts[0]):
            return int(parts[0]) in self._counts
        return True

    def by_metadata(self, name: str) -> bool:
        """Return True if a photo is wanted by its fetched metadata, or if the metadata has no valid count."""
        stem = name.rpartition("/")[2].rpartition(".")[0]
        try:
            count, _ = read_metadata(self._folder / METADATA / f"{stem}.json")
        except UnusableInput:
            return True
        return count in self._counts


def _root(
    source: str | None,
    layout: Layout | IndexedLayout | Detected,
    counts: Sequence[int] | None,
    sync: Mapping[str, Any],
    data_dir: Path,
    left_out: dict[str, str],
) -> Path:
    """The local folder of the photos, which are rendered or fetched first."""
    if source is None:
        return layout.make(data_dir)  # type: ignore[union-attr]  # validated: it has no source
    if is_remote(source):
        id_list = getattr(layout, "ids", None)
        settings = {name: value for name, value in sync.items() if name != "stream"}
        ids = read_photo_names(id_list) if id_list else None
        return fetch_photos(source, data_dir, ids=ids, counts=counts, left_out=left_out, **settings)
    root = expand_folder(source)
    if not root.is_dir():
        raise DataError(f"data.source={source} is not a folder: correct the path, or use an s3:// URI")
    return root


def _without_excluded(manifest: Manifest, counts: Sequence[int]) -> Manifest:
    """Remove from quarantine the bins with unwanted counts: their photos stay in the bucket."""
    chooser = CountFilter(manifest.root, counts)

    def is_excluded(refusal: RejectedInput) -> bool:
        if refusal.reason in MISSING_PHOTO_REASONS:
            return not chooser.by_metadata(refusal.path)
        return refusal.reason in MISSING_REASONS and chooser.by_name(refusal.path) is False

    return replace(manifest, refusals=tuple(refusal for refusal in manifest.refusals if not is_excluded(refusal)))


def list_photos(source: str, data_dir: Path) -> list[Path]:
    """List the photos of ``source``, and log the number of other files in a folder.

    Args:
        source: a photo, a folder (searched recursively), or the ``s3://`` URI of either.
        data_dir: folder for local copies of a bucket.

    Raises:
        DataError: ``source`` does not exist, or has no photo.
    """
    root = find_source(source, data_dir)
    return [root] if root.is_file() else photos_below(root)


def find_source(source: str, data_dir: Path) -> Path:
    """Find the photo or the folder of ``source`` on this machine; arguments as of :func:`list_photos`.

    Raises:
        DataError: it does not exist.
    """
    root = _fetched(source, data_dir) if is_remote(source) else Path(source)
    if not root.is_file() and not root.is_dir():
        raise DataError(f"{escape_name(source)} is neither a photo nor a folder: correct the path, or use an s3:// URI")
    return root


def _fetched(source: str, data_dir: Path) -> Path:
    """Return the local copy of a photo or folder in a bucket."""
    folder, _, name = source.rpartition("/")
    if Path(name).suffix.lower() in PHOTO_SUFFIXES and parse_address(source)[1]:
        with suppress(DataError):  # a folder may have such a name, too; its listing raises the error
            return fetch(folder, data_dir, names=[name]) / name
    return fetch(source, data_dir)
