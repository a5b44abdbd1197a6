"""Credentials, region, endpoint and CA bundle by boto -> the obstore store.

These are ``AWS_*`` variables (such as ``AWS_PROFILE``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``), the files in ``~/.aws``,
and the role of the machine.

botocore would find the same, in more time than it takes to list an unchanged folder of thousands: it is imported only
where there is more to find (:mod:`bincounter.data.s3.credentials`).
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
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar
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
            connect_timeout=CONNECTING,
            read_timeout=SILENCE,
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


DIRECTORY_BUCKET = "--x-s3"
"""Ends the names of directory buckets (S3 Express), which need sessions of their own."""


class Connection:
    """How one bucket is reached: a client of boto3's kind, and stores of obstore that ask the same server.

    Args:
        bucket: its name.
        connections: most requests at a time.
        region: ``None`` for that of the settings.

    Attributes:
        reached: whether the server ever answered, for who asks it to note.

    Raises:
        DataError: the settings cannot be used; so may every method and property.
    """

    def __init__(self, bucket: str, connections: int, region: str | None = None) -> None:
        self.reached = False
        self._bucket, self._connections = bucket, connections
        self._chain = Once(lambda: _chain(bucket, connections, region))
        self._settings: Variables | Chain = read(region) or self._chain()

    @property
    def signed(self) -> bool:
        """Whether requests carry credentials."""
        return self._settings.signed

    @property
    def region(self) -> str:
        """That requests are signed for."""
        return self._settings.region

    @property
    def host(self) -> str:
        """Of the server, for messages."""
        return self._settings.host

    @property
    def client(self) -> Any:
        """Botocore's."""
        return self._chain().client

    def store(self, *, retries: int) -> S3Store | None:
        """Open the bucket with obstore; ``None`` where that cannot speak to it.

        Args:
            retries: of a request that was not answered, or with a status of 500 or above.
        """
        if self._bucket.endswith(DIRECTORY_BUCKET):
            return None
        endpoint, virtual = self._settings.endpoint()
        options = self._options(urlsplit(endpoint).scheme)
        try:
            return S3Store(
                self._bucket,
                endpoint=endpoint.rstrip("/"),
                region=self.region,
                virtual_hosted_style_request=virtual,
                skip_signature=not self.signed,
                client_options=options,
                credential_provider=self._settings.provider(),
                retry_config={
                    "max_retries": retries,
                    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=5), "base": 2},
                    "retry_timeout": timedelta(seconds=60),
                },
            )
        except (BaseError, ValueError):  # settings that obstore does not know
            return None

    def _options(self, scheme: str) -> "ClientConfig":
        options: ClientConfig = {
            "allow_http": scheme == "http",
            "connect_timeout": f"{CONNECTING}s",
            "read_timeout": f"{SILENCE}s",
            "timeout": "1h",  # of a whole request: shards are large
            "pool_max_idle_per_host": str(self._connections),
            "user_agent": "bincounter",
        }
        authorities = self._settings.authorities()
        if authorities:
            options["root_certificate"] = authorities
        return options


def _chain(bucket: str, connections: int, region: str | None) -> "Chain":

    return Chain(bucket, connections, region)


# Those that are read here, and those that only matter where credentials are looked for elsewhere.
_READ = {
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_EC2_METADATA_DISABLED",
}
_PLAIN = re.compile(r"https?://[\w.-]+(:\d+)?(/[\w./-]*)?", re.ASCII)


class Variables(NamedTuple):
    """What the environment says of an S3-compatible server; answers what :class:`Chain` does.

    Attributes:
        address: the server's.
        region: that requests are signed for.
        key_id: of the credentials.
        secret: of the credentials.
        token: of temporary credentials.
    """

    address: str
    region: str
    key_id: str
    secret: str
    token: str | None

    @property
    def signed(self) -> bool:
        """Whether requests carry credentials."""
        return True

    @property
    def host(self) -> str:
        """Of the server, for messages."""
        return urlsplit(self.address).netloc

    def endpoint(self) -> tuple[str, bool]:
        """Where the bucket's objects are, and whether the host's name tells the bucket."""
        return self.address, False

    def provider(self) -> "Callable[[], S3Credential]":
        """The credentials."""
        return lambda: {
            "access_key_id": self.key_id,
            "secret_access_key": self.secret,
            "token": self.token,
            "expires_at": None,
        }

    def authorities(self) -> None:
        """No certificates besides the usual ones."""


def is_plain(endpoint: str) -> bool:
    """Whether an endpoint is used as it is: AWS's own depend on the bucket, and odd ones are refused by botocore."""
    return _PLAIN.fullmatch(endpoint) is not None and "amazonaws." not in endpoint


def read(region: str | None = None) -> Variables | None:
    """The settings, or ``None`` where other variables or the files in ``~/.aws`` have a say.

    Nor are variables read that are empty, which obstore would take for settings, and botocore for none.

    Args:
        region: ``None`` for that of the settings.
    """
    settings = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    endpoint = settings.get("AWS_ENDPOINT_URL_S3") or settings.get("AWS_ENDPOINT_URL") or ""
    key_id, secret = settings.get("AWS_ACCESS_KEY_ID"), settings.get("AWS_SECRET_ACCESS_KEY")
    region = region or settings.get("AWS_REGION") or settings.get("AWS_DEFAULT_REGION") or "us-east-1"
    known = settings.keys() <= _READ and "" not in settings.values() and region != "aws-global"
    if not (known and is_plain(endpoint) and key_id and secret) or _has_files(settings):
        return None
    return Variables(endpoint, region, key_id, secret, settings.get("AWS_SESSION_TOKEN"))


def _has_files(settings: dict[str, str]) -> bool:
    """Whether there is a file of settings that has something in it."""
    named = {"AWS_CONFIG_FILE": "~/.aws/config", "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials"}
    for name, default in named.items():
        try:
            if Path(os.path.expandvars(settings.get(name, default))).expanduser().stat().st_size:
                return True
        except FileNotFoundError:
            pass
        except (OSError, RuntimeError):  # who knows what is in it
            return True
    return False


_Made = TypeVar("_Made")


class Once(Generic[_Made]):
    """Called, it gives what ``make`` made at the first call.

    Args:
        make: does not call this; where it raises, the next call tries again.
    """

    def __init__(self, make: Callable[[], _Made]) -> None:
        self._make, self._made, self._making = make, list[_Made](), threading.Lock()

    def __call__(self) -> _Made:
        """What was made."""
        with self._making:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]


CONNECTING = 10
"""Seconds that a connection may take."""
SILENCE = 30
"""Seconds without a byte, after which a request counts as lost."""
