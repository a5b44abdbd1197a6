"""A local data folder -> a bucket, so that a job can read it.

Where it goes is named by what it holds: a changed folder goes elsewhere, and what it used to hold is neither deleted
nor read. The same folder goes to the same place, where only what is missing is sent.
"""

import base64
import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from bincounter.errors import BinCounterError, DataError

if TYPE_CHECKING:
    from bincounter.data.layouts import Found

# boto3, botocore and the rooms that import them are imported by the functions: every command imports this module.

log = logging.getLogger(__name__)

LARGEST = 5 * 1024**3
"""Bytes that S3 takes in one request."""

_MD5 = "bincounter-md5"  # metadata of every object: an etag is no MD5 where the bucket encrypts with KMS
_NAMED = 5  # files named in one line of the log


@dataclass(frozen=True)
class Uploaded:
    """What an upload did.

    Attributes:
        objects: files of the folder, all of which are in the bucket now.
        sent: those that were not there yet.
        bytes: of those that were sent.
        uri: the folder in the bucket, without a slash at its end.
    """

    objects: int
    sent: int
    bytes: int
    uri: str


class _Listed(NamedTuple):
    """An object as a listing describes it."""

    etag: str
    size: int


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


def upload(folder: Path, uri: str, *, client: Any, workers: int = 16) -> Uploaded:
    """Send the files of a folder that are not in the bucket yet; links are followed, hidden files left out.

    An object counts as there when its size and its MD5 are those of the file. Each is checked by the server as it
    arrives. A call that was interrupted is gone on with by the same call.

    Args:
        folder: of data, in any layout.
        uri: ``s3://`` address of the folder in the bucket.
        client: boto3's of S3; it repeats requests as it was made to, and should have ``workers`` connections.
        workers: requests at a time.

    Raises:
        DataError: there is nothing to upload, a file cannot be read, or address, bucket or credentials are wrong.
        ResourceError: the network or the server gave out.
    """
    from bincounter.data.ordered_threads import ordered_map
    from bincounter.data.s3.address import parse
    from bincounter.progress import track

    bucket, prefix = parse(uri)
    files = _files(folder)
    bucket_folder = _BucketFolder(client, bucket, f"{prefix}/" if prefix else "")
    there = bucket_folder.objects()
    total = sum(found.size for found in files)
    log.info("%s: %d files, %.1f MB; %s holds %d objects", folder, len(files), total / 1e6, uri, len(there))

    def send(found: "Found") -> bool:
        return bucket_folder.send(folder / found.name, found.name, there.get(found.name))

    sent = list(track(ordered_map(send, files, workers), f"Uploading to {uri}", len(files)))
    sizes = [found.size for found, was_sent in zip(files, sent, strict=True) if was_sent]
    return Uploaded(len(files), len(sizes), sum(sizes), uri.rstrip("/"))


class _BucketFolder:
    """The objects below a prefix; their names are relative to it."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self._client, self._bucket, self._prefix = client, bucket, prefix
        self._reached = False

    def objects(self) -> Mapping[str, _Listed]:
        """Describe every object that is there."""
        from botocore.exceptions import BotoCoreError, ClientError

        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
        try:
            found = {
                item["Key"].removeprefix(self._prefix): _Listed(item.get("ETag", "").strip('"'), item["Size"])
                for page in pages
                for item in page.get("Contents", ())
            }
        except (BotoCoreError, ClientError) as error:
            raise self._explain(error, "") from error
        self._reached = True
        return found

    def send(self, path: Path, name: str, listed: _Listed | None) -> bool:
        """Send one file unless the object is the same; returns whether it was sent."""
        from botocore.exceptions import BotoCoreError, ClientError

        md5 = _md5(path)
        try:
            if listed and self._is_same(path, name, listed, md5):
                return False
            with path.open("rb") as file:
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=self._prefix + name,
                    Body=file,
                    ContentMD5=base64.b64encode(md5).decode(),
                    Metadata={_MD5: md5.hex()},
                )
        except (BotoCoreError, ClientError) as error:
            raise self._explain(error, name) from error
        return True

    def _is_same(self, path: Path, name: str, listed: _Listed, md5: bytes) -> bool:
        if listed.size != path.stat().st_size:
            return False
        if listed.etag == md5.hex():
            return True
        head = self._client.head_object(Bucket=self._bucket, Key=self._prefix + name)
        notes = {name.lower(): value for name, value in head["Metadata"].items()}  # not every service keeps their case
        return notes.get(_MD5) == md5.hex()

    def _explain(self, error: Exception, name: str) -> BinCounterError:
        """The sentence for a request that failed for good; those of reading fit but for what only writing meets."""
        from botocore.exceptions import ClientError

        from bincounter.data.s3.errors import explain_request

        address = f"s3://{self._bucket}/{self._prefix}{name}"
        code = error.response.get("Error", {}).get("Code", "") if isinstance(error, ClientError) else ""
        if code == "NoSuchBucket":
            return DataError(
                f"there is no bucket {self._bucket}: create it (aws s3 mb s3://{self._bucket}), or name another"
            )
        if code == "AccessDenied" and name:
            return DataError(f"writing {address} is denied: have s3:PutObject allowed, or set AWS_PROFILE to another")
        if code in ("BadDigest", "InvalidDigest"):
            return DataError(
                f"{address} arrived as something else, its file was changed meanwhile: run the same command again"
            )
        host = urlsplit(self._client.meta.endpoint_url).netloc.rpartition("@")[2]
        return explain_request(error, address, host=host, signed=True, reached=self._reached)


def _files(folder: Path) -> "list[Found]":
    """What can be uploaded; the rest is named in the log."""
    from bincounter.data.layouts import walk

    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {what}: set data.source to a folder of photos, or to an s3:// address")
    files, left_out = [], []
    for found in walk(folder):
        problem = found.problem or ("larger than the 5 GB that S3 takes at once" if found.size > LARGEST else None)
        if problem:
            left_out.append(f"{found.name or folder} ({problem})")
        else:
            files.append(found)
    if left_out:
        log.warning("%d left out of the upload: %s", len(left_out), _some(left_out))
    if not files:
        raise DataError(f"{folder} holds no file to upload: set data.source to a folder of photos")
    return files


def _md5(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({(error.strerror or type(error).__name__).lower()}): make it readable, or move it "
            "out of the folder"
        ) from error


def _some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
