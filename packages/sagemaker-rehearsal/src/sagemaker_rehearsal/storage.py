"""Transfers between a job's folders and S3, like those of SageMaker's agent."""

import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError


def split_uri(uri: str) -> tuple[str, str]:
    """Split ``s3://bucket/some/prefix`` into bucket and prefix."""
    parts = urlsplit(uri, allow_fragments=False)
    return parts.netloc, parts.path.lstrip("/")


def join_uri(uri: str, *names: str) -> str:
    """Append names to ``uri``, which may end in a slash."""
    return "/".join([uri.rstrip("/"), *names])


def list_objects(s3: Any, uri: str) -> list[str]:
    """List the keys that begin with the prefix of ``uri``, in S3's order and without folder markers."""
    bucket, prefix = split_uri(uri)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = (found["Key"] for page in pages for found in page.get("Contents", []))
    return [key for key in keys if not key.endswith("/")]


def download(s3: Any, uri: str, keys: Iterable[str], folder: Path) -> None:
    """Download objects below ``uri`` to ``folder``, named by the part of their keys below the prefix."""
    bucket, prefix = split_uri(uri)
    for key in keys:
        path = folder / _name_below(prefix, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(bucket, key, str(path))


def _name_below(prefix: str, key: str) -> str:
    """Return the file name of a key: a prefix can be a folder, a whole key, or the beginning of a name."""
    rest = key[len(prefix) :]
    if rest.startswith("/") or (prefix.endswith("/") and rest):
        return rest.lstrip("/")
    return key[prefix.rfind("/") + 1 :]


class SyncedFolder:
    """A folder mirrored to S3: changed files are uploaded, also hidden ones, and deleted files are deleted there.

    Args:
        s3: boto3 client.
        uri: destination of the files.
        folder: the local folder.
    """

    def __init__(self, s3: Any, uri: str, folder: Path) -> None:
        self._s3 = s3
        self._uri = uri
        self._folder = folder
        self._uploaded: dict[Path, tuple[int, ...]] = {}

    def restore(self) -> None:
        """Download the objects at the destination; they count as uploaded."""
        below = self._uri.rstrip("/") + "/"  # the slash excludes jobs with a common beginning of their names
        for key in list_objects(self._s3, below):
            try:
                download(self._s3, below, [key], self._folder)
            except ClientError as error:
                # The training jobs of a tuning job share a prefix: another one may have deleted its file meanwhile.
                if error.response["Error"]["Code"] != "404":
                    raise
        for path in self._files():
            self._uploaded[path] = _signature(path.stat())

    def upload_changes(self) -> list[str]:
        """Upload the files that changed since the last call.

        Returns:
            Names of the uploaded files, without their folders.
        """
        names = []
        bucket, prefix = split_uri(self._uri)
        for path in self._files():
            with suppress(FileNotFoundError), path.open("rb") as file:  # deleted since it was listed
                signature = _signature(os.fstat(file.fileno()))
                if self._uploaded.get(path) == signature:
                    continue
                # One descriptor: a replaced file is never mixed with its successor.
                body = file.read()
                key = join_uri(prefix, path.relative_to(self._folder).as_posix())
                self._s3.put_object(Bucket=bucket, Key=key, Body=body)
                self._uploaded[path] = signature
                names.append(path.name)
        for path in [path for path in self._uploaded if not path.exists()]:
            key = join_uri(prefix, path.relative_to(self._folder).as_posix())
            self._s3.delete_object(Bucket=bucket, Key=key)
            del self._uploaded[path]
        return names

    def _files(self) -> Iterator[Path]:
        for folder, _, names in os.walk(self._folder):
            yield from (path for name in names if (path := Path(folder) / name).is_file())


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mtime_ns, status.st_size, status.st_ino


def upload_archive(s3: Any, folders: list[Path], uri: str) -> None:
    """Upload the contents of folders as one ``tar.gz``; of equal names the first folder's file is kept."""
    bucket, key = split_uri(uri)
    members: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            members.setdefault(path.relative_to(folder).as_posix(), path)
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, path in members.items():
                archive.add(path, name, recursive=False)
        file.seek(0)
        s3.upload_fileobj(file, bucket, key)
