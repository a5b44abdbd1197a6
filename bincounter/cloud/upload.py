"""A local data folder -> a bucket, so that a job can read it.

Where it goes is named by what it holds: a changed folder goes elsewhere, and what it used to hold is neither deleted
nor read. The same folder goes to the same place, where only what is missing is sent.
"""

import hashlib
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from bincounter.errors import DataError

if TYPE_CHECKING:
    from bincounter.data.layouts import Found
    from bincounter.data.s3.upload import Uploaded

# boto, obstore and the rooms that import them are imported by the functions: every command imports this module.

log = logging.getLogger(__name__)

_NAMED = 5  # files named in one line of the log


def destination(folder: Path, base_uri: str, *, workers: int = 16) -> str:
    """The place of a folder's present content: ``base_uri/<name>-<digest>``.

    Every file is read. The digest is of names, sizes and MD5s; hidden files, and what cannot be uploaded, do not count.

    Args:
        folder: of data, in any layout.
        base_uri: an ``s3://`` address.
        workers: files that are read at a time.

    Raises:
        DataError: there is nothing to upload, or a file cannot be read.
    """
    from bincounter.data.ordered_threads import ordered_map
    from bincounter.progress import track

    files = _files(folder)
    md5s = ordered_map(lambda found: _md5(folder / found.name), files, workers)
    digest = hashlib.sha256()
    for found, md5 in zip(files, track(md5s, f"Reading {folder}", len(files)), strict=True):
        digest.update(f"{found.name}\0{found.size}\0{md5.hex()}\n".encode())
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-.") or "data"
    return f"{base_uri.rstrip('/')}/{name}-{digest.hexdigest()[:12]}"


def upload(folder: Path, uri: str, *, region: str | None = None) -> "Uploaded":
    """Send the files of a folder that are not in the bucket yet; links are followed, hidden files left out.

    See :func:`bincounter.data.s3.upload.send`, which does it.

    Args:
        folder: of data, in any layout.
        uri: ``s3://`` address of the folder in the bucket.
        region: of the bucket; ``None`` for that of the settings.

    Raises:
        DataError: there is nothing to upload, a file cannot be read, or address, bucket or credentials are wrong.
        ResourceError: the network or the server gave out.
    """
    from bincounter.data.s3.upload import send

    files = ((folder / found.name, found.name) for found in _files(folder))
    return send(files, uri, description=f"Uploading to {uri}", region=region)


def _files(folder: Path) -> "list[Found]":
    """What can be uploaded; the rest is named in the log."""
    from bincounter.data.layouts import walk

    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {what}: set data.source to a folder of photos, or to an s3:// address")
    files, left_out = [], []
    for found in walk(folder):
        if found.problem:
            left_out.append(f"{found.name or folder} ({found.problem})")
        else:
            files.append(found)
    if left_out:
        more = ", ..." if len(left_out) > _NAMED else ""
        log.warning("%d left out of the upload: %s", len(left_out), ", ".join(left_out[:_NAMED]) + more)
    if not files:
        raise DataError(f"{folder} holds no file to upload: set data.source to a folder of photos")
    return files


def _md5(path: Path) -> bytes:
    from bincounter.data.s3.sending_plan import unreadable

    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()
    except OSError as error:
        raise unreadable(path, error) from error
