"""Who asks an S3 server and where it is, and the stores of obstore and the client of botocore that ask it."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import S3Store

from bincounter.data.s3 import timeouts, variables
from bincounter.data.s3.once import Once

if TYPE_CHECKING:
    from obstore.store import ClientConfig

    from bincounter.data.s3.chain import Chain
    from bincounter.data.s3.variables import Variables

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
        self._settings: Variables | Chain = variables.read(region) or self._chain()

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
            "connect_timeout": f"{timeouts.CONNECTING}s",
            "read_timeout": f"{timeouts.SILENCE}s",
            "timeout": "1h",  # of a whole request: shards are large
            "pool_max_idle_per_host": str(self._connections),
            "user_agent": "bincounter",
        }
        authorities = self._settings.authorities()
        if authorities:
            options["root_certificate"] = authorities
        return options


def _chain(bucket: str, connections: int, region: str | None) -> "Chain":
    from bincounter.data.s3.chain import Chain  # importing botocore takes longer than a listing

    return Chain(bucket, connections, region)
