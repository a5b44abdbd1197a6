"""Who asks an S3 server, and where it is.

Credentials, region and endpoint come from where every AWS tool looks for them: ``AWS_*`` variables (such as
``AWS_PROFILE``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``), the files in ``~/.aws``, and the role of the machine.
"""

import logging
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from botocore import UNSIGNED
from botocore.config import Config
from botocore.configprovider import ConfiguredEndpointProvider
from botocore.exceptions import BotoCoreError
from botocore.loaders import Loader, create_loader
from botocore.session import Session
from obstore.store import S3Store

from bincounter.data.s3.errors import explain_settings
from bincounter.errors import DataError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Credential

_PUBLIC = {"aft-vbi-pds": "us-east-1"}  # the bucket of ABID, and its region
_PLAIN = re.compile(r"https?://[\w.-]+(:\d+)?(/[\w./-]*)?", re.ASCII)
_CONNECTING = 10  # seconds at most
_SILENCE = 30  # seconds without a byte, after which a request counts as lost
_CREDENTIALS_LAST = timedelta(minutes=5)  # before boto is asked again, which renews them when they are about to expire
DIRECTORY_BUCKET = "--x-s3"
"""Ends the names of directory buckets (S3 Express), which need sessions of their own."""


@cache
def _models(data_path: str | None) -> Loader:
    """What botocore knows of services, which takes longer to read than a bucket to list: read once for all buckets."""
    return create_loader(data_path)


class Connection:
    """How one bucket is reached: a client of boto3's kind, and stores of obstore that ask the same server.

    Without credentials, and for the public bucket of ABID, requests are anonymous.

    Args:
        bucket: its name.
        connections: most requests at a time.
        region: ``None`` for that of the settings.

    Attributes:
        signed: whether requests carry credentials.
    """

    def __init__(self, bucket: str, connections: int, region: str | None = None) -> None:
        for name in ("boto3", "botocore", "urllib3"):
            if logging.getLogger(name).isEnabledFor(logging.DEBUG):
                logging.getLogger(name).setLevel(logging.INFO)  # at DEBUG they write session tokens
        self._bucket, self._connections = bucket, connections
        self._session = Session()
        self._session.register_component("data_loader", _models(self._session.get_config_variable("data_path")))
        # botocore itself reads AWS_DEFAULT_REGION alone.
        region = region or os.environ.get("AWS_REGION") or self._session.get_config_variable("region")
        configured = self._configured_endpoint()
        elsewhere = configured is not None and "amazonaws." not in configured
        config = Config(
            retries={"mode": "standard"},
            connect_timeout=_CONNECTING,
            read_timeout=_SILENCE,
            max_pool_connections=connections,
            user_agent_extra="bincounter",
        )
        self._plain: str | None = None  # an endpoint that botocore would use as it is
        if elsewhere and not (self._session.get_scoped_config().get("s3") or {}).get("addressing_style"):
            config = config.merge(Config(s3={"addressing_style": "path"}))  # few others have a host name per bucket
            self._plain = configured if configured and _PLAIN.fullmatch(configured) else None
        public = None if elsewhere else _PUBLIC.get(bucket)
        self._credentials = None if public else self._session.get_credentials()
        self.signed = self._credentials is not None
        if not self.signed:
            config = config.merge(Config(signature_version=UNSIGNED))
        self._config, self._region = config, public or region

    @cached_property
    def client(self) -> Any:
        """botocore's, which takes longer to make than an unchanged folder of thousands to be listed.

        Raises:
            DataError: the settings cannot be used.
        """
        try:
            return self._session.create_client("s3", config=self._config, region_name=self._region)
        except (BotoCoreError, ValueError) as error:
            raise explain_settings(error) from error

    @property
    def region(self) -> str:
        """That requests are signed for."""
        region = self._region if self._plain else self.client.meta.region_name
        return region if region and region != "aws-global" else "us-east-1"

    @property
    def host(self) -> str:
        """Of the server, for messages."""
        return urlsplit(self._plain or self.client.meta.endpoint_url).netloc.rpartition("@")[2]

    def store(self, *, retries: int) -> S3Store | None:
        """Open the bucket with obstore; ``None`` where that cannot speak to it.

        Args:
            retries: of a request that was not answered, or with a status of 500 or above.
        """
        if self._bucket.endswith(DIRECTORY_BUCKET):
            return None
        endpoint, virtual = (self._plain.rstrip("/"), False) if self._plain else self._resolved()
        return S3Store(
            self._bucket,
            endpoint=endpoint,
            region=self.region,
            virtual_hosted_style_request=virtual,
            skip_signature=not self.signed,
            credential_provider=self._provider() if self.signed else None,
            client_options=self._options(urlsplit(endpoint).scheme),
            retry_config={
                "max_retries": retries,
                "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=5), "base": 2},
                "retry_timeout": timedelta(seconds=60),
            },
        )

    def _resolved(self) -> tuple[str, bool]:
        """Where botocore would look for the bucket's objects, and whether the host's name tells the bucket."""
        url = urlsplit(self.client.generate_presigned_url("get_object", Params={"Bucket": self._bucket, "Key": "key"}))
        virtual = url.path == "/key"
        folder = url.path.removesuffix("/key") if virtual else url.path.removesuffix(f"/{self._bucket}/key")
        return f"{url.scheme}://{url.netloc}{folder}", virtual

    def _configured_endpoint(self) -> str | None:
        if self._session.get_config_variable("ignore_configured_endpoint_urls"):
            return None
        endpoint: str | None = ConfiguredEndpointProvider(
            full_config=self._session.full_config, scoped_config=self._session.get_scoped_config(), client_name="s3"
        ).provide()
        return endpoint

    def _provider(self) -> "Callable[[], S3Credential]":
        credentials = self._credentials
        assert credentials is not None

        def current() -> "S3Credential":
            frozen = credentials.get_frozen_credentials()
            return {
                "access_key_id": frozen.access_key,
                "secret_access_key": frozen.secret_key,
                "token": frozen.token,
                "expires_at": datetime.now(UTC) + _CREDENTIALS_LAST,
            }

        return current

    def _options(self, scheme: str) -> "ClientConfig":
        options: ClientConfig = {
            "allow_http": scheme == "http",
            "connect_timeout": f"{_CONNECTING}s",
            "read_timeout": f"{_SILENCE}s",
            "timeout": "1h",  # of a whole request: shards are large
            "pool_max_idle_per_host": str(self._connections),
            "user_agent": "bincounter",
        }
        authorities = self._session.get_config_variable("ca_bundle")
        if authorities:
            try:
                options["root_certificate"] = Path(authorities).expanduser().read_bytes()
            except OSError as error:
                raise DataError(
                    f"the certificates in {authorities} cannot be read ({error.strerror}): correct AWS_CA_BUNDLE or "
                    "ca_bundle in ~/.aws/config"
                ) from error
        return options
