"""Local data folders sent to a bucket, against a real S3 server."""

import hashlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from s3_server import S3Server, faulty_proxy, serve, unavailable

from bincounter.cloud.upload import LARGEST, Uploaded, destination, upload
from bincounter.data.s3.download import fetch
from bincounter.errors import DataError, ResourceError

PHOTOS = {f"{count}/{name}.jpg": f"{count}{name}".encode() * 100 for count in (1, 2) for name in "abc"}
OTHERS = {"1/ä b+c%20.jpg": b"a name that addresses escape", "2/empty.jpg": b""}
Client = Any


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path / "bins", PHOTOS | OTHERS)


def made(folder: Path, files: dict[str, bytes]) -> Path:
    for name, body in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    return folder


def connect(server: S3Server) -> Client:
    config = Config(s3={"addressing_style": "path"}, max_pool_connections=16)
    return boto3.client("s3", endpoint_url=server.endpoint, config=config)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server that remembers its folders, unlike that of ``s3``: many writers at a time make that one crawl."""
    with serve(tmp_path_factory.mktemp("uploads")) as running:
        yield running


@pytest.fixture
def client(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client of an empty bucket ``shop``; the environment leads to the server, too."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    connected = connect(server)
    connected.create_bucket(Bucket="shop")
    yield connected
    for page in connected.get_paginator("list_objects_v2").paginate(Bucket="shop"):
        for item in page.get("Contents", ()):
            connected.delete_object(Bucket="shop", Key=item["Key"])
    connected.delete_bucket(Bucket="shop")


def answer(client: Client, operation: str, status: int, code: str, times: int) -> list[str]:
    """Have the first requests of an operation answered by an error; returns the list of all its requests' addresses."""
    seen: list[str] = []
    lock = threading.Lock()

    class Body:
        def stream(self, **_: object) -> list[bytes]:
            return [f"<Error><Code>{code}</Code></Error>".encode()]

    def before_send(request: Any, **_: object) -> AWSResponse | None:
        with lock:
            seen.append(request.url)
            spoilt = len(seen) <= times
        return AWSResponse(request.url, status, {}, Body()) if spoilt else None

    client.meta.events.register(f"before-send.s3.{operation}", before_send)
    return seen


def stored(server: S3Server) -> dict[str, bytes]:
    root = server.root / "shop/data"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_folder_arrives_in_the_bucket_and_can_be_read_from_there(
    server: S3Server, client: Client, folder: Path, tmp_path: Path
) -> None:
    done = upload(folder, "s3://shop/data/", client=client)
    everything = PHOTOS | OTHERS
    size = sum(map(len, everything.values()))
    assert done == Uploaded(len(everything), len(everything), size, "s3://shop/data")
    assert stored(server) == everything
    back = fetch("s3://shop/data", tmp_path / "back")
    assert {name: (back / name).read_bytes() for name in everything} == everything


def test_a_second_time_sends_nothing(client: Client, folder: Path) -> None:
    upload(folder, "s3://shop/data", client=client)
    puts = answer(client, "PutObject", 503, "SlowDown", times=0)
    heads = answer(client, "HeadObject", 503, "SlowDown", times=0)
    done = upload(folder, "s3://shop/data", client=client)
    assert (done.objects, done.sent, done.bytes) == (len(PHOTOS | OTHERS), 0, 0)
    assert not puts and not heads


def test_only_what_changed_is_sent_and_nothing_is_deleted(server: S3Server, client: Client, folder: Path) -> None:
    upload(folder, "s3://shop/data", client=client)
    same_size = PHOTOS["1/a.jpg"][::-1]
    made(folder, {"1/a.jpg": same_size, "3/new.jpg": b"new"})
    (folder / "2/b.jpg").unlink()
    done = upload(folder, "s3://shop/data", client=client)
    assert (done.sent, done.bytes) == (2, len(same_size) + 3)
    assert stored(server) == PHOTOS | OTHERS | {"1/a.jpg": same_size, "3/new.jpg": b"new"}


def test_an_upload_that_broke_off_is_gone_on_with(server: S3Server, client: Client, folder: Path) -> None:
    answer(client, "PutObject", 403, "AccessDenied", times=1)
    with pytest.raises(DataError):
        upload(folder, "s3://shop/data", client=client, workers=1)
    before = len(stored(server))
    done = upload(folder, "s3://shop/data", client=client)
    assert done.sent == len(PHOTOS | OTHERS) - before
    assert stored(server) == PHOTOS | OTHERS


def test_where_etags_are_no_md5_our_own_note_tells(client: Client, folder: Path, tmp_path: Path) -> None:
    with serve(tmp_path / "served", "--etag-hash", "SHA1") as other:
        elsewhere = connect(other)
        elsewhere.create_bucket(Bucket="shop")
        upload(folder, "s3://shop/data", client=elsewhere)
        etag = elsewhere.head_object(Bucket="shop", Key="data/1/a.jpg")["ETag"]
        assert etag.strip('"') != hashlib.md5(PHOTOS["1/a.jpg"]).hexdigest()
        assert upload(folder, "s3://shop/data", client=elsewhere).sent == 0
        made(folder, {"1/a.jpg": PHOTOS["1/a.jpg"][::-1]})
        assert upload(folder, "s3://shop/data", client=elsewhere).sent == 1


def test_a_busy_server_is_asked_again(server: S3Server, client: Client, folder: Path) -> None:
    puts = answer(client, "PutObject", 503, "SlowDown", times=2)
    assert upload(folder, "s3://shop/data", client=client).sent == len(PHOTOS | OTHERS)
    assert len(puts) == len(PHOTOS | OTHERS) + 2
    assert stored(server) == PHOTOS | OTHERS


def test_a_busy_listing_is_asked_for_again(server: S3Server, client: Client, folder: Path) -> None:
    upload(folder, "s3://shop/data", client=client)
    with faulty_proxy(server) as proxy:
        proxy.spoil("list-type", unavailable, times=1)
        passing = connect(S3Server(server.root, proxy.endpoint))
        assert upload(folder, "s3://shop/data", client=passing).sent == 0
        assert len(proxy.requests) == 2


def test_links_to_files_and_folders_are_followed(server: S3Server, client: Client, tmp_path: Path) -> None:
    photos = made(tmp_path / "photos", PHOTOS)
    links = tmp_path / "links"
    (links / "1").mkdir(parents=True)
    (links / "1/a.jpg").symlink_to(photos / "1/a.jpg")
    (links / "2").symlink_to(photos / "2")
    assert upload(links, "s3://shop/data", client=client).sent == 4
    assert stored(server) == {name: body for name, body in PHOTOS.items() if name not in ("1/b.jpg", "1/c.jpg")}


def test_what_is_left_out_is_named(
    server: S3Server, client: Client, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made(folder, {".DS_Store": b"hidden", ".git/config": b"hidden"})
    (folder / "1/gone.jpg").symlink_to("nowhere.jpg")
    made(folder, {"2/huge.jpg": b""})
    os.truncate(folder / "2/huge.jpg", LARGEST + 1)
    with caplog.at_level(logging.INFO):
        done = upload(folder, "s3://shop/data", client=client)
    assert done.objects == len(PHOTOS | OTHERS)
    assert stored(server) == PHOTOS | OTHERS
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "2 left out of the upload: 1/gone.jpg (dangling link), 2/huge.jpg (larger than the 5 GB that S3 takes at once)"
    ]
    shown = caplog.records[1].getMessage()  # before the first is sent
    assert re.search(rf"{done.objects} files, 0\.0 MB; s3://shop/data holds 0 objects", shown)


def test_the_place_of_a_folder_is_named_by_what_it_holds(folder: Path, tmp_path: Path) -> None:
    place = destination(folder, "s3://shop/data/")
    assert re.fullmatch(r"s3://shop/data/bins-[0-9a-f]{12}", place)
    copy = shutil.copytree(folder, tmp_path / "again" / "bins")
    (copy / ".hidden").write_text("does not count")
    assert destination(copy, "s3://shop/data") == place
    places = {place}
    for name, body in {"1/a.jpg": PHOTOS["1/a.jpg"][::-1], "1/more.jpg": b"", "1/most.jpg": b""}.items():
        made(copy, {name: body})
        places.add(destination(copy, "s3://shop/data"))
    (copy / "1/a.jpg").rename(copy / "2/moved.jpg")
    places.add(destination(copy, "s3://shop/data"))
    assert len(places) == 5


def test_the_name_of_a_folder_becomes_one_of_an_address(tmp_path: Path) -> None:
    odd = made(tmp_path / "Größe & more", {"1/a.jpg": b"a"})
    assert re.fullmatch(r"s3://shop/Gr-e-more-[0-9a-f]{12}", destination(odd, "s3://shop"))


def test_folders_without_files_are_refused(client: Client, tmp_path: Path) -> None:
    (tmp_path / "empty/1").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    for name, said in {"empty": "holds no file", "missing": "does not exist", "file": "is no folder"}.items():
        with pytest.raises(DataError, match=f"{name} {said}.*: set data.source to "):
            destination(tmp_path / name, "s3://shop/data")
        with pytest.raises(DataError, match=f"{name} {said}.*: set data.source to "):
            upload(tmp_path / name, "s3://shop/data", client=client)


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "AccessDenied", r"writing s3://shop/data/\S+ is denied: have s3:PutObject allowed"),
        (400, "BadDigest", r"s3://shop/data/\S+ arrived as something else.* run the same command again"),
        (400, "ExpiredToken", r"refuses the credentials \(ExpiredToken\): log in again"),
        (301, "PermanentRedirect", r"is in another region: set AWS_REGION"),
        (404, "NoSuchBucket", r"there is no bucket shop: create it"),
    ],
)
def test_errors_of_the_server_are_sentences(client: Client, folder: Path, status: int, code: str, said: str) -> None:
    answer(client, "PutObject", status, code, times=1_000_000)
    with pytest.raises(DataError, match=said):
        upload(folder, "s3://shop/data", client=client)


def test_a_missing_bucket_and_a_wrong_address_are_sentences(client: Client, folder: Path) -> None:
    with pytest.raises(DataError, match="there is no bucket market: create it"):
        upload(folder, "s3://market/data", client=client)
    with pytest.raises(DataError, match=r"write it as s3://bucket/folder"):
        upload(folder, "s3:/shop/data", client=client)
    answer(client, "ListObjectsV2", 400, "ExpiredToken", times=1)
    with pytest.raises(DataError, match="log in again"):
        upload(folder, "s3://shop/data", client=client)


@pytest.mark.usefixtures("client")
def test_a_server_that_does_not_answer_is_a_sentence(server: S3Server, folder: Path) -> None:
    client = connect(S3Server(server.root, "http://127.0.0.1:9"))
    with pytest.raises(ResourceError, match=r"127\.0\.0\.1:9 cannot be reached for s3://shop/data/"):
        upload(folder, "s3://shop/data", client=client)
