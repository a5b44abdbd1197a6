"""Credentials, region, endpoint and CA bundle, found by botocore, and the clients made from them.

botocore reads the ``AWS_*`` variables (such as ``AWS_PROFILE``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``), the files in
``~/.aws`` and the role of the machine, as every AWS tool does.
"""

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from botocore import UNSIGNED
from botocore.config import Config
from botocore.configprovider import ConfiguredEndpointProvider
from botocore.exceptions import BotoCoreError
from botocore.loaders import Loader, create_loader
from botocore.session import Session
from obstore.exceptions import BaseError
from obstore.store import S3Store

from bincounter.data.s3.error_messages import explain_settings
from bincounter.errors import DataError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Credential

DIRECTORY_BUCKET = "--x-s3"
"""Suffix of the names of directory buckets (S3 Express), which need sessions of their own."""

CONNECT_TIMEOUT = 10
"""Seconds."""
READ_TIMEOUT = 30
"""Seconds without a byte, after which a request counts as lost."""

_PUBLIC = {"aft-vbi-pds": "us-east-1"}  # the bucket of ABID, and its region
_CREDENTIALS_LAST = timedelta(minutes=5)  # until botocore is called again, which renews those about to expire
_PLAIN = re.compile(r"https?://[\w.-]+(:\d+)?(/[\w./-]*)?", re.ASCII)


class S3Settings:
    """Settings of the requests to one bucket, and the clients made from them.

    Without credentials, and for the public bucket of ABID, requests are anonymous.

    Args:
        bucket: its name.
        connections: most requests at a time.
        region: ``None`` for that of the settings.

    Attributes:
        signed: requests carry credentials.

    Raises:
        DataError: the settings cannot be used; so may every method and property.
    """

    def __init__(self, bucket: str, connections: int, region: str | None = None) -> None:
        for name in ("boto3", "botocore", "urllib3"):
            if logging.getLogger(name).isEnabledFor(logging.DEBUG):
                logging.getLogger(name).setLevel(logging.INFO)  # at DEBUG they write session tokens
        self._bucket, self._connections = bucket, connections
        self._client: Any = None
        self._making = threading.Lock()
        with _explained():
            self._session = session = Session()
            session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
            self._read(region)

    def _read(self, region: str | None) -> None:
        session = self._session
        config = Config(
            retries={"mode": "standard"},
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            max_pool_connections=self._connections,
            user_agent_extra="bincounter",
        )
        configured = self._configured_endpoint()
        custom = configured is not None and "amazonaws." not in configured
        self._plain: str | None = None  # an endpoint that botocore would use as it is
        if custom and not (session.get_scoped_config().get("s3") or {}).get("addressing_style"):
            config = config.merge(Config(s3={"addressing_style": "path"}))  # few others have a host name per bucket
            self._plain = configured if _PLAIN.fullmatch(configured or "") else None
        public = None if custom else _PUBLIC.get(self._bucket)
        self._credentials = None if public else session.get_credentials()
        self.signed = self._credentials is not None
        if not self.signed:
            config = config.merge(Config(signature_version=UNSIGNED))
        # botocore itself reads AWS_DEFAULT_REGION alone.
        found = region or os.environ.get("AWS_REGION") or session.get_config_variable("region")
        self._region: str | None = public or found
        self._config = config

    def _configured_endpoint(self) -> str | None:
        session = self._session
        if session.get_config_variable("ignore_configured_endpoint_urls"):
            return None
        provider = ConfiguredEndpointProvider(
            full_config=session.full_config, scoped_config=session.get_scoped_config(), client_name="s3"
        )
        endpoint: str | None = provider.provide()
        return endpoint

    @property
    def client(self) -> Any:
        """Client of botocore, created lazily: creation takes longer than listing thousands of objects."""
        with self._making, _explained():
            if self._client is None:
                self._client = self._session.create_client("s3", config=self._config, region_name=self._region)
            return self._client

    @property
    def region(self) -> str:
        """Region that requests are signed for."""
        region = self._region if self._plain else self.client.meta.region_name
        return region if region and region != "aws-global" else "us-east-1"

    @property
    def host(self) -> str:
        """Host of the server, for messages."""
        return urlsplit(self._plain or self.client.meta.endpoint_url).netloc.rpartition("@")[2]

    def store(self, *, retries: int) -> S3Store | None:
        """Open the bucket with obstore; ``None`` if obstore cannot use the settings.

        Args:
            retries: of a request without a response, or with a status of 500 or above.
        """
        if self._bucket.endswith(DIRECTORY_BUCKET):
            return None
        endpoint, virtual = self._endpoint()
        options: ClientConfig = {
            "allow_http": endpoint.startswith("http:"),
            "connect_timeout": f"{CONNECT_TIMEOUT}s",
            "read_timeout": f"{READ_TIMEOUT}s",
            "timeout": "1h",  # of a whole request: shards are large
            "pool_max_idle_per_host": str(self._connections),
            "user_agent": "bincounter",
        }
        authorities = self._authorities()
        if authorities:
            options["root_certificate"] = authorities
        try:
            return S3Store(
                self._bucket,
                endpoint=endpoint.rstrip("/"),
                region=self.region,
                virtual_hosted_style_request=virtual,
                skip_signature=not self.signed,
                client_options=options,
                credential_provider=self._provider(),
                retry_config={
                    "max_retries": retries,
                    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=5), "base": 2},
                    "retry_timeout": timedelta(seconds=READ_TIMEOUT),  # a read timeout is not waited for twice
                },
            )
        except (BaseError, ValueError):  # settings that obstore does not know
            return None

    def _endpoint(self) -> tuple[str, bool]:
        """Address of the bucket's objects, and True if its host name includes the bucket."""
        if self._plain:
            return self._plain, False
        client = self.client
        with _explained():
            url = urlsplit(client.generate_presigned_url("get_object", Params={"Bucket": self._bucket, "Key": "key"}))
        virtual = url.path == "/key"
        folder = url.path.removesuffix("/key" if virtual else f"/{self._bucket}/key")
        return f"{url.scheme}://{url.netloc}{folder}", virtual

    def _provider(self) -> "Callable[[], S3Credential] | None":
        """Function that returns the credentials, which obstore calls again now and then."""
        credentials = self._credentials
        if credentials is None:
            return None

        def current() -> "S3Credential":
            frozen = credentials.get_frozen_credentials()
            return {
                "access_key_id": frozen.access_key,
                "secret_access_key": frozen.secret_key,
                "token": frozen.token,
                "expires_at": datetime.now(UTC) + _CREDENTIALS_LAST,
            }

        return current

    def _authorities(self) -> bytes | None:
        """Certificates of authorities to trust besides the usual ones."""
        bundle = self._session.get_config_variable("ca_bundle")
        if not bundle:
            return None
        try:
            return Path(bundle).expanduser().read_bytes()
        except OSError as error:
            raise DataError(
                f"the certificates in {bundle} cannot be read ({error.strerror}): correct AWS_CA_BUNDLE or "
                "ca_bundle in ~/.aws/config"
            ) from error


@cache
def _loader(data_path: str | None) -> Loader:
    """Loader of service models, shared by all buckets: reading them takes longer than listing a bucket."""
    return create_loader(data_path)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (BotoCoreError, ValueError) as error:
        raise explain_settings(error) from error
