"""Access to a local server: the address it listens on, and the token of its clients."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from bincounter.errors import ConfigError

TOKEN_VARIABLE = "BINCOUNTER_TOKEN"
_SHORTEST = 16  # characters; shorter tokens can be guessed
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")  # RFC 6750
_EVERYWHERE = "0.0.0.0"
_HERE = "127.0.0.1"


@dataclass(frozen=True)
class Access:
    """Access to a server.

    Attributes:
        host: IPv4 address that it listens on.
        token: that requests must hold; ``None`` if none.
    """

    host: str = _HERE
    token: str | None = field(default=None, repr=False)

    @property
    def is_local(self) -> bool:
        """True if no other machine reaches it."""
        return is_local(self.host)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of a request to it."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def is_local(host: str) -> bool:
    """Return True if only this machine reaches an address."""
    return host.startswith("127.")


def reached_at(host: str) -> str:
    """Return the address by which this machine reaches a server that listens on ``host``."""
    return _HERE if host == _EVERYWHERE else host


def read_access(host: str, token_file: str | None) -> Access:
    """Read the token of the file, else of the environment variable ``BINCOUNTER_TOKEN``, if there is one.

    Raises:
        ConfigError: it cannot be read, is too short, or cannot stand in a header; or others would reach a server
            without a token.
    """
    origin, token = f"${TOKEN_VARIABLE}", os.environ.get(TOKEN_VARIABLE, "")
    if token_file is not None:
        origin = f"target.token_file={token_file}"
        try:
            token = Path(token_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise ConfigError(f"{origin} cannot be read ({reason}): name a file that holds the token") from None
    if (token or token_file) and not (len(token) >= _SHORTEST and _TOKEN.fullmatch(token)):
        raise ConfigError(
            f"{origin} is not a token: use at least {_SHORTEST} letters, digits or -._~+/=, as `openssl rand -hex 24` "
            "prints them"
        )
    if not token and not is_local(host):
        raise ConfigError(
            f"target.host={host} lets other machines use the server, which takes a token: set {TOKEN_VARIABLE} in the "
            "environment, or target.token_file=FILE"
        )
    return Access(host, token or None)
