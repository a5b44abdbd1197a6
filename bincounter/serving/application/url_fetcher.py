"""Fetcher of photos by https from allowed hosts, never from a private network."""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from bincounter.serving.application.answers import Limits, Problem, is_shortage, shorten

HTTPS = 443
_CHUNK = 1 << 16  # bytes
_FETCHES = 8  # at a time; more wait
_PASSING = (socket.EAI_AGAIN, socket.EAI_MEMORY, socket.EAI_SYSTEM)  # of the resolver, also for want of open files
_BARRED = tuple(
    map(
        ipaddress.ip_network,
        (
            "168.63.129.16/32",  # Azure's own services
            "192.0.0.0/24",  # protocol assignments
            "192.88.99.0/24",  # relays of 6to4
            "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarking
            "2001:db8::/32",  # documentation, like 3fff::/20
            "2002::/16",  # 6to4
            "3ffe::/16",  # 6bone
            "3fff::/20",
        ),
    )
)
_UNICAST = ipaddress.ip_network("2000::/3")  # all of IPv6 that is assigned to the public internet
_ISATAP = (b"\0\0\x5e\xfe", b"\2\0\x5e\xfe")  # bytes before an IPv4 address


def is_public(address: str) -> bool:
    """Return True if an IP address is public.

    Not public are private, loopback, link-local, site-local, multicast and reserved addresses, those at which clouds
    serve credentials, and IPv4 addresses wrapped in IPv6 (mapped, compatible, NAT64, 6to4, Teredo, ISATAP).
    See https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and (ip not in _UNICAST or ip.packed[8:12] in _ISATAP):
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _BARRED)


def resolve(host: str, port: int) -> list[str]:
    """Resolve a host to its IP addresses by the system's resolver."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class Fetcher:
    """Fetches photos.

    A name is resolved once, all its addresses are checked, and the connection goes to one of them, against DNS
    rebinding. Redirects are not followed.

    Args:
        limits: ``url_hosts``, each a name, ``*.name`` for its subdomains, ``name:port`` for a port other than 443; and
            the bounds on bytes and seconds.
        resolve: (name, port) -> IP addresses.
        allowed: IP address -> may be connected to.
        context: for TLS; the system's default if not given.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        resolve: Callable[[str, int], Sequence[str]] = resolve,
        allowed: Callable[[str], bool] = is_public,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._limits, self._resolve, self._allowed = limits, resolve, allowed
        self._context = context

    def fetch(self, url: str) -> bytes:
        """Fetch a photo; blocks for at most ``timeout_s`` seconds plus the time of the resolver.

        Raises:
            Problem: 400 the URL is not allowed or does not return a photo, 413 the photo is too large, 503 the
                resolver fails for now.
        """
        host, port, target = self._checked(url)
        addresses = self._addresses(host, port)
        until = time.monotonic() + self._limits.timeout_s
        connection = _Pinned(host, port, addresses, until, self._context or ssl.create_default_context())
        # Socket timeouts are per read: a host that sends a byte now and then would hold the connection forever.
        watchdog = threading.Timer(self._limits.timeout_s, connection.cut)
        watchdog.daemon = True
        watchdog.start()
        try:
            connection.request("GET", target, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
            return self._content(connection.getresponse(), host)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if is_shortage(error):
                raise
            late = time.monotonic() >= until
            reason = f"not within {self._limits.timeout_s:g} s" if late else _reason(error)
            raise Problem(400, f"{shorten(host)} did not send the photo ({reason}); send its bytes instead.") from error
        finally:
            watchdog.cancel()
            connection.close()

    def _checked(self, url: str) -> tuple[str, int, str]:
        """Host, port and request target of an allowed URL."""
        if not self._limits.url_hosts:
            raise Problem(400, "Photos are not fetched by URL here; send their bytes, or base64 in JSON.")
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower().rstrip("."), parts.port or HTTPS
        except ValueError as error:
            raise Problem(400, "The URL cannot be read; write it as https://host/photo.jpg.") from error
        if parts.scheme != "https" or not host or parts.username is not None or parts.password is not None:
            raise Problem(400, "The URL must be https://host/photo.jpg, without a user; correct it.")
        if not (url.isascii() and url.isprintable() and " " not in url):
            raise Problem(400, "The URL has characters that must be percent-encoded; correct it.")
        if not any(_matches(entry, host, port) for entry in self._limits.url_hosts):
            hosts = ", ".join(self._limits.url_hosts)
            raise Problem(400, f"Photos are not fetched from {shorten(host)} here, only from {hosts}; send its bytes.")
        return host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def _addresses(self, host: str, port: int) -> Sequence[str]:
        try:
            addresses = self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            if is_shortage(error):
                raise
            if isinstance(error, socket.gaierror) and error.errno in _PASSING:
                raise Problem(503, f"{shorten(host)} cannot be looked up for now; retry in a second.") from error
            raise Problem(400, f"{shorten(host)} has no address; correct the URL.") from error
        if not addresses or not all(map(self._allowed, addresses)):
            raise Problem(400, f"{shorten(host)} is not in the public internet; send the photo's bytes instead.")
        return addresses

    def _content(self, response: http.client.HTTPResponse, host: str) -> bytes:
        if 300 <= response.status < 400:
            raise Problem(400, f"{shorten(host)} sends elsewhere, which is not followed; send the final URL.")
        if response.status != 200:
            raise Problem(400, f"{shorten(host)} answered {response.status}; correct the URL.")
        most = self._limits.max_body_bytes
        content = bytearray()
        while chunk := response.read(_CHUNK):
            content += chunk
            if len(content) > most:
                raise Problem(413, f"The photo at {shorten(host)} has more than {most / 1e6:g} MB; take a smaller one.")
        if response.length:  # of Content-Length, not received
            raise Problem(400, f"{shorten(host)} sent only a part of the photo; send its bytes instead.")
        return bytes(content)


class FetchPool(ThreadPoolExecutor):
    """Threads that fetch photos, bounded so that slow hosts leave half of the queue to other requests.

    Args:
        limits: of the archive.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__(_FETCHES, "fetch")
        self._most = max(limits.max_queue // 2, limits.max_instances)
        self._fetching: set[Future[Any]] = set()

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> "Future[Any]":
        """Fetch a photo.

        Raises:
            Problem: 503 too many are being fetched.
        """
        if len(self._fetching) >= self._most:
            raise Problem(503, f"{self._most} photos are being fetched by URL; retry in a second, or send their bytes.")
        future = super().submit(function, *args, **options)
        self._fetching.add(future)
        future.add_done_callback(self._fetching.discard)
        return future


class _Pinned(http.client.HTTPSConnection):
    """HTTPS connection to one of the checked addresses; the certificate must match the host.

    Args:
        host: name that the certificate must have.
        port: of the host.
        addresses: to try in turn.
        until: deadline on the monotonic clock, in seconds.
        context: for TLS.
    """

    def __init__(self, host: str, port: int, addresses: Sequence[str], until: float, context: ssl.SSLContext) -> None:
        super().__init__(host, port, context=context)
        self._addresses, self._until, self._tls = addresses, until, context

    def connect(self) -> None:
        """Connect without resolving the name again."""
        plain = self._connected()
        try:
            plain.settimeout(self._left())  # of the whole handshake
            self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise

    def _connected(self) -> socket.socket:
        failure = OSError("no address")
        for address in self._addresses:
            try:
                return socket.create_connection((address, self.port), self._left())
            except OSError as error:
                failure = error
        raise failure

    def _left(self) -> float:
        return max(self._until - time.monotonic(), 0.001)  # 0 would mean non-blocking

    def cut(self) -> None:
        """Close the socket from another thread; pending reads fail."""
        if self.sock is not None:
            with suppress(OSError):  # already closed
                self.sock.shutdown(socket.SHUT_RDWR)


def _reason(error: Exception) -> str:
    distrusted = isinstance(error, ssl.SSLCertVerificationError)
    return "its certificate is not trusted" if distrusted else type(error).__name__


def _matches(entry: str, host: str, port: int) -> bool:
    name, _, own_port = entry.lower().partition(":")
    if port != int(own_port or HTTPS):
        return False
    return host.endswith(name[1:]) if name.startswith("*.") else host == name
