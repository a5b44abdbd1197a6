"""Photos by URL: allowed addresses, and hosts that misbehave."""

import asyncio
import errno
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from archives import photo
from hypothesis import given
from hypothesis import strategies as st
from tls_host import NAME, tls_host

from bincounter.serving.application.answers import Limits, Problem
from bincounter.serving.application.served_model import ServedModel
from bincounter.serving.application.service import Reply, Service
from bincounter.serving.application.url_fetcher import Fetcher, is_public

Fetch = Callable[[str], bytes]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, ssl.SSLContext]]:
    with tls_host(tmp_path_factory.mktemp("tls")) as running:
        yield running


@pytest.fixture
def fetch(host: tuple[int, ssl.SSLContext]) -> Fetch:
    """Fetch from the host, which is allowed by the tests though it is no public one."""
    port, context = host
    limits = Limits(max_body_bytes=200_000, timeout_s=1, url_hosts=[f"*.example.org:{port}"])
    fetcher = Fetcher(limits, resolve=lambda *_: ["127.0.0.1"], allowed=lambda _: True, context=context)
    return lambda path: fetcher.fetch(f"https://{NAME}:{port}{path}")


def refused(fetch: Fetch, url: str, status: int = 400) -> str:
    with pytest.raises(Problem) as raised:
        fetch(url)
    assert raised.value.status == status
    return raised.value.sentence


def test_a_photo_is_fetched(fetch: Fetch) -> None:
    assert fetch("/photo.jpg?size=large") == photo(1)


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/elsewhere", 400, "not followed"),
        ("/endless", 413, "more than 0.2 MB"),
        ("/short", 400, "send its bytes instead"),
        ("/drip", 400, "not within 1 s"),
        ("/missing", 400, "answered 404"),
    ],
)
def test_what_a_host_does_wrong_is_said(fetch: Fetch, path: str, status: int, words: str) -> None:
    assert words in refused(fetch, path, status)


def test_a_certificate_that_nobody_vouches_for_is_refused(host: tuple[int, ssl.SSLContext]) -> None:
    port, _ = host
    fetcher = Fetcher(Limits(url_hosts=[f"{NAME}:{port}"]), resolve=lambda *_: ["127.0.0.1"], allowed=lambda _: True)
    assert "certificate is not trusted" in refused(fetcher.fetch, f"https://{NAME}:{port}/photo.jpg")


def test_a_certificate_of_another_name_is_refused(host: tuple[int, ssl.SSLContext]) -> None:
    port, context = host
    limits = Limits(url_hosts=[f"other.example.org:{port}"])
    fetcher = Fetcher(limits, resolve=lambda *_: ["127.0.0.1"], allowed=lambda _: True, context=context)
    assert "certificate is not trusted" in refused(fetcher.fetch, f"https://other.example.org:{port}/photo.jpg")


@pytest.mark.parametrize(
    "url",
    [
        "http://photos.example.org/1.jpg",
        "https://user:secret@photos.example.org/1.jpg",
        "https://photos.example.org:8443/1.jpg",
        "https://photos.example.org.evil.test/1.jpg",
        "https://evil.test/photos.example.org",
        "https://evilexample.org/1.jpg",
        "https://127.0.0.1/1.jpg",
        "https://[::1]/1.jpg",
        "https://photos.example.org/1.jpg\r\nHost: evil.test",
        "https://photos.example.org/a b",
        "https://[photos.example.org/1.jpg",
        "https://photos.example.org:99999/1.jpg",
        "https:///1.jpg",
        "file:///etc/passwd",
        "ftp://photos.example.org/1.jpg",
        "",
    ],
)
def test_only_allowed_hosts_are_even_looked_up(url: str) -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise AssertionError(f"{host}:{port} was looked up")

    fetcher = Fetcher(Limits(url_hosts=["photos.example.org", "*.example.org"]), resolve=resolve)
    assert refused(fetcher.fetch, url).endswith(".")


@given(st.text())
def test_no_address_breaks_it(url: str) -> None:
    refused(Fetcher(Limits(url_hosts=["photos.example.org"]), resolve=lambda *_: []).fetch, url)


def test_no_url_is_fetched_unless_hosts_were_allowed() -> None:
    assert "not fetched by URL here" in refused(Fetcher(Limits()).fetch, "https://photos.example.org/1.jpg")


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "127.0.0.1",
        "169.254.169.254",  # the credentials of an instance
        "169.254.170.2",  # the credentials of a container
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "::127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a00:1",
        "2002:a00:1::",
        "fe80::1%eth0",
        "fec0::1",  # site-local
        "fd00:ec2::254",
        "ff02::1",
        "168.63.129.16",  # Azure's own services
        "100.100.100.200",  # the credentials of an Alibaba instance
        "192.0.0.8",
        "192.0.0.192",  # the credentials of an old Oracle instance
        "192.88.99.1",  # a relay of 6to4
        "2001:0:a00:1::1",  # Teredo
        "2001:db8::1",
        "3fff::1",
        "5f00::1",
        "::ffff:0:169.254.169.254",
        "2606:4700::5efe:a9fe:a9fe",  # ISATAP
    ],
)
def test_addresses_inside_are_not_asked(address: str) -> None:
    assert not is_public(address)
    outside = "93.184.215.14"
    for addresses in ([address], [outside, address], [address, outside]):
        fetcher = Fetcher(Limits(url_hosts=[NAME]), resolve=lambda *_, given=addresses: given)
        assert "public internet" in refused(fetcher.fetch, f"https://{NAME}/1.jpg")


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_addresses_outside_are(address: str) -> None:
    assert is_public(address)


# Reserved blocks of IANA's registries: first address and length of the prefix.
_RESERVED_4 = """0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
    192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/3 168.63.129.16/32"""
_OPEN_6 = "2000::/3"
_RESERVED_6 = "2001::/23 2001:db8::/32 2002::/16 3ffe::/16 3fff::/20"


def within(number: int, blocks: str, family: socket.AddressFamily, bits: int) -> bool:
    """True if an address, as a number, is in one of the blocks."""
    for block in blocks.split():
        first, _, length = block.partition("/")
        start = int.from_bytes(socket.inet_pton(family, first))
        if number >> (bits - int(length)) == start >> (bits - int(length)):
            return True
    return False


_NEAR_4 = st.sampled_from(_RESERVED_4.split()).map(lambda b: int.from_bytes(socket.inet_aton(b.partition("/")[0])))


@given(st.one_of(st.integers(0, 2**32 - 1), st.builds(lambda at, by: (at + by) % 2**32, _NEAR_4, st.integers(-2, 300))))
def test_an_ipv4_address_is_public_unless_it_is_reserved(number: int) -> None:
    address = socket.inet_ntoa(number.to_bytes(4))
    assert is_public(address) == (not within(number, _RESERVED_4, socket.AF_INET, 32))
    for wrapped in (f"::ffff:{address}", f"::{address}", f"64:ff9b::{address}"):
        assert not is_public(wrapped)


@given(st.one_of(st.integers(0, 2**128 - 1), st.integers(0x2000 << 112, (0x4000 << 112) - 1)))
def test_an_ipv6_address_is_public_if_it_is_assigned_to_the_internet(number: int) -> None:
    address = socket.inet_ntop(socket.AF_INET6, number.to_bytes(16))
    public = within(number, _OPEN_6, socket.AF_INET6, 128) and not within(number, _RESERVED_6, socket.AF_INET6, 128)
    assert is_public(address) == (public and (number >> 32) & 0xFDFFFFFF != 0x5EFE)


@pytest.mark.parametrize("words", ["has no address", "is not in the public internet", "only from", "did not send"])
def test_a_long_host_is_shortened_in_the_answer(words: str) -> None:
    def nowhere(*_: object) -> list[str]:
        if words == "has no address":
            raise OSError
        return ["10.0.0.1"] if words == "is not in the public internet" else ["127.0.0.1"]

    hosts = ["photos.example.org"] if words == "only from" else ["*.example.org:1"]
    fetcher = Fetcher(Limits(url_hosts=hosts), resolve=nowhere, allowed=lambda ip: ip == "127.0.0.1")
    sentence = refused(fetcher.fetch, f"https://{'a' * 4000}.example.org:1/1.jpg")
    assert words in sentence
    assert len(sentence) < 300


def test_a_name_is_looked_up_once(host: tuple[int, ssl.SSLContext]) -> None:
    port, context = host
    looked_up = []

    def rebinding(name: str, _: int) -> list[str]:
        looked_up.append(name)
        return ["127.0.0.1"] if len(looked_up) == 1 else ["169.254.169.254"]

    fetcher = Fetcher(
        Limits(url_hosts=[f"{NAME}:{port}"]), resolve=rebinding, allowed=lambda ip: ip == "127.0.0.1", context=context
    )
    assert fetcher.fetch(f"https://{NAME}:{port}/photo.jpg") == photo(1)
    assert looked_up == [NAME]


_MANY_FILES = OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize(
    ("step", "failure"),
    [
        *((step, lack) for step in ("resolve", "context", "connect") for lack in (_MANY_FILES, MemoryError())),
        ("resolve", socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")),  # also without files
        ("resolve", socket.gaierror(socket.EAI_SYSTEM, "System error")),
        ("thread", RuntimeError("can't start new thread")),
    ],
)
def test_a_shortage_while_a_photo_is_fetched_is_no_fault_of_the_url(
    monkeypatch: pytest.MonkeyPatch, unpacked: Path, step: str, failure: Exception
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise failure

    names = {
        "context": "ssl.create_default_context",
        "connect": "socket.create_connection",
        "thread": "threading.Timer.start",
    }
    resolve = fail if step == "resolve" else lambda *_: ["93.184.215.14"]

    async def ask() -> Reply:
        service = Service(ServedModel.load(unpacked), Fetcher(Limits(url_hosts=[NAME]), resolve=resolve))
        await service.start()
        if step in names:
            monkeypatch.setattr(names[step], fail)
        body = json.dumps({"instances": [{"url": f"https://{NAME}/1.jpg"}]}).encode()
        reply = await service.handle(body, "application/json", None)
        await service.close()
        return reply

    reply = asyncio.run(ask())
    assert (reply.status, reply.headers) == (503, {"Retry-After": "1"})
    assert "retry in a second" in json.loads(reply.body)["error"]
