"""From the name of a data source to its manifest: photos are made, fetched, left in their bucket, or here already."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bincounter.data.layouts import Detected, KnownLayout, Layout, Shards, ids_from
from bincounter.data.layouts.abid import WITHOUT_A_PHOTO
from bincounter.data.layouts.prepared import NOT_THERE
from bincounter.data.records import Manifest, Refusal
from bincounter.data.s3.address import is_remote
from bincounter.data.s3.choosing import Chooser
from bincounter.data.s3.download import fetch
from bincounter.data.scan import scan
from bincounter.data.shards.streaming import streamed_manifest
from bincounter.errors import ConfigError, DataError


def find_photos(
    source: str | None,
    layout: Layout | KnownLayout | Detected,
    *,
    counts: Sequence[int] | None,
    sync: Mapping[str, Any],
    data_dir: Path,
    cache_dir: Path,
    stored_size: int | None,
    workers: int,
) -> Manifest:
    """Fetch or make photos where they are not here, and find out what they are.

    Args:
        source: a folder or an ``s3://`` URI; ``None`` when the layout makes its photos.
        layout: reads what lies there.
        counts: that will be used; ``None`` for all.
        sync: ``only, deleted, connections`` of :func:`bincounter.data.s3.download.fetch`, and ``stream``.
        data_dir: where photos that are made or fetched are kept.
        cache_dir: see :func:`bincounter.data.scan.scan`.
        stored_size: ``image_size`` there.
        workers: see there.

    Raises:
        ConfigError: what cannot be streamed is asked to be.
        DataError: there is nothing to read.
        ResourceError: network or disk gave out.
    """
    if sync.get("stream"):
        if source is None or not is_remote(source) or not isinstance(layout, Shards | Detected):
            raise ConfigError(
                "data.sync.stream=true is for shards in a bucket: set data=shards and data.source to their s3:// URI, "
                "or leave it false"
            )
        return streamed_manifest(source, cache_dir, sync["connections"])
    root = _here(source, layout, counts, sync, data_dir)
    manifest = scan(root, layout, cache_dir, image_size=stored_size, workers=workers)
    left = source is not None and is_remote(source) and sync.get("only") == "counts" and counts is not None
    return _without_what_was_left(manifest, counts or ()) if left else manifest


def folder_of(name: str) -> Path:
    """The folder that a source or destination here names.

    Raises:
        DataError: it begins with ``~`` and a user whom this machine does not know.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise DataError(f"{name} names the home of a user who has none here: write the folder out in full") from error


def _without_what_was_left(manifest: Manifest, counts: Sequence[int]) -> Manifest:
    """Take bins out of quarantine whose photos were left in the bucket, since their counts are not wanted."""
    chooser = Chooser(manifest.root, counts)

    def was_left(refusal: Refusal) -> bool:
        if refusal.reason in WITHOUT_A_PHOTO:
            return not chooser.by_metadata(refusal.path)
        return refusal.reason in NOT_THERE and chooser.by_name(refusal.path) is False

    return replace(manifest, refusals=tuple(refusal for refusal in manifest.refusals if not was_left(refusal)))


def _here(
    source: str | None,
    layout: Layout | KnownLayout | Detected,
    counts: Sequence[int] | None,
    sync: Mapping[str, Any],
    data_dir: Path,
) -> Path:
    if source is None:
        return layout.make(data_dir)  # type: ignore[union-attr]  # validated: it has no source
    if is_remote(source):
        id_list = getattr(layout, "ids", None)
        settings = {name: value for name, value in sync.items() if name != "stream"}
        return fetch(source, data_dir, ids=ids_from(id_list) if id_list else None, counts=counts, **settings)
    root = folder_of(source)
    if not root.is_dir():
        raise DataError(f"data.source={source} is no folder: correct the path, or use an s3:// URI")
    return root
