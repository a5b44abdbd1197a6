"""Repetition of a failed request through boto, which returns the response or raises a named error.

boto is slower than obstore, but it follows redirects, checks every checksum and names each error.
"""

import base64
import hashlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, SSLError
from botocore.exceptions import ConnectionError as BotoConnectionError

from bincounter.data.s3.credentials import DIRECTORY_BUCKET, S3Settings
from bincounter.data.s3.error_messages import (
    TRANSIENT_ERRORS,
    DamagedError,
    LostError,
    explain_request,
    explain_upload,
    http_status,
)
from bincounter.data.s3.objects import Listed, Stored, is_md5_etag
from bincounter.errors import BinCounterError

_ATTEMPTS = 3  # times the attempts of botocore, which does not repeat a body that was cut short
_CHUNK = 1 << 20  # bytes
_Response = TypeVar("_Response")


class BotoFallback:
    """Requests to one bucket; errors are raised as one sentence.

    Args:
        bucket: its name.
        settings: of its requests.
        stop: once it is set, no request is started.

    Attributes:
        reached: the server has responded; otherwise requests are not repeated.
    """

    def __init__(self, bucket: str, settings: S3Settings, stop: threading.Event) -> None:
        self.reached = False
        self._bucket, self._settings, self._stop = bucket, settings, stop
        self._opened: Any = None
        self._opening = threading.Lock()

    def pages(self, prefix: str, *, after: str = "") -> Iterator[list[Listed]]:
        """List the keys that start with ``prefix`` and come after ``after``, up to 1,000 in a page."""
        request = {"Bucket": self._bucket, "Prefix": prefix} | ({"StartAfter": after} if after else {})
        while True:
            page = self._repeat(lambda client: client.list_objects_v2(**request), prefix)
            yield [
                Listed(item["Key"], item.get("ETag", "").strip('"'), item["Size"]) for item in page.get("Contents", ())
            ]
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def fetch(self, key: str, path: Path, *, listed: Stored | None = None, unless: str = "") -> Stored | None:
        """Write an object to a file and flush it to disk; see :meth:`bincounter.data.s3.bucket.Bucket.fetch`.

        Its size (as announced and as listed), its MD5 if the etag is one, and its checksums are verified.
        """

        def request(client: Any) -> Stored | None:
            condition = {"IfNoneMatch": f'"{unless}"'} if unless else {}
            try:
                response = client.get_object(Bucket=self._bucket, Key=key, **condition)
            except ClientError as error:
                if http_status(error) == 304:
                    return None
                raise
            return _save(response, path, listed, md5_etags=not self._bucket.endswith(DIRECTORY_BUCKET))

        return self._repeat(request, key)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Read ``length`` bytes of an object from byte ``start``."""

        def request(client: Any) -> bytes:
            span = f"bytes={start}-{start + length - 1}"
            body: bytes = client.get_object(Bucket=self._bucket, Key=key, Range=span)["Body"].read()
            if len(body) != length:
                raise DamagedError(f"{len(body)} of {length} bytes")
            return body

        return self._repeat(request, key)

    def write(self, key: str, body: bytes | Path, md5: bytes, metadata: dict[str, str]) -> None:
        """Send an object at once; the server checks it by its MD5."""
        arguments = {
            "Bucket": self._bucket,
            "Key": key,
            "ContentMD5": base64.b64encode(md5).decode(),
            "Metadata": metadata,
        }

        def request(client: Any) -> None:
            if isinstance(body, Path):
                with body.open("rb") as file:
                    client.put_object(**arguments, Body=file)
            else:
                client.put_object(**arguments, Body=body)

        self._repeat(request, key, explain_upload)

    def metadata(self, key: str) -> dict[str, str]:
        """Read the user metadata of an object; names in lower case, since not every service keeps their case."""
        response = self._repeat(lambda client: client.head_object(Bucket=self._bucket, Key=key), key)
        return {name.lower(): value for name, value in response["Metadata"].items()}

    def bucket_region(self) -> str | None:
        """Look up the region of the bucket; ``None`` if the server does not report it."""
        try:
            response = self._client().head_bucket(Bucket=self._bucket)
        except ClientError as error:  # a refusal holds the region, too
            response = error.response
        except (BotoCoreError, LostError):
            return None
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        return response.get("BucketRegion") or headers.get("x-amz-bucket-region")

    def _client(self) -> Any:
        with self._opening:
            if self._opened is None:
                client = self._opened = self._settings.client
                client.meta.events.register("response-received.s3", self._note_response)
                client.meta.events.register("response-received.s3.HeadBucket", _stop_when_lost)
            return self._opened

    def _repeat(
        self,
        request: Callable[[Any], _Response],
        key: str,
        explain: Callable[..., BinCounterError] = explain_request,
    ) -> _Response:
        """Make a request, again if the connection broke; botocore itself repeats the other errors that may pass."""
        client = self._client()
        last: Exception = DamagedError("stopped")
        for attempt in range(_ATTEMPTS):
            if self._stop.wait(2**attempt * random.uniform(0.25, 0.5) if attempt else 0):
                break
            try:
                return request(client)
            except TRANSIENT_ERRORS as error:
                last = error
                unreached = isinstance(error, BotoConnectionError | HTTPClientError) and not self.reached
                if unreached or isinstance(error, SSLError):
                    break
            except (BotoCoreError, ClientError, LostError) as error:
                last = error
                break
        settings = self._settings
        raise explain(
            last, f"s3://{self._bucket}/{key}", host=settings.host, signed=settings.signed, reached=self.reached
        ) from last

    def _note_response(self, *, exception: Exception | None, **_: object) -> None:
        self.reached = self.reached or exception is None


def _stop_when_lost(*, parsed_response: dict[str, Any] | None, **_: object) -> None:
    """Keep botocore from looking up the bucket's region endlessly when redirects do not include it."""
    metadata = (parsed_response or {}).get("ResponseMetadata", {})
    if metadata.get("HTTPStatusCode") in (301, 302, 307) and "x-amz-bucket-region" not in metadata["HTTPHeaders"]:
        raise LostError


def _save(response: dict[str, Any], path: Path, listed: Stored | None, *, md5_etags: bool) -> Stored:
    """Write a body to a file; raises :class:`DamagedError` if it does not match the headers."""
    digest, size = hashlib.md5(usedforsecurity=False), 0
    with path.open("wb") as file:
        for chunk in response["Body"].iter_chunks(_CHUNK):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    etag = response.get("ETag", "").strip('"')
    announced = response.get("ContentLength", size)
    expected = listed.size if listed and listed.etag == etag else announced
    if size != announced or size != expected:
        raise DamagedError(f"{size} of {expected} bytes")
    # The etag of an object encrypted with KMS or a customer's key, or in a directory bucket is no MD5.
    plain = response.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in response
    if md5_etags and plain and is_md5_etag(etag) and etag != digest.hexdigest():
        raise DamagedError("its MD5 does not match its etag")
    return Stored(etag, size)
