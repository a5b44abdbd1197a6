"""``Bucket``: list, get, get ranges, put through obstore, checked by etag.

obstore moves the bytes: of the maintained clients it took the least time and CPU per small object
(``benchmarks/s3.py``). A request that fails is repeated through boto, which either succeeds (other regions, odd keys,
etags that are not MD5s) or raises an error with a name, which becomes one sentence.
"""

import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import obstore
from obstore.exceptions import BaseError, NotModifiedError
from obstore.store import S3Store

from bincounter.data.s3 import objects
from bincounter.data.s3.boto_fallback import BotoFallback
from bincounter.data.s3.credentials import DIRECTORY_BUCKET, S3Settings
from bincounter.data.s3.error_messages import DamagedError, MissingError
from bincounter.data.s3.objects import Listed, Stored
from bincounter.errors import DataError

log = logging.getLogger(__name__)

MD5_METADATA = "bincounter-md5"
"""User metadata of every object that is sent: an etag is not an MD5 if the bucket encrypts with KMS."""

_SMALL = 1 << 20  # bytes; larger bodies are written as they arrive
_AT_ONCE = 64 << 20  # bytes; larger files are sent in parts
_PART = 16 << 20
_RETRIES = 8  # by obstore, which waits 20 seconds between them
# obstore also raises FileNotFoundError, and ValueError for keys that it cannot parse.
_QUICK = (BaseError, DamagedError, OSError, ValueError)


class _UnverifiedError(DamagedError):
    """A body that cannot be verified by its etag."""


class Bucket:
    """The objects of one bucket; its methods may be called from many threads, in one process.

    Wrong addresses and credentials raise :class:`DataError`, failures of the network or the server
    :class:`ResourceError`.

    Args:
        name: the bucket.
        connections: most requests at a time.
        region: ``None`` for that of the settings. A bucket in another region is found.

    Attributes:
        stop: once it is set, no failed request is repeated; set when a transfer ends by an error or Ctrl-C.
    """

    def __init__(self, name: str, connections: int = 64, region: str | None = None) -> None:
        self.name, self.stop = name, threading.Event()
        self._connections = connections
        self._responded = False  # so that a 404 is an object's, not the bucket's
        self._etags_are_md5s = True
        self._region_checked = False
        self._deciding = threading.Lock()
        self._open(region)

    def _open(self, region: str | None) -> None:
        settings = self._settings = S3Settings(self.name, self._connections, region)
        self._lister = settings.store(retries=0)  # no retries: a wrong address or credential shows at once
        self._store = settings.store(retries=_RETRIES)
        self._fallback = BotoFallback(self.name, settings, self.stop)

    @property
    def signed(self) -> bool:
        """True if requests carry credentials."""
        return self._settings.signed

    @property
    def in_order(self) -> bool:
        """True if listings are in order of key, unlike those of directory buckets."""
        return not self.name.endswith(DIRECTORY_BUCKET)

    @property
    def host(self) -> str:
        """Host of the server, for messages."""
        return self._settings.host

    def pages(self, prefix: str, *, after: str = "") -> Iterator[list[Listed]]:
        """List all keys below a folder, a request per 1,000 of them.

        Args:
            prefix: empty, or a folder with its slash.
            after: skip the keys up to this one, if they are in order.
        """
        if self._lister is not None:
            try:
                for page in obstore.list(self._lister, prefix or None, offset=after or None, chunk_size=1000):
                    yield [Listed(item["path"], (item["e_tag"] or "").strip('"'), item["size"]) for item in page]
                    self._note_response()
                    after = page[-1]["path"] if page else after
                return
            except _QUICK as error:
                log.debug("listing s3://%s/%s through boto: %s", self.name, prefix, type(error).__name__)
                self._find_region()
        yield from self._fallback.pages(prefix, after=after)

    def fetch(self, key: str, path: Path, *, listed: Stored | None = None, unless: str = "") -> Stored | None:
        """Write an object to a new file, flush it to disk and verify it by the server's headers.

        Its size (as announced and as listed) and its etag are verified; if the etag cannot be computed, the object is
        read through boto, which verifies its checksums.

        Args:
            key: the object.
            path: the file.
            listed: size and etag of the object in a listing.
            unless: do nothing if the object's version has this etag.

        Returns:
            the version that was written, or ``None`` for nothing.

        Raises:
            MissingError: no such object.
            DeniedError: reading it is not permitted; it may not exist.
            OSError: the file cannot be written.
        """
        store = self._store if self._etags_are_md5s else None
        if store is None or (listed and not objects.is_computable_etag(listed.etag, listed.size)):
            return self._fallback.fetch(key, path, listed=listed, unless=unless)
        for _ in range(2):
            try:
                return self._quickly(store, key, path, listed, unless)
            except MissingError:
                raise
            except (BaseError, DamagedError) as error:
                failure = error
            if not self._find_region() or self._store is None:
                break
            store = self._store
        stored = self._fallback.fetch(key, path, listed=listed, unless=unless)
        if isinstance(failure, _UnverifiedError) and stored:
            self._doubt_etags(path, stored)
        return stored

    def _doubt_etags(self, path: Path, stored: Stored) -> None:
        """Stop computing etags once one does not belong to a body that is intact."""
        if not objects.is_md5_etag(stored.etag) or objects.etag_matches(stored.etag, path, stored.size):
            return
        with self._deciding:
            trusted, self._etags_are_md5s = self._etags_are_md5s, False
        if trusted:
            log.info(
                "the etags of s3://%s are not MD5s: reading through boto for its checksums, which is slower",
                self.name,
            )

    def _quickly(self, store: S3Store, key: str, path: Path, listed: Stored | None, unless: str) -> Stored | None:
        """Read through obstore; all errors but a missing object are to be repeated through boto."""
        try:
            response = obstore.get(store, key, options={"if_none_match": f'"{unless}"'} if unless else None)
        except NotModifiedError:
            return None
        except FileNotFoundError as error:
            if self._responded or "NoSuchKey" in str(error):  # otherwise the bucket may be missing
                raise MissingError(f"s3://{self.name}/{key} does not exist: correct the address") from error
            raise DamagedError("not found") from error
        except (OSError, ValueError) as error:
            raise DamagedError(type(error).__name__) from error
        self._note_response()
        etag, size = (response.meta["e_tag"] or "").strip('"'), response.meta["size"]
        digest, written = hashlib.md5(usedforsecurity=False), 0
        with path.open("wb", buffering=0) as file:
            if size <= _SMALL:
                body = response.bytes()
                digest.update(body)
                written = file.write(body)
            else:
                for chunk in response.stream(min_chunk_size=_SMALL):
                    digest.update(chunk)
                    written += file.write(chunk)
            os.fsync(file.fileno())
        if written != size or (listed and listed.etag == etag and listed.size != size):
            raise DamagedError(f"{written} of {size} bytes")
        if digest.hexdigest() != etag and not objects.etag_matches(etag, path, size):
            raise _UnverifiedError("its MD5 does not match its etag")
        return Stored(etag, size)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Read a range of an object.

        Args:
            key: the object.
            start: bytes from the object's beginning.
            length: bytes, not zero.

        Raises:
            MissingError: no such object.
            ResourceError: the object is shorter, or the network or the server failed.
        """
        if self._store is not None:
            try:
                part = bytes(obstore.get_range(self._store, key, start=start, length=length))
                if len(part) == length:
                    return part
            except _QUICK:
                self._find_region()
        return self._fallback.read_range(key, start, length)

    def write(self, key: str, body: bytes | Path, md5: bytes) -> None:
        """Send an object, and check by the response that it arrived intact.

        Args:
            key: the object, which is replaced if it exists.
            body: its bytes, or the file that holds them.
            md5: of the body, which is also stored in the object's metadata (:data:`MD5_METADATA`).

        Raises:
            DataError: no such bucket, no permission, or the file is changed while it is sent.
            OSError: the file cannot be read.
        """
        if isinstance(body, Path) and body.stat().st_size > _AT_ONCE:
            self._send_parts(key, body, md5)
            return
        data = body.read_bytes() if isinstance(body, Path) else body
        if hashlib.md5(data, usedforsecurity=False).digest() != md5:
            raise DataError(f"{key} was changed while it was sent: run the same command again")
        metadata, sent = {MD5_METADATA: md5.hex()}, False
        if self._store is not None:
            with suppress(*_QUICK):
                response = obstore.put(self._store, key, data, attributes=metadata, use_multipart=False)
                # The signature holds the body's SHA-256, so that the server has checked it whatever its etag is.
                if not self._etags_are_md5s or (response["e_tag"] or "").strip('"') == md5.hex():
                    return
                sent = True
        self._find_region()
        self._fallback.write(key, data, md5, metadata)
        if sent:  # and its MD5 is checked now: the body was intact, but its etag is not an MD5
            self._etags_are_md5s = False

    def _send_parts(self, key: str, path: Path, md5: bytes) -> None:
        """Send a large file in parts, signed with their SHA-256, and compare the etag of the whole."""
        size = path.stat().st_size
        etag = ""
        if self._store is not None:
            with suppress(*_QUICK):
                response = obstore.put(
                    self._store, key, path, attributes={MD5_METADATA: md5.hex()}, chunk_size=_PART, max_concurrency=4
                )
                etag = (response["e_tag"] or "").strip('"')
        if not etag:
            self._find_region()
            self._fallback.write(key, path, md5, {MD5_METADATA: md5.hex()})
        elif self._etags_are_md5s and not objects.etag_matches(etag, path, size):
            if not objects.etag_matches(md5.hex(), path, size):
                raise DataError(f"{path} was changed while it was sent: run the same command again")
            self._etags_are_md5s = False

    def metadata(self, key: str) -> dict[str, str]:
        """The user metadata of an object, names in lower case."""
        return self._fallback.metadata(key)

    def _note_response(self) -> None:
        self._responded = self._fallback.reached = True

    def _find_region(self) -> bool:
        """Look up the bucket's region, once; ``True`` if that is another and requests go there from now on."""
        with self._deciding:
            if self._region_checked:
                return False
            self._region_checked = True
            region = self._fallback.bucket_region()
            if region is None or region == self._settings.region:
                return False
            log.info("s3://%s is in %s", self.name, region)
            self._open(region)
            return True
