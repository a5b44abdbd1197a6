"""A bucket on an S3 server: who asks, how often, and what its errors mean in a sentence.

Credentials, region and endpoint come from where every AWS tool looks for them: ``AWS_*`` variables (such as
``AWS_PROFILE``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``), the files in ``~/.aws``, and the role of the machine.
"""

import hashlib
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, SSLError
from botocore.exceptions import ConnectionError as BotoConnectionError

from bincounter.data.s3.errors import BROKEN_OFF, DamagedError, explain_request, explain_settings, status
from bincounter.data.s3.mirror import Stored

log = logging.getLogger(__name__)

_PUBLIC = {"aft-vbi-pds": "us-east-1"}  # the bucket of ABID, and its region
_ATTEMPTS = 4  # times the attempts of botocore, which does not repeat a body that broke off
_CHUNK = 1 << 20  # bytes
_MD5 = re.compile(r"[0-9a-f]{32}")
_Answer = TypeVar("_Answer")


class Bucket:
    """The objects of one bucket, for reading by many threads.

    Without credentials, and for the public bucket of ABID, requests are anonymous. Errors are raised as
    :class:`DataError` where the address or the credentials are wrong, as :class:`ResourceError` where the network or
    the server is.

    Args:
        name: the bucket.
        connections: most requests at a time.
    """

    def __init__(self, name: str, connections: int) -> None:
        self.name = name
        self._reached = False
        try:
            self._client, self._signed = _connect(name, connections)
        except (BotoCoreError, ValueError) as error:
            raise explain_settings(error) from error
        self._client.meta.events.register("response-received.s3", self._note_answer)
        self._host = urlsplit(self._client.meta.endpoint_url).netloc.rpartition("@")[2]

    def objects(self, prefix: str) -> Iterator[tuple[str, Stored]]:
        """All keys that start with ``prefix``, in ascending order, a request per 1,000 of them."""
        request = {"Bucket": self.name, "Prefix": prefix}
        while True:
            page = self._patiently(lambda: self._client.list_objects_v2(**request), prefix)
            for item in page.get("Contents", ()):
                yield item["Key"], Stored(item.get("ETag", "").strip('"'), item["Size"])
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def read(self, key: str, file: IO[bytes], *, listed: Stored | None = None, unless: str = "") -> Stored | None:
        """Write the object ``key`` to ``file`` and check it against what the server said of it.

        Checked are its size (as announced and as listed), its MD5 where the server's name of the version is one, and
        the checksums it carries.

        Args:
            key: the object.
            file: empty, open for writing.
            listed: what a listing said of the object.
            unless: do nothing if the object's version has this etag.

        Returns:
            the version that was written, or ``None`` for nothing.

        Raises:
            MissingError: no such object.
            DeniedError: it exists or not, but is not for us to read.
        """

        def once() -> Stored | None:
            file.seek(0)
            file.truncate()
            condition = {"IfNoneMatch": f'"{unless}"'} if unless else {}
            try:
                answer = self._client.get_object(Bucket=self.name, Key=key, **condition)
            except ClientError as error:
                if status(error) == 304:
                    return None
                raise
            return _save(answer, file, listed, md5_etags=not self.name.endswith("--x-s3"))

        return self._patiently(once, key)

    def _patiently(self, request: Callable[[], _Answer], key: str) -> _Answer:
        """Repeat a request while that may help; a server that never answered is not asked again."""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(2**attempt * random.uniform(0.25, 0.5))
            try:
                return request()
            except (*BROKEN_OFF, ClientError) as error:
                last: Exception = error
                if self._is_final(error):
                    break
            except BotoCoreError as error:
                last = error
                break
        address = f"s3://{self.name}/{key}"
        raise explain_request(last, address, host=self._host, signed=self._signed, reached=self._reached) from last

    def _is_final(self, error: Exception) -> bool:
        """Whether asking again is in vain."""
        if isinstance(error, ClientError):
            return status(error) < 500 and status(error) not in (408, 429)
        never_answered = isinstance(error, BotoConnectionError | HTTPClientError) and not self._reached
        return isinstance(error, SSLError) or never_answered

    def _note_answer(self, *, exception: Exception | None, **_: object) -> None:
        self._reached = self._reached or exception is None


def _connect(bucket: str, connections: int) -> tuple[Any, bool]:
    """A client for ``bucket``, and whether it signs its requests."""
    for name in ("boto3", "botocore", "urllib3"):
        if logging.getLogger(name).isEnabledFor(logging.DEBUG):
            logging.getLogger(name).setLevel(logging.INFO)  # at DEBUG they write session tokens
    session = boto3.Session(region_name=os.environ.get("AWS_REGION"))  # boto3 reads AWS_DEFAULT_REGION alone
    config = Config(
        retries={"mode": "standard"},
        connect_timeout=10,
        read_timeout=30,
        max_pool_connections=connections,
        user_agent_extra="bincounter",
    )
    unsigned = Config(signature_version=UNSIGNED)
    client = session.client("s3", config=config.merge(unsigned))  # looks for no credentials, and tells the endpoint
    region = None
    if "amazonaws." in client.meta.endpoint_url:
        region = _PUBLIC.get(bucket)
    elif not (client.meta.config.s3 or {}).get("addressing_style"):
        # Few other services have a host name per bucket.
        config = config.merge(Config(s3={"addressing_style": "path"}))
    signed = region is None and session.get_credentials() is not None
    if not signed:
        config = config.merge(unsigned)
    return session.client("s3", config=config, region_name=region), signed


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
    # The etag of an object in parts, encrypted with KMS or a customer's key, or in a directory bucket is no MD5.
    plain = answer.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in answer
    if md5_etags and plain and _MD5.fullmatch(etag) and etag != digest.hexdigest():
        raise DamagedError("its MD5 is not the one announced")
    return Stored(etag, size)
