"""Etags, against those that AWS's definition gives, and objects that have such etags."""

import hashlib
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from s3_bins import files, put
from s3_faults import broken_off, garbled, renamed
from s3_proxy import Fault, FaultyProxy

from bincounter.data.s3 import bucket, objects
from bincounter.data.s3.sync import fetch
from bincounter.data.s3.upload import send

MB = 1 << 20
SIZES = st.integers(0, 40) | st.integers(0, 3 * MB)


def md5(body: bytes) -> "hashlib._Hash":
    return hashlib.md5(body, usedforsecurity=False)


def in_parts(body: bytes, part: int) -> str:
    """ETag of a body that was sent in parts of so many bytes; one of no bytes is a single empty part."""
    digests = [md5(body[start : start + part]).digest() for start in range(0, len(body) or 1, part)]
    return f"{md5(b''.join(digests)).hexdigest()}-{len(digests)}"


def made(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(seed=st.integers(0, 9), size=SIZES, part=SIZES.filter(bool), known=st.booleans())
@example(seed=1, size=0, part=1, known=True)
@example(seed=1, size=2 * MB, part=MB, known=True)
@example(seed=1, size=2 * MB + 1, part=MB, known=True)
def test_an_etag_names_its_body_and_no_other(
    tmp_path: Path, seed: int, size: int, part: int, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = max(part, size // 50)
    monkeypatch.setattr(objects, "_PART_SIZES", [7, part, MB] if known else [])
    body, path = made(seed, size), tmp_path / "body"
    path.write_bytes(body)
    whole, parts = md5(body).hexdigest(), in_parts(body, part)
    assert objects.is_md5_etag(whole) and not objects.is_md5_etag(parts)
    assert objects.is_computable_etag(whole, size) and objects.etag_matches(whole, path, size)
    can_tell = known or parts.endswith("-1")
    assert objects.is_computable_etag(parts, size) == can_tell == objects.etag_matches(parts, path, size)
    if size:
        at = random.Random(seed).randrange(size)
        path.write_bytes(body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])
        assert not objects.etag_matches(whole, path, size) and not objects.etag_matches(parts, path, size)


@pytest.mark.parametrize("part", [size * MB for size in (5, 8, 16, 64)] + [100_000_000])
def test_what_common_senders_use_is_known(part: int) -> None:
    number = f"{md5(b'').hexdigest()}-{{}}"
    for size in (1, part - 1, part, part + 1, 7 * part - 1, 7 * part, 9_999 * part):
        assert objects.is_computable_etag(number.format(-(-size // part)), size)


@given(st.text(max_size=50), st.integers(0, 10**13))
@example("", 0)
@example("x", 0)
@example(f"{md5(b'').hexdigest()}-0", 0)
@example(f"{md5(b'').hexdigest()}-{10**40}", 5)
def test_other_etags_are_not_held_against_bytes(etag: str, size: int) -> None:
    assert not objects.is_computable_etag(etag, size)


@pytest.mark.parametrize(
    ("size", "part", "fault"),
    [
        (5 * MB + 1, 5 * MB, garbled),
        (900, 1000, garbled),
        (2500, 1000, broken_off),  # in parts that nobody makes: the size alone tells
    ],
)
def test_objects_that_were_sent_in_parts_are_checked(
    s3_proxy: FaultyProxy, tmp_path: Path, size: int, part: int, fault: Fault
) -> None:
    body = made(0, size)
    put(s3_proxy.server, {"shard.tar": body})
    s3_proxy.spoil("", renamed({md5(body).hexdigest(): in_parts(body, part)}.__getitem__))
    s3_proxy.spoil("GET .*tar", fault, times=1)
    for _ in range(2):
        fetch("s3://shop/bins", tmp_path)
        assert files(tmp_path) == {"shard.tar": body}
    assert s3_proxy.objects_sent() == 2


def test_what_is_sent_to_a_bucket_whose_etags_are_no_md5s_is_sent_once(
    s3_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "_AT_ONCE", 6 * MB)
    monkeypatch.setattr(bucket, "_PART", 5 * MB)
    bodies = {"shard.tar": made(1, 6 * MB + 1)} | {f"{each}.jpg": made(each, 100) for each in range(9)}
    for name, body in bodies.items():
        (tmp_path / name).write_bytes(body)
    (s3_proxy.server.root / "shop").mkdir()
    s3_proxy.spoil("", renamed(lambda etag: etag[::-1], x_amz_server_side_encryption="aws:kms"))
    for sent in (len(bodies), 0):
        assert send([(tmp_path / name, name) for name in bodies], "s3://shop/bins", connections=1).sent == sent
    stored = {path.name: path.read_bytes() for path in (s3_proxy.server.root / "shop/bins").iterdir()}
    assert stored == bodies
    puts = sum(request.startswith("PUT") for request in s3_proxy.requests)
    assert puts <= len(bodies) + 2  # two parts, and one that is sent twice
