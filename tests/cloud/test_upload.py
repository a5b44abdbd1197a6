"""Local data folders sent to a bucket, against a real S3 server."""

import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3Server
from sent_buckets import empty_buckets, made, stored, writable_server

from bincounter.cloud.submission import upload, upload_address
from bincounter.data.s3.sync import fetch
from bincounter.data.s3.upload import Uploaded
from bincounter.errors import DataError

PHOTOS = {f"{count}/{name}.jpg": f"{count}{name}".encode() * 100 for count in (1, 2) for name in "abc"}
OTHERS = {"1/ä b+c%20.jpg": b"a name that addresses escape", "2/empty.jpg": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path / "bins", PHOTOS | OTHERS)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with writable_server(tmp_path_factory.mktemp("uploads")) as running:
        yield running


@pytest.fixture
def server(running: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server with an empty bucket ``shop``, which the environment leads to."""
    with empty_buckets(running, monkeypatch, "shop"):
        yield running


def test_a_folder_arrives_in_the_bucket_and_can_be_read_from_there(
    server: S3Server, folder: Path, tmp_path: Path
) -> None:
    done = upload(folder, "s3://shop/data/")
    everything = PHOTOS | OTHERS
    size = sum(map(len, everything.values()))
    assert done == Uploaded(len(everything), len(everything), size, "s3://shop/data")
    assert stored(server) == everything
    back = fetch("s3://shop/data", tmp_path / "back")
    assert {name: (back / name).read_bytes() for name in everything} == everything


def test_links_to_files_and_folders_are_followed(server: S3Server, tmp_path: Path) -> None:
    photos = made(tmp_path / "photos", PHOTOS)
    links = tmp_path / "links"
    (links / "1").mkdir(parents=True)
    (links / "1/a.jpg").symlink_to(photos / "1/a.jpg")
    (links / "2").symlink_to(photos / "2")
    assert upload(links, "s3://shop/data").sent == 4
    assert stored(server) == {name: body for name, body in PHOTOS.items() if name not in ("1/b.jpg", "1/c.jpg")}


def test_what_is_left_out_is_named(server: S3Server, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    made(folder, {".DS_Store": b"hidden", ".git/config": b"hidden"})
    (folder / "1/gone.jpg").symlink_to("nowhere.jpg")
    with caplog.at_level(logging.WARNING):
        done = upload(folder, "s3://shop/data")
    assert done.objects == len(PHOTOS | OTHERS)
    assert stored(server) == PHOTOS | OTHERS
    assert [record.getMessage() for record in caplog.records] == ["1 skipped in the upload: 1/gone.jpg (dangling link)"]


def test_the_place_of_a_folder_is_named_by_what_it_holds(folder: Path, tmp_path: Path) -> None:
    place = upload_address(folder, "s3://shop/data/")
    assert re.fullmatch(r"s3://shop/data/bins-[0-9a-f]{12}", place)
    copy = shutil.copytree(folder, tmp_path / "again" / "bins")
    (copy / ".hidden").write_text("does not count")
    assert upload_address(copy, "s3://shop/data") == place
    places = {place}
    for name, body in {"1/a.jpg": PHOTOS["1/a.jpg"][::-1], "1/more.jpg": b"", "1/most.jpg": b""}.items():
        made(copy, {name: body})
        places.add(upload_address(copy, "s3://shop/data"))
    (copy / "1/a.jpg").rename(copy / "2/moved.jpg")
    places.add(upload_address(copy, "s3://shop/data"))
    assert len(places) == 5


def test_the_name_of_a_folder_becomes_one_of_an_address(tmp_path: Path) -> None:
    odd = made(tmp_path / "Größe & more", {"1/a.jpg": b"a"})
    assert re.fullmatch(r"s3://shop/Gr-e-more-[0-9a-f]{12}", upload_address(odd, "s3://shop"))


def test_folders_without_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty/1").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    for name, said in {"empty": "holds no file", "missing": "does not exist", "file": "is not a folder"}.items():
        with pytest.raises(DataError, match=f"{name} {said}.*: set data.source to "):
            upload_address(tmp_path / name, "s3://shop/data")
        with pytest.raises(DataError, match=f"{name} {said}.*: set data.source to "):
            upload(tmp_path / name, "s3://shop/data")
