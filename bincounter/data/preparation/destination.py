"""Where a data set may be prepared."""

import os
from pathlib import Path, PurePosixPath

from bincounter.data.layouts import PHOTO_SUFFIXES
from bincounter.data.layouts.prepared import SPLIT_FILE
from bincounter.data.s3.address import is_remote, parse
from bincounter.data.s3.upload import reach
from bincounter.data.shards.index import INDEX_FILE
from bincounter.data.source import folder_of
from bincounter.errors import DataError


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
