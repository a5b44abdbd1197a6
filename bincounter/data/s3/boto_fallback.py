"""A bucket through boto: slower than obstore, but it follows redirects, checks every checksum and names each error."""

import base64
import hashlib
import logging
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, SSLError
from botocore.exceptions import ConnectionError as BotoConnectionError

from bincounter.data.s3.credentials import DIRECTORY_BUCKET, Connection, Once
from bincounter.data.s3.error_messages import (
    BROKEN_OFF,
    DamagedError,
    LostError,
    explain_request,
    explain_sending,
    status,
)
from bincounter.data.s3.objects import Listed, Stored, is_md5
from bincounter.errors import BinCounterError

log = logging.getLogger(__name__)

_ATTEMPTS = 4  # times the attempts of botocore, which does not repeat a body that broke off
_CHUNK = 1 << 20  # bytes
_Answer = TypeVar("_Answer")


class PatientBucket:
    """The objects of one bucket; requests are repeated while that may help, and then explained in a sentence.

    Args:
        bucket: its name.
        connection: to the server; one that never answered is not asked for long.
        closed: once it is set, no request is repeated.
    """

    def __init__(self, bucket: str, connection: Connection, closed: threading.Event) -> None:
        self._name, self._connection, self._closed = bucket, connection, closed
        self._listening = Once(self._listen)

    @property
    def _client(self) -> Any:
        return self._listening()

    def _listen(self) -> Any:
        client = self._connection.client
        client.meta.events.register("response-received.s3", self._note_answer)
        client.meta.events.register("response-received.s3.HeadBucket", _stop_when_lost)
        return client

    def pages(self, prefix: str, *, after: str = "") -> Iterator[list[Listed]]:
        """All keys that start with ``prefix`` and come after ``after``, up to 1,000 in a page."""
        request = {"Bucket": self._name, "Prefix": prefix} | ({"StartAfter": after} if after else {})
        while True:
            page = self._patiently(lambda: self._client.list_objects_v2(**request), prefix)
            yield [
                Listed(item["Key"], item.get("ETag", "").strip('"'), item["Size"]) for item in page.get("Contents", ())
            ]
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def read(self, key: str, file: IO[bytes], *, listed: Stored | None = None, unless: str = "") -> Stored | None:
        """Write an object to a file and check it against what the server said of it.

        Checked are its size (as announced and as listed), its MD5 where the server's name of the version is one, and
        the checksums it carries. See :meth:`bincounter.data.s3.bucket.Bucket.read`.
        """

        def once() -> Stored | None:
            file.seek(0)
            file.truncate()
            condition = {"IfNoneMatch": f'"{unless}"'} if unless else {}
            try:
                answer = self._client.get_object(Bucket=self._name, Key=key, **condition)
            except ClientError as error:
                if status(error) == 304:
                    return None
                raise
            return _save(answer, file, listed, md5_etags=not self._name.endswith(DIRECTORY_BUCKET))

        return self._patiently(once, key)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Read a part of an object, all of it or an error."""

        def once() -> bytes:
            span = f"bytes={start}-{start + length - 1}"
            body: bytes = self._client.get_object(Bucket=self._name, Key=key, Range=span)["Body"].read()
            if len(body) != length:
                raise DamagedError(f"{len(body)} of {length} bytes")
            return body

        return self._patiently(once, key)

    def write(self, key: str, body: bytes | Path, md5: bytes, notes: dict[str, str]) -> None:
        """Send an object at once; the server checks it by its MD5."""

        def once() -> None:
            request = {
                "Bucket": self._name,
                "Key": key,
                "ContentMD5": base64.b64encode(md5).decode(),
                "Metadata": notes,
            }
            if isinstance(body, Path):
                with body.open("rb") as file:
                    self._client.put_object(**request, Body=file)
            else:
                self._client.put_object(**request, Body=body)

        self._patiently(once, key, explain_sending)

    def metadata(self, key: str) -> dict[str, str]:
        """The user metadata of an object; names in lower case, since not every service keeps theirs."""
        answer = self._patiently(lambda: self._client.head_object(Bucket=self._name, Key=key), key)
        return {name.lower(): value for name, value in answer["Metadata"].items()}

    def home(self) -> str | None:
        """The region that the bucket says it is in, or ``None``."""
        try:
            answer = self._client.head_bucket(Bucket=self._name)
        except ClientError as error:  # who is refused is told the region, too
            answer = error.response
        except (BotoCoreError, LostError):
            return None
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        return answer.get("BucketRegion") or headers.get("x-amz-bucket-region")

    def _patiently(
        self,
        request: Callable[[], _Answer],
        key: str,
        explain: Callable[..., BinCounterError] = explain_request,
    ) -> _Answer:
        """Repeat a request while that may help; a server that never answered is not asked again."""
        for attempt in range(_ATTEMPTS):
            if attempt and self._closed.wait(2**attempt * random.uniform(0.25, 0.5)):
                break
            try:
                return request()
            except (*BROKEN_OFF, ClientError) as error:
                last: Exception = error
                if self._is_final(error):
                    break
            except (BotoCoreError, LostError) as error:
                last = error
                break
        address = f"s3://{self._name}/{key}"
        connection = self._connection
        raise explain(
            last, address, host=connection.host, signed=connection.signed, reached=connection.reached
        ) from last

    def _is_final(self, error: Exception) -> bool:
        """Whether asking again is in vain."""
        if isinstance(error, ClientError):
            return status(error) < 500 and status(error) not in (408, 429)
        never_answered = isinstance(error, BotoConnectionError | HTTPClientError) and not self._connection.reached
        return isinstance(error, SSLError) or never_answered

    def _note_answer(self, *, exception: Exception | None, **_: object) -> None:
        self._connection.reached = self._connection.reached or exception is None


def _stop_when_lost(*, parsed_response: dict[str, Any] | None, **_: object) -> None:
    """Keep botocore from asking where a bucket is when it is told to ask elsewhere where that is, and so on."""
    metadata = (parsed_response or {}).get("ResponseMetadata", {})
    if metadata.get("HTTPStatusCode") in (301, 302, 307) and "x-amz-bucket-region" not in metadata["HTTPHeaders"]:
        raise LostError


def _save(answer: dict[str, Any], file: IO[bytes], listed: Stored | None, *, md5_etags: bool) -> Stored:
    """Write the body of ``answer`` to ``file``; raises :class:`DamagedError` where it is not what was announced."""
    digest, size = hashlib.md5(usedforsecurity=False), 0
    for chunk in answer["Body"].iter_chunks(_CHUNK):
        file.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    etag = answer.get("ETag", "").strip('"')
    announced = answer.get("ContentLength", size)
    expected = listed.size if listed and listed.etag == etag else announced
    if size != announced or size != expected:
        raise DamagedError(f"{size} of {expected} bytes")
    # The etag of an object encrypted with KMS or a customer's key, or in a directory bucket is no MD5.
    plain = answer.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in answer
    if md5_etags and plain and is_md5(etag) and etag != digest.hexdigest():
        raise DamagedError("its MD5 is not the one announced")
    return Stored(etag, size)
