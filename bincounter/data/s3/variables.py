"""Credentials and endpoint that stand in variables of the environment, all of them, and nowhere else.

botocore would find the same, in more time than it takes to list an unchanged folder of thousands: it is imported only
where there is more to find (:mod:`bincounter.data.s3.chain`).
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from obstore.store import S3Credential

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
    """What the environment says of an S3-compatible server; answers what :class:`bincounter.data.s3.chain.Chain` does.

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
