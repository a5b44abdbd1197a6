"""Credentials, region and endpoint from where every AWS tool looks for them, by botocore.

These are ``AWS_*`` variables (such as ``AWS_PROFILE``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``), the files in ``~/.aws``,
and the role of the machine.
"""

import logging
import os
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

from bincounter.data.s3 import timeouts
from bincounter.data.s3.explanations import explain_settings
from bincounter.data.s3.once import Once
from bincounter.data.s3.variables import is_plain
from bincounter.errors import DataError

if TYPE_CHECKING:
    from obstore.store import S3Credential

_PUBLIC = {"aft-vbi-pds": "us-east-1"}  # the bucket of ABID, and its region
_CREDENTIALS_LAST = timedelta(minutes=5)  # before boto is asked again, which renews them when they are about to expire


@cache
def _models(data_path: str | None) -> Loader:
    """What botocore knows of services, which takes longer to read than a bucket to list: read once for all buckets."""
    return create_loader(data_path)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (BotoCoreError, ValueError) as error:
        raise explain_settings(error) from error


class Chain:
    """What botocore finds for a bucket, and its client.

    Without credentials, and for the public bucket of ABID, requests are anonymous.

    Args:
        bucket: its name.
        connections: most requests at a time.
        region: ``None`` for that of the settings.

    Attributes:
        signed: whether requests carry credentials.

    Raises:
        DataError: the settings cannot be used; so may every method and property.
    """

    def __init__(self, bucket: str, connections: int, region: str | None) -> None:
        for name in ("boto3", "botocore", "urllib3"):
            if logging.getLogger(name).isEnabledFor(logging.DEBUG):
                logging.getLogger(name).setLevel(logging.INFO)  # at DEBUG they write session tokens
        self._bucket = bucket
        with _explained():
            self._look(bucket, connections, region)

    def _look(self, bucket: str, connections: int, region: str | None) -> None:
        self._session = Session()
        self._session.register_component("data_loader", _models(self._session.get_config_variable("data_path")))
        # botocore itself reads AWS_DEFAULT_REGION alone.
        region = region or os.environ.get("AWS_REGION") or self._session.get_config_variable("region")
        configured = self._configured_endpoint()
        elsewhere = configured is not None and "amazonaws." not in configured
        config = Config(
            retries={"mode": "standard"},
            connect_timeout=timeouts.CONNECTING,
            read_timeout=timeouts.SILENCE,
            max_pool_connections=connections,
            user_agent_extra="bincounter",
        )
        self._plain: str | None = None  # an endpoint that botocore would use as it is
        if elsewhere and not (self._session.get_scoped_config().get("s3") or {}).get("addressing_style"):
            config = config.merge(Config(s3={"addressing_style": "path"}))  # few others have a host name per bucket
            self._plain = configured if configured and is_plain(configured) else None
        public = None if elsewhere else _PUBLIC.get(bucket)
        self._credentials = None if public else self._session.get_credentials()
        self.signed = self._credentials is not None
        if not self.signed:
            config = config.merge(Config(signature_version=UNSIGNED))
        self._region = region = public or region
        self._client = Once(lambda: self._session.create_client("s3", config=config, region_name=region))

    @property
    def client(self) -> Any:
        """botocore's, which takes longer to make than an unchanged folder of thousands to be listed."""
        with _explained():
            return self._client()

    @property
    def region(self) -> str:
        """That requests are signed for."""
        region = self._region if self._plain else self.client.meta.region_name
        return region if region and region != "aws-global" else "us-east-1"

    @property
    def host(self) -> str:
        """Of the server, for messages."""
        return urlsplit(self._plain or self.client.meta.endpoint_url).netloc.rpartition("@")[2]

    def endpoint(self) -> tuple[str, bool]:
        """Where botocore would look for the bucket's objects, and whether the host's name tells the bucket."""
        if self._plain:
            return self._plain, False
        with _explained():
            key = {"Bucket": self._bucket, "Key": "key"}
            url = urlsplit(self.client.generate_presigned_url("get_object", Params=key))
        virtual = url.path == "/key"
        folder = url.path.removesuffix("/key") if virtual else url.path.removesuffix(f"/{self._bucket}/key")
        return f"{url.scheme}://{url.netloc}{folder}", virtual

    def provider(self) -> "Callable[[], S3Credential] | None":
        """The credentials, asked for again now and then; ``None`` where there are none."""
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

    def authorities(self) -> bytes | None:
        """The certificates of authorities to trust besides the usual ones."""
        named = self._session.get_config_variable("ca_bundle")
        if not named:
            return None
        try:
            return Path(named).expanduser().read_bytes()
        except OSError as error:
            raise DataError(
                f"the certificates in {named} cannot be read ({error.strerror}): correct AWS_CA_BUNDLE or "
                "ca_bundle in ~/.aws/config"
            ) from error

    def _configured_endpoint(self) -> str | None:
        if self._session.get_config_variable("ignore_configured_endpoint_urls"):
            return None
        endpoint: str | None = ConfiguredEndpointProvider(
            full_config=self._session.full_config, scoped_config=self._session.get_scoped_config(), client_name="s3"
        ).provide()
        return endpoint
