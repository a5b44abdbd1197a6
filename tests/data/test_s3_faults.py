"""Fetching from ``s3://`` while the server or the network gives out."""

import hashlib
import logging
import random
from pathlib import Path

import pytest
from s3_bins import assert_nothing_half_done, bins, files, inodes, put
from s3_faults import (
    broken_off,
    denied,
    expired,
    failing,
    garbled,
    meanwhile,
    renamed,
    reset_at_once,
    reset_midway,
    stalled,
    unavailable,
)
from s3_proxy import Fault, FaultyProxy

from bincounter.data.s3 import boto_fallback, credentials
from bincounter.data.s3 import bucket as client
from bincounter.data.s3.bucket import Bucket
from bincounter.data.s3.error_messages import MissingError
from bincounter.data.s3.sync import fetch
from bincounter.errors import DataError, ResourceError


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon, which otherwise takes a minute."""
    monkeypatch.setattr(client, "_RETRIES", 1)
    monkeypatch.setattr(boto_fallback, "_ATTEMPTS", 2)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take half a second of silence for a lost connection."""
    monkeypatch.setattr(credentials, "READ_TIMEOUT", 0.5)


PASSING = [
    pytest.param(unavailable, 20, id="SlowDown"),
    pytest.param(failing, 4, id="InternalError"),
    pytest.param(reset_at_once, 4, id="reset at once"),
    pytest.param(reset_midway, 4, id="reset midway"),
    pytest.param(broken_off, 4, id="cut short"),
    pytest.param(garbled, 4, id="garbled"),
]


@pytest.mark.parametrize(("fault", "times"), PASSING)
def test_what_passes_is_waited_for(
    s3_proxy: FaultyProxy,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    fault: Fault,
    times: int,
) -> None:
    objects = bins(20) | {"empty.jpg": b"", "large.jpg": bytes(range(256)) * 10_000}
    put(s3_proxy.server, objects)
    s3_proxy.spoil(r"jpg", fault, times)
    s3_proxy.spoil(r"large", fault, 1)
    if fault is not garbled:
        s3_proxy.spoil("list-type", fault, 1)
    fetch("s3://shop/bins", tmp_path)
    assert files(tmp_path) == objects
    assert "not MD5s" not in caplog.text


LASTING = [
    pytest.param(unavailable, "returned SlowDown for s3://shop/bins/.*: run the same command again", id="SlowDown"),
    pytest.param(reset_at_once, "failed repeatedly .* run the same command again", id="reset at once"),
    pytest.param(reset_midway, "failed repeatedly .* run the same command again", id="reset midway"),
    pytest.param(garbled, "its MD5 does not match its etag.* run the same command again", id="garbled"),
    pytest.param(expired, "refuses the credentials .ExpiredToken.: log in again", id="expired"),
    pytest.param(denied, "access to s3://shop/bins/.* is denied: have s3:ListBucket and s3:GetObject", id="denied"),
]


@pytest.mark.parametrize(("fault", "sentence"), LASTING)
@pytest.mark.usefixtures("hasty")
def test_what_lasts_ends_in_a_sentence_and_what_was_fetched_stays(
    s3_proxy: FaultyProxy, tmp_path: Path, fault: Fault, sentence: str
) -> None:
    objects = bins(60)
    put(s3_proxy.server, objects)
    s3_proxy.spoil(r"jpg", fault, after=40)
    with pytest.raises((DataError, ResourceError), match=sentence) as caught:
        fetch("s3://shop/bins", tmp_path, connections=4)
    assert "\n" not in str(caught.value) and s3_proxy.server.endpoint not in str(caught.value)
    here = inodes(tmp_path)
    assert files(tmp_path).items() <= objects.items() and len(here) >= 36
    assert_nothing_half_done(tmp_path)
    s3_proxy.mend()
    fetch("s3://shop/bins", tmp_path)
    assert files(tmp_path) == objects
    assert here.items() <= inodes(tmp_path).items()  # none of them once more


@pytest.mark.usefixtures("hasty", "impatient")
def test_a_server_that_falls_silent_is_asked_again(s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    objects = bins(20)
    put(s3_proxy.server, objects)
    s3_proxy.spoil("list-type", stalled(60), times=1)
    s3_proxy.spoil("jpg", stalled(60), after=10)
    with pytest.raises(ResourceError, match=r"failed repeatedly .* run the same command again"):
        fetch("s3://shop/bins", tmp_path)
    s3_proxy.mend()
    s3_proxy.spoil("jpg", stalled(60), times=4)
    fetch("s3://shop/bins", tmp_path)
    assert files(tmp_path) == objects


@pytest.mark.parametrize("fault", [reset_at_once, denied])
@pytest.mark.usefixtures("hasty")
def test_a_listing_that_breaks_off_deletes_nothing(s3_proxy: FaultyProxy, tmp_path: Path, fault: Fault) -> None:
    objects = bins(10)
    put(s3_proxy.server, objects)
    fetch("s3://shop/bins", tmp_path)
    s3_proxy.spoil("list-type", fault)
    with pytest.raises((DataError, ResourceError)):
        fetch("s3://shop/bins", tmp_path)
    assert files(tmp_path) == objects


def test_object_changed_after_listing_is_complete_and_later_updated(s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    put(s3_proxy.server, bins(3))
    changed = bins(3) | {"0/0.jpg": b"longer or shorter"}
    s3_proxy.spoil("list-type", meanwhile(lambda: put(s3_proxy.server, changed)), times=1)
    for requests in (3, 4, 4):  # it is fetched once more, since the listing told of another version
        fetch("s3://shop/bins", tmp_path)
        assert files(tmp_path) == changed
        assert s3_proxy.objects_sent() == requests


def test_an_object_that_is_gone_for_a_moment_is_fetched_later(
    s3_proxy: FaultyProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(s3_proxy.server, bins(3))
    hidden = s3_proxy.server.root / "shop/bins/0/0.jpg"
    s3_proxy.spoil("list-type", meanwhile(hidden.unlink), times=1)
    fetch("s3://shop/bins", tmp_path)
    assert files(tmp_path) == {name: body for name, body in bins(3).items() if name != "0/0.jpg"}
    assert "1 objects are listed, but do not exist any more: bins/0/0.jpg" in caplog.text
    put(s3_proxy.server, bins(3))
    fetch("s3://shop/bins", tmp_path)
    assert files(tmp_path) == bins(3)


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def test_etags_that_are_no_md5s_are_believed_where_headers_say_so(
    s3_proxy: FaultyProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    put(s3_proxy.server, bins(20))
    s3_proxy.spoil("", renamed(md5, x_amz_server_side_encryption="aws:kms"))
    s3_proxy.spoil(r"1/1\.jpg", broken_off, times=3)
    for _ in range(2):
        fetch("s3://shop/bins", tmp_path, connections=4)
        assert files(tmp_path) == bins(20)
    assert caplog.text.count("not MD5s") == 1
    assert s3_proxy.objects_sent() <= 20 + 4 + 3  # those on their way when it is found out, and those cut short


@pytest.mark.usefixtures("hasty")
def test_etags_that_are_no_md5s_are_damage_where_nothing_says_so(s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    put(s3_proxy.server, bins(3))
    s3_proxy.spoil("", renamed(md5))
    with pytest.raises(ResourceError, match="its MD5 does not match its etag"):
        fetch("s3://shop/bins", tmp_path)
    assert files(tmp_path) == {}


@pytest.mark.usefixtures("hasty", "impatient")
def test_ranges_are_whole_or_an_error(s3_proxy: FaultyProxy) -> None:
    body = random.Random(1).randbytes(100_000)
    s3_proxy.server.put("shop", {"shard.tar": body})
    bucket = Bucket("shop")
    for fault in (unavailable, reset_at_once, broken_off, reset_midway, stalled(60)):
        for start, length in ((5, 10), (90_000, 10_000), (400, 1), (0, 5)):
            s3_proxy.spoil("GET", fault, times=1)
            assert bucket.read_range("shard.tar", start, length) == body[start : start + length]
    with pytest.raises(ResourceError, match=r"s3://shop/shard\.tar"):
        bucket.read_range("shard.tar", 99_999, 2)
    with pytest.raises(MissingError, match="does not exist"):
        bucket.read_range("none.tar", 0, 1)
    s3_proxy.spoil("GET", broken_off)
    with pytest.raises(ResourceError, match="failed repeatedly"):
        bucket.read_range("shard.tar", 0, 10)
