"""Concurrent upload of missing and changed files to a bucket.

Objects appear whole or not at all, and none is ever deleted. An interrupted upload is resumed by the same call.
"""

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Self

from botocore.exceptions import ClientError

from bincounter.data.s3.address import parse_address, unusable_reason
from bincounter.data.s3.bucket import MD5_METADATA, Bucket
from bincounter.data.s3.catalogue import Catalogue
from bincounter.data.s3.error_messages import explain_upload
from bincounter.data.s3.objects import Listed, UploadItem, etag_matches
from bincounter.errors import DataError
from bincounter.parallel import for_each
from bincounter.progress import TransferProgress

log = logging.getLogger(__name__)

MAX_OBJECT_BYTES = 5 * 1024**4
"""Bytes of the largest object."""

_LONGEST_KEY = 1024  # bytes
_SMALL = 1 << 20  # bytes; larger files are not kept in memory between reading and sending
_LARGE_AT_ONCE = 4
_NAMED = 5  # objects named in one line of the log
_md5 = partial(hashlib.md5, usedforsecurity=False)


@dataclass(frozen=True)
class Uploaded:
    """Result of an upload.

    Attributes:
        objects: files, all of which are in the bucket now.
        sent: those that were not there yet.
        bytes: of those that were sent.
        uri: the folder in the bucket, without a slash at its end.
    """

    objects: int
    sent: int
    bytes: int
    uri: str


def send(
    files: Iterable[tuple[Path, str]],
    uri: str,
    *,
    last: Sequence[tuple[Path, str]] = (),
    refused: Callable[[str], bool] = lambda _: False,
    connections: int = 64,
    description: str | None = None,
    region: str | None = None,
) -> Uploaded:
    """Send the files that a folder of a bucket lacks.

    A file is skipped if an object with its name, size and MD5 exists. Each object is checked as it arrives. Other
    objects of the folder stay, and are counted in the log.

    Args:
        files: each with its name in the folder, which may have slashes; may be lazy and of any length.
        uri: ``s3://`` address of the folder.
        last: files that mark the others as complete, sent one after the other once all of those have arrived. With
            them, other objects of the same names are not replaced, see :meth:`Uploader.protect`.
        refused: name of another object in the folder -> True if it forbids the upload.
        connections: files sent at a time.
        description: for the progress bar.
        region: of the bucket; ``None`` for that of the settings.

    Raises:
        DataError: a file cannot be read or sent or is changed meanwhile, a refused or protected object exists, or
            address, bucket or credentials are wrong.
        ResourceError: the network or the server failed; the same call resumes.
    """
    with Uploader(uri, connections=connections, region=region) as outbox:
        outbox.load(files)
        outbox.load(last, last=True)
        outbox.look()
        outbox.refuse_others(refused)
        if last:
            outbox.protect(last[-1][1])
        outbox.log_other_objects()
        return outbox.send(description or f"Sending to {uri}")


class Uploader:
    """Upload into a folder of a bucket by a caller that does not have all files at once; see :func:`send`.

    A context manager. The bucket is listed once; files can be loaded and sent repeatedly.

    Args:
        uri: ``s3://`` address of the folder.
        connections: files sent at a time.
        region: of the bucket; ``None`` for that of the settings.
    """

    def __init__(self, uri: str, *, connections: int = 64, region: str | None = None) -> None:
        name, prefix = parse_address(uri)
        self._uri, self._connections = uri, connections
        self._prefix = f"{prefix}/" if prefix else ""
        self._bucket = Bucket(name, connections, region)
        self._catalogue = Catalogue()
        self._address = f"s3://{name}/{self._prefix}"
        self._mark: str | None = None
        self._replacing = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._catalogue.close()

    def load(self, files: Iterable[tuple[Path, str]], *, last: bool = False) -> None:
        """Plan to send files, or to send them after all others.

        Raises:
            DataError: a file cannot be read, is too large, or has a name that no object can have.
        """
        parcels = (self._parcel(path, self._prefix + name) for path, name in files)
        duplicate = self._catalogue.add_files(parcels, last=last)
        if duplicate is not None:
            name = duplicate.removeprefix(self._prefix)
            raise DataError(f"two files would become {self._address}{name}: rename one of them")

    def look(self) -> None:
        """List the objects of the folder.

        Raises:
            DataError: address, bucket or credentials are wrong.
            ResourceError: the network or the server failed.
        """
        for page in _existing_pages(self._bucket, self._prefix):
            self._catalogue.add_listed(page)

    def size_of(self, name: str) -> int | None:
        """Bytes of an object of the folder, ``None`` if it did not exist."""
        return self._catalogue.listed_size(self._prefix + name)

    def fetch(self, name: str, path: Path) -> None:
        """Write an object to a new file.

        Raises:
            DataError: it does not exist, or may not be read.
            ResourceError: the network or the server failed.
        """
        self._bucket.fetch(self._prefix + name, path)

    def refuse_others(self, refused: Callable[[str], bool]) -> None:
        """Raise :class:`DataError` if an object that no file becomes is ``refused``."""
        name = next(filter(refused, self._others()), None)
        if name is not None:
            raise self._other_photos(name)

    def protect(self, mark: str) -> None:
        """Replace objects only if they are a minority, in a folder that has the object ``mark`` of an earlier upload.

        The mark is emptied before the first of them is replaced, as it does not describe a mixture.

        Raises:
            DataError: objects of another size than the files would be replaced; those of the same size raise it as they
                are sent.
        """
        self._mark = mark
        there, others, key = self._catalogue.files_of_other_size()
        if 2 * others > there:
            raise self._other_photos(key.removeprefix(self._prefix))
        if others:
            self._prepare_replacement(key)
            log.info("%d of %d objects in %s are of another size, and replaced", others, there, self._uri)

    def log_other_objects(self) -> None:
        """Log the number of objects in the folder that no file becomes."""
        others = self._others()
        named = list(islice(others, _NAMED))
        more = sum(1 for _ in others)
        if named:
            shown = ", ".join(named) + (", ..." if more else "")
            log.info("%s holds %d other objects, which stay: %s", self._uri, len(named) + more, shown)

    def send(self, description: str) -> Uploaded:
        """Send the files that were loaded since the last call and are missing.

        Raises:
            DataError: a file or the bucket cannot be used; see :func:`send`.
            ResourceError: the network or the server failed.
        """
        objects, size = self._catalogue.files_total()
        with TransferProgress(description, objects, size) as progress:
            sender = _Sender(self._bucket, progress)
            sender.send_all(self._catalogue.files(last=False), self._connections, self._prepare_replacement)
            sender.send_all(self._catalogue.files(last=True), 1)
        self._catalogue.forget_files()
        return Uploaded(objects, sender.sent, sender.bytes, self._uri.rstrip("/"))

    def _prepare_replacement(self, key: str) -> None:
        """Empty the mark, or refuse to replace an object; see :meth:`protect`."""
        if self._mark is None:
            return
        mark = self._prefix + self._mark
        with self._replacing:
            size = self._catalogue.listed_size(mark)
            if size is None:
                raise self._other_photos(key.removeprefix(self._prefix))
            if size:
                self._bucket.write(mark, b"", _md5(b"").digest())
                self._catalogue.add_listed([Listed(mark, "", 0)])

    def _other_photos(self, name: str) -> DataError:
        return DataError(f"{self._uri} holds other photos, such as {name}: name an empty folder of the bucket")

    def _others(self) -> Iterator[str]:
        """Names of the objects that no file becomes."""
        return (key.removeprefix(self._prefix) for key in self._catalogue.listed_besides_files())

    def _parcel(self, path: Path, key: str) -> UploadItem:
        try:
            status = path.stat()
        except OSError as error:
            raise unreadable_file_error(path, error) from error
        reason = _refusal(key, status.st_size)
        if reason:
            raise DataError(f"{path} cannot become an object of {self._address}: it {reason}")
        return UploadItem(path, key, status.st_size, status.st_mtime_ns)


def check_reachable(uri: str) -> None:
    """Check that the folder ``uri`` can be listed, before work goes into the files to send.

    Raises:
        DataError: address, bucket or credentials are wrong.
        ResourceError: the network or the server failed.
    """
    name, prefix = parse_address(uri)
    next(_existing_pages(Bucket(name, 1), f"{prefix}/" if prefix else ""), None)


def _existing_pages(bucket: Bucket, prefix: str) -> Iterator[list[Listed]]:
    """Yield the objects of a folder, in pages."""
    try:
        yield from bucket.pages(prefix)
    except DataError as error:
        cause = error.__cause__
        if isinstance(cause, ClientError) and cause.response.get("Error", {}).get("Code") == "NoSuchBucket":
            address = f"s3://{bucket.name}/{prefix}"
            raise explain_upload(cause, address, host=bucket.host, signed=bucket.signed, reached=True) from cause
        raise


class _Sender:
    """Sender of files with a missing or different object.

    Attributes:
        sent: number of files sent.
        bytes: of those.
    """

    def __init__(self, bucket: Bucket, progress: TransferProgress) -> None:
        self.sent = self.bytes = 0
        self._bucket, self._progress = bucket, progress
        self._large, self._noting = threading.Semaphore(_LARGE_AT_ONCE), threading.Lock()

    def send_all(
        self, parcels: Iterable[UploadItem], connections: int, replacing: Callable[[str], None] = lambda _: None
    ) -> None:
        """Send files, ``connections`` at a time; ``replacing`` is called with the key before an object is replaced."""
        send = partial(self._send_counted, replacing=replacing)
        for_each(parcels, send, threads=connections, stop=self._bucket.stop)

    def _send_counted(self, parcel: UploadItem, replacing: Callable[[str], None]) -> None:
        with nullcontext() if parcel.size <= _SMALL else self._large:
            if self._bucket.stop.is_set():
                return
            sent = self._send(parcel, replacing)
        with self._noting:
            self.sent += sent
            self.bytes += parcel.size if sent else 0
            self._progress.advance(parcel.size)

    def _send(self, parcel: UploadItem, replacing: Callable[[str], None]) -> bool:
        """Send a file unless its object is the same; return True if it was sent."""
        body, md5 = _read(parcel)
        if parcel.etag == md5.hex() or (parcel.etag is not None and self._is_same(parcel, md5)):
            return False
        if parcel.etag is not None:
            replacing(parcel.key)
        self._bucket.write(parcel.key, body, md5)
        return True

    def _is_same(self, parcel: UploadItem, md5: bytes) -> bool:
        """Return True if an object of the file's size holds the file, although its etag is not the file's MD5."""
        if etag_matches(parcel.etag or "", parcel.path, parcel.size):
            return True
        return self._bucket.metadata(parcel.key).get(MD5_METADATA) == md5.hex()


def _read(parcel: UploadItem) -> tuple[bytes | Path, bytes]:
    """Read a file; return its bytes, or its path if it is large, and its MD5."""
    try:
        with parcel.path.open("rb", buffering=0) as file:
            body = file.read() if parcel.size <= _SMALL else None
            md5 = _md5(body) if body is not None else hashlib.file_digest(file, _md5)
            status = os.fstat(file.fileno())
    except OSError as error:
        raise unreadable_file_error(parcel.path, error) from error
    if (status.st_size, status.st_mtime_ns) != (parcel.size, parcel.modified):
        raise DataError(f"{parcel.path} was changed while it was sent: run the same command again")
    return parcel.path if body is None else body, md5.digest()


def unreadable_file_error(path: Path, error: OSError) -> DataError:
    """Error for a file that cannot be read."""
    why = (error.strerror or type(error).__name__).lower()
    return DataError(f"{path} cannot be read ({why}): make it readable, or move it out of the folder")


def _refusal(key: str, size: int) -> str | None:
    """Reason why a file cannot become the object ``key``, or ``None`` when it can."""
    reason = unusable_reason(key)
    if reason:
        return f"{reason}, rename it"
    if size > MAX_OBJECT_BYTES:
        return "is larger than the 5 TB that S3 takes, divide it"
    length = len(key.encode())
    if length > _LONGEST_KEY:
        return f"needs a key of {length} bytes and S3 takes {_LONGEST_KEY}, name a shorter folder or file"
    return None
