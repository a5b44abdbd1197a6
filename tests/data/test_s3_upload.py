"""Files sent to a bucket of a real S3 server, with faults on the way."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Start
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_faults import denied, error, expired, failing, meanwhile, renamed, reset_at_once, stalled, unavailable
from s3_proxy import Fault, FaultyProxy, faulty_proxy
from s3_server import S3Server
from sent_buckets import empty_buckets, made, stored, writable_server

from bincounter.data.s3 import bucket
from bincounter.data.s3.address import unusable_reason
from bincounter.data.s3.sync import fetch
from bincounter.data.s3.upload import MAX_OBJECT_BYTES, Uploaded, send
from bincounter.errors import DataError, ResourceError

FILES = {f"{count}/{name}.jpg": f"{count}{name}".encode() * 100 for count in (1, 2) for name in "abc"} | {
    "1/ä b+c%20.jpg": b"a name that addresses escape",
    "2/empty.jpg": b"",
}
SIZE = sum(map(len, FILES.values()))
URI = "s3://shop/data"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with writable_server(tmp_path_factory.mktemp("sent")) as running:
        yield running


@pytest.fixture
def proxy(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy before a server with an empty bucket ``shop``, which the environment leads to."""
    with empty_buckets(server, monkeypatch, "shop"), faulty_proxy(server) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path / "files", FILES)


def all_of(folder: Path) -> list[tuple[Path, str]]:
    return [(path, path.relative_to(folder).as_posix()) for path in sorted(folder.rglob("*")) if path.is_file()]


def requests(proxy: FaultyProxy, method: str) -> list[str]:
    return [request for request in proxy.requests if request.startswith(method)]


def test_what_is_there_is_not_sent_again(proxy: FaultyProxy, folder: Path) -> None:
    assert send(all_of(folder), f"{URI}/") == Uploaded(len(FILES), len(FILES), SIZE, URI)
    assert stored(proxy.server) == FILES
    proxy.requests.clear()
    assert send(all_of(folder), URI) == Uploaded(len(FILES), 0, 0, URI)
    assert len(proxy.requests) == 1  # the listing


def test_only_what_changed_is_sent_and_nothing_is_deleted(
    proxy: FaultyProxy, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    send(all_of(folder), URI)
    of_same_size = FILES["1/a.jpg"][::-1]
    made(folder, {"1/a.jpg": of_same_size, "3/new.jpg": b"new"})
    (folder / "2/b.jpg").unlink()
    with caplog.at_level(logging.INFO):
        assert send(all_of(folder), URI) == Uploaded(len(FILES), 2, len(of_same_size) + 3, URI)
    assert stored(proxy.server) == FILES | {"1/a.jpg": of_same_size, "3/new.jpg": b"new"}
    assert f"{URI} holds 1 other objects, which stay: 2/b.jpg" in caplog.messages


def test_where_etags_are_no_md5s_a_note_tells(proxy: FaultyProxy, folder: Path) -> None:
    proxy.spoil("", renamed(lambda etag: etag[::-1], x_amz_server_side_encryption="aws:kms"))
    send(all_of(folder), URI, connections=1)
    assert stored(proxy.server) == FILES
    assert (
        len(requests(proxy, "PUT")) == len(FILES) + 1
    )  # the first one twice, until it is clear that etags tell nothing
    assert send(all_of(folder), URI).sent == 0
    made(folder, {"1/a.jpg": FILES["1/a.jpg"][::-1]})
    assert send(all_of(folder), URI).sent == 1
    assert stored(proxy.server) == FILES | {"1/a.jpg": FILES["1/a.jpg"][::-1]}


def test_the_last_ones_come_after_all_others(proxy: FaultyProxy, folder: Path) -> None:
    tables = made(folder.parent / "tables", {"quarantine.csv": b"q", "split.csv": b"s"})
    done = send(all_of(folder), URI, last=all_of(tables))
    assert done.objects == len(FILES) + 2
    sent = [request.split("?")[0].rpartition("/")[2] for request in requests(proxy, "PUT")]
    assert sent[-2:] == ["quarantine.csv", "split.csv"] and len(sent) == done.objects


def test_nothing_is_sent_beside_what_is_refused(proxy: FaultyProxy, folder: Path) -> None:
    send([(folder / "1/a.jpg", "old/a.jpg"), (folder / "1/b.jpg", "1/b.jpg")], URI)
    with pytest.raises(DataError, match=r"s3://shop/data holds other photos, such as old/a\.jpg: name an empty folder"):
        send(all_of(folder), URI, refused=lambda name: name.endswith(".jpg"))
    assert stored(proxy.server).keys() == {"old/a.jpg", "1/b.jpg"}


def test_large_files_are_sent_in_parts(proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "_AT_ONCE", 6 << 20)
    monkeypatch.setattr(bucket, "_PART", 5 << 20)
    files = {"shard.tar": os.urandom(12 << 20), "photo.png": os.urandom(2 << 20)}
    folder = made(tmp_path / "large", files)
    assert send(all_of(folder), URI).sent == 2
    assert stored(proxy.server) == files
    assert len([request for request in requests(proxy, "PUT") if "uploadId" in request]) == 3
    assert send(all_of(folder), URI).sent == 0


@pytest.mark.parametrize("fault", [unavailable, failing, reset_at_once])
def test_what_fails_for_a_moment_is_tried_again(proxy: FaultyProxy, folder: Path, fault: Fault) -> None:
    proxy.spoil("list-type", fault, times=1)
    proxy.spoil("^PUT", fault, times=3)
    assert send(all_of(folder), URI).sent == len(FILES)
    assert stored(proxy.server) == FILES


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (denied, r"writing s3://shop/data/\S.* is denied: have s3:PutObject allowed"),
        (error(400, "BadDigest"), r"s3://shop/data/\S.* arrived with another MD5.* run the same command again"),
        (expired, r"refuses the credentials \(ExpiredToken\): log in again"),
        (error(301, "PermanentRedirect"), r"is in another region: set AWS_REGION"),
        (error(404, "NoSuchBucket"), r"bucket shop does not exist: create it"),
    ],
)
def test_what_fails_for_good_is_a_sentence_and_the_same_call_goes_on(
    proxy: FaultyProxy, folder: Path, fault: Fault, said: str
) -> None:
    arrived = 3
    proxy.spoil("^PUT", fault, after=arrived)
    with pytest.raises(DataError, match=said):
        send(all_of(folder), URI, connections=1)
    proxy.mend()
    proxy.requests.clear()
    assert send(all_of(folder), URI).objects == len(FILES)
    assert len(requests(proxy, "PUT")) < len(FILES)
    assert stored(proxy.server) == FILES


def test_wrong_places_are_sentences(proxy: FaultyProxy, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="bucket market does not exist: create it"):
        send(all_of(folder), "s3://market/data")
    with pytest.raises(DataError, match="write it as s3://bucket/folder"):
        send(all_of(folder), "s3:/shop/data")
    proxy.spoil("list-type", expired, times=1_000)
    with pytest.raises(DataError, match="log in again"):
        send(all_of(folder), URI)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ResourceError, match=r"127\.0\.0\.1:9 cannot be reached for s3://shop/data/"):
        send(all_of(folder), URI)


def test_files_that_cannot_be_sent_are_a_sentence_before_any_is(proxy: FaultyProxy, folder: Path) -> None:
    whole, photo = list(all_of(folder)), folder / "1/a.jpg"
    made(folder, {"huge.tar": b""})
    os.truncate(folder / "huge.tar", MAX_OBJECT_BYTES + 1)
    for file, said in [
        (
            (folder / "gone.jpg", "gone.jpg"),
            r"gone\.jpg cannot be read \(no such file or directory\): make it readable",
        ),
        ((folder / "huge.tar", "huge.tar"), r"huge\.tar cannot become .*larger than the 5 TB that S3 takes"),
        ((photo, "/".join(["f" * 200] * 6)), r"needs a key of 1210 bytes and S3 takes 1024, name a shorter folder"),
        ((photo, "1/../b.jpg"), r"has \. or \.\. as a folder"),
        ((photo, "2/b.jpg"), r"two files would become s3://shop/data/2/b\.jpg: rename one"),
        ((photo, os.fsdecode(b"\xff.jpg")), r"is not UTF-8"),
    ]:
        with pytest.raises(DataError, match=said):
            send([*whole, file], URI)
    assert not proxy.requests


def test_a_file_that_is_changed_meanwhile_is_a_sentence(proxy: FaultyProxy, folder: Path) -> None:
    proxy.spoil("list-type", meanwhile(lambda: (folder / "1/a.jpg").write_bytes(b"other")), times=1)
    with pytest.raises(DataError, match=r"1/a\.jpg was changed while it was sent: run the same command again"):
        send(all_of(folder), URI)
    send(all_of(folder), URI)
    assert stored(proxy.server) == FILES | {"1/a.jpg": b"other"}


def test_a_killed_call_leaves_whole_objects_and_is_gone_on_with(start: Start, proxy: FaultyProxy, folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from bincounter.data.s3.upload import send; folder = Path(sys.argv[1]); "
        "send([(path, str(path.relative_to(folder))) for path in folder.rglob('*.jpg')], 's3://shop/data', "
        "last=[(folder / '1/a.jpg', 'split.csv')], connections=4)"
    )
    process = start("-c", code, str(folder))
    proxy.spoil("^PUT", meanwhile(lambda: os.kill(process.pid, signal.SIGKILL)), after=3)
    process.wait()
    arrived = stored(proxy.server)
    assert 4 <= len(arrived) < len(FILES) + 1 and arrived.items() <= FILES.items()
    proxy.mend()
    assert send(all_of(folder), URI).sent <= len(FILES) - len(arrived)  # some were still on their way
    assert stored(proxy.server) == FILES


def test_no_large_file_is_begun_after_an_error(proxy: FaultyProxy, tmp_path: Path) -> None:
    folder = made(tmp_path / "large", {f"{number}.png": os.urandom(2 << 20) for number in range(40)})
    proxy.spoil(r"^PUT .*/0\.png", denied)
    proxy.spoil("^PUT", stalled(1))
    with pytest.raises(DataError, match="denied"):
        send(all_of(folder), URI)
    begun = set(requests(proxy, "PUT"))
    time.sleep(2)
    assert set(requests(proxy, "PUT")) == begun


def test_a_notebook_sends_from_within_its_loop(proxy: FaultyProxy, folder: Path) -> None:
    async def cell() -> Uploaded:
        return send(all_of(folder), URI)

    assert asyncio.run(cell()).sent == len(FILES)


NAMES = (
    st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\"), min_size=1, max_size=20),
        min_size=1,
        max_size=3,
    )
    .map("/".join)
    .filter(lambda name: unusable_reason(name) is None)
)


@pytest.fixture(scope="module")
def odd(server: S3Server) -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as monkeypatch, empty_buckets(server, monkeypatch, "odd"):
        yield server


@settings(max_examples=4, deadline=None)
@given(st.lists(st.tuples(NAMES, st.binary(max_size=100)), min_size=1, max_size=20))
def test_whatever_a_name_holds_it_comes_back(
    odd: S3Server, tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    files = {f"{index}/{name}": body for index, (name, body) in enumerate(drawn)}
    sources = made(folder, {f"files/{index}": body for index, body in enumerate(files.values())})
    named = [(sources / f"files/{index}", name) for index, name in enumerate(files)]
    uri = f"s3://odd/{folder.name}"
    assert send(named, uri).sent == len(files)
    assert send(named, uri).sent == 0
    back = fetch(uri, folder / "back")
    assert {name: (back / name).read_bytes() for name in files} == files
