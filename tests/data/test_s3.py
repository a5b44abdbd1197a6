"""``s3://`` sources, against a real S3 server."""

import json
import logging
import os
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_photos import photo_bytes
from s3_faults import listing
from s3_proxy import FaultyProxy
from s3_server import S3Server

from bincounter.data.layouts.folders import Folders
from bincounter.data.s3.address import is_remote, parse_address, unusable_reason
from bincounter.data.s3.sync import fetch
from bincounter.data.source import fetch_photos, find_photos, list_photos
from bincounter.errors import DataError, ResourceError

PHOTOS = {f"bins/{count}/{name}.jpg": f"{count}{name}".encode() * 100 for count in (1, 2) for name in "abc"}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def below(prefix: str, objects: dict[str, bytes]) -> dict[str, bytes]:
    return {key.removeprefix(prefix): body for key, body in objects.items() if key.startswith(prefix)}


def test_a_folder_of_a_bucket_is_made_the_same_here(s3: S3Server, tmp_path: Path) -> None:
    s3.put("shop", PHOTOS | {"bins2/x.jpg": b"another folder", "bins.txt": b"no folder"})
    folder = fetch("s3://shop/bins/", tmp_path)
    assert folder == tmp_path / "s3" / "shop" / "bins"
    assert files(folder) == below("bins/", PHOTOS)
    assert files(tmp_path / "s3" / "shop").keys() == PHOTOS.keys()


def test_a_whole_bucket_and_a_folder_of_it_share_their_files(s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    s3_proxy.server.put("shop", PHOTOS | {"more.jpg": b"more"})
    fetch("s3://shop/bins", tmp_path)
    assert files(fetch("s3://shop", tmp_path)) == PHOTOS | {"more.jpg": b"more"}
    assert s3_proxy.objects_sent() == len(PHOTOS) + 1


def test_nothing_is_transferred_when_nothing_changed(s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    s3_proxy.server.put("shop", PHOTOS)
    folder = fetch("s3://shop/bins", tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jpg")}
    s3_proxy.requests.clear()
    fetch("s3://shop/bins", tmp_path)
    assert len(s3_proxy.requests) == 1 and s3_proxy.objects_sent() == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.rglob("*.jpg")}


def test_changed_new_and_deleted_objects_follow(s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    server = s3_proxy.server
    server.put("shop", PHOTOS | {"bins/9/only.jpg": b"the last of its folder"})
    folder = fetch("s3://shop/bins", tmp_path)
    (folder / "1" / "mine.jpg").write_bytes(b"put here by a person")
    same_size = PHOTOS["bins/1/a.jpg"][::-1]
    server.put("shop", {"bins/1/a.jpg": same_size, "bins/3/new.jpg": b"new"})
    (server.root / "shop/bins/1/b.jpg").unlink()
    (server.root / "shop/bins/9/only.jpg").unlink()
    s3_proxy.requests.clear()
    fetch("s3://shop/bins", tmp_path)
    expected = below("bins/", PHOTOS) | {
        "1/a.jpg": same_size,
        "3/new.jpg": b"new",
        "1/mine.jpg": b"put here by a person",
    }
    del expected["1/b.jpg"]
    assert files(folder) == expected
    assert not (folder / "9").exists()
    assert s3_proxy.objects_sent() == 2


def test_a_folder_may_become_an_object_and_back(s3: S3Server, tmp_path: Path) -> None:
    for objects in ({"x/a": b"1", "x/keep": b"k"}, {"x/a/b": b"2", "x/keep": b"k"}, {"x/a": b"3", "x/keep": b"k"}):
        for path in sorted((s3.root / "shop").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        s3.put("shop", objects)
        assert files(fetch("s3://shop/x", tmp_path)) == below("x/", objects)


def test_files_that_were_cut_or_deleted_here_are_fetched_again(s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    s3_proxy.server.put("shop", PHOTOS)
    folder = fetch("s3://shop/bins", tmp_path)
    (folder / "1/a.jpg").write_bytes(b"cut")
    (folder / "2/c.jpg").unlink()
    s3_proxy.requests.clear()
    fetch("s3://shop/bins", tmp_path)
    assert files(folder) == below("bins/", PHOTOS)
    assert s3_proxy.objects_sent() == 2


@pytest.mark.parametrize("damage", ["no database", "cut short", "foreign rows"])
def test_a_damaged_catalogue_costs_transfers_but_no_files(s3: S3Server, tmp_path: Path, damage: str) -> None:
    s3.put("shop", PHOTOS)
    fetch("s3://shop/bins", tmp_path)
    (tmp_path / "outside").write_bytes(b"1")
    catalogue = tmp_path / "s3/.sync/shop.sqlite"
    if damage == "no database":
        catalogue.write_bytes(b"\xff\x00 no database" * 1000)
    elif damage == "cut short":
        catalogue.write_bytes(catalogue.read_bytes()[:5000])
    else:
        with sqlite3.connect(catalogue) as rows:
            rows.execute("INSERT INTO objects VALUES ('bins/../../../outside', 'e', 1)")
    (s3.root / "shop/bins/2/c.jpg").write_bytes(b"changed")
    for _ in range(2):
        folder = fetch("s3://shop/bins", tmp_path)
        assert files(folder) == below("bins/", PHOTOS) | {"2/c.jpg": b"changed"}
    assert (tmp_path / "outside").exists()


def test_more_objects_than_a_listing_holds(s3: S3Server, tmp_path: Path) -> None:
    objects = {f"{number // 50}/{number}": str(number).encode() for number in range(1050)}
    s3.put("big", objects)
    assert files(fetch("s3://big", tmp_path, connections=8)) == objects


def test_an_object_deleted_after_the_listing_is_left_out(s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    s3_proxy.server.put("shop", PHOTOS)
    s3_proxy.spoil("list-type", listing(("bins/9/gone.jpg", 5)))
    assert files(fetch("s3://shop/bins", tmp_path)) == below("bins/", PHOTOS)


def test_more_than_the_disk_holds_is_refused_before_it_starts(s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    s3_proxy.server.put("shop", PHOTOS)
    s3_proxy.spoil("list-type", listing(("bins/9/huge.jpg", 10**17)))
    with pytest.raises(ResourceError, match="GB are to be fetched"):
        fetch("s3://shop/bins", tmp_path)
    assert s3_proxy.objects_sent() == 0


def test_keys_that_cannot_be_files_are_left_out_and_named(
    s3_proxy: FaultyProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    s3_proxy.server.put("shop", PHOTOS)
    bad = ["bins/../../../escaped", "bins//double", "bins/./dot", "bins/1", "bins/" + "n" * 300]
    s3_proxy.spoil("list-type", listing(*((key, 5) for key in bad), ("bins/marker/", 0)))
    with caplog.at_level(logging.WARNING):
        folder = fetch("s3://shop/bins", tmp_path)
    assert files(folder) == below("bins/", PHOTOS)
    assert not (tmp_path / "escaped").exists()
    assert "5 objects cannot be local files" in caplog.text
    assert all(repr(key) in caplog.text for key in bad) and "marker" not in caplog.text


def test_all_keys_that_cannot_be_files_are_in_quarantine(s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    s3_proxy.server.put("shop", {"bins/1/a.jpg": photo_bytes(1)})
    bad = {f"bins/{number}//double.jpg" for number in range(9)}
    s3_proxy.spoil("list-type", listing(("bins/1/a.jpg", len(photo_bytes(1))), *((key, 5) for key in bad)))
    for _ in range(2):  # they stay there when nothing is fetched any more
        manifest = find_photos(
            "s3://shop/bins",
            Folders(),
            counts=None,
            sync={"only": "all", "deleted": "mirror", "connections": 4},
            data_dir=tmp_path / "data",
            cache_dir=tmp_path / "cache",
            stored_size=None,
            workers=1,
        )
        assert [record.id for record in manifest.records] == ["1/a.jpg"]
        assert {f"bins/{refusal.path}" for refusal in manifest.refusals} == bad
        assert {refusal.reason for refusal in manifest.refusals} == {"object that has an empty folder or file name"}


def test_a_photo_of_a_bucket_is_counted_by_its_own_address(s3: S3Server, tmp_path: Path) -> None:
    s3.put("shop", PHOTOS | {"top.png": b"x", "bins/x.jpg/3.jpg": b"in a folder"})
    assert list_photos("s3://shop/bins/1/a.jpg", tmp_path) == [tmp_path / "s3/shop/bins/1/a.jpg"]
    assert list_photos("s3://shop/top.png", tmp_path) == [tmp_path / "s3/shop/top.png"]
    assert list_photos("s3://shop/bins/x.jpg", tmp_path) == [tmp_path / "s3/shop/bins/x.jpg/3.jpg"]
    assert set(files(tmp_path / "s3/shop")) == {"bins/1/a.jpg", "top.png", "bins/x.jpg/3.jpg"}
    with pytest.raises(DataError, match=r"no object exists under s3://shop/bins/1/z.jpg/"):
        list_photos("s3://shop/bins/1/z.jpg", tmp_path)


def abid(ids: list[str], prefix: str = "") -> dict[str, bytes]:
    objects = {f"{prefix}bin-images/{name}.jpg": f"photo {name}".encode() for name in ids}
    return objects | {f"{prefix}metadata/{name}.json": json.dumps({"id": name}).encode() for name in ids}


def test_ids_are_fetched_without_a_listing(
    s3_proxy: FaultyProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    s3_proxy.server.put("shop", abid(["1", "00001", "7", "8"], "abid/"))
    with caplog.at_level(logging.WARNING):
        folder = fetch_photos("s3://shop/abid", tmp_path, ids=["1", "00001", "404", "../8", "1"])
    assert files(folder) == abid(["1", "00001"])
    assert "bin-images/404.jpg" in caplog.text and "../8" in caplog.text
    assert s3_proxy.objects_sent() == len(s3_proxy.requests) == 6


def test_ids_again_transfer_only_what_changed(s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    s3_proxy.server.put("shop", abid(["1", "2", "3", "4"]))
    fetch_photos("s3://shop", tmp_path, ids=["1", "2", "3"])
    (s3_proxy.server.root / "shop/bin-images/1.jpg").write_bytes(b"another")
    (s3_proxy.server.root / "shop/metadata/2.json").unlink()
    folder = tmp_path / "s3/shop"
    unchanged = (folder / "bin-images/3.jpg").stat().st_mtime_ns
    fetch_photos("s3://shop", tmp_path, ids=["1", "2"])
    expected = abid(["1", "2", "3"]) | {"bin-images/1.jpg": b"another"}
    del expected["metadata/2.json"]
    assert files(folder) == expected
    assert (folder / "bin-images/3.jpg").stat().st_mtime_ns == unchanged
    s3_proxy.requests.clear()
    fetch("s3://shop", tmp_path)  # all of it: what the ids brought is not sent again
    assert s3_proxy.objects_sent() == 2


@pytest.mark.parametrize("ids", [["1", "2"], None])
def test_files_of_deleted_objects_stay_if_asked(s3: S3Server, tmp_path: Path, ids: list[str] | None) -> None:
    s3.put("shop", abid(["1", "2"]))
    fetch_photos("s3://shop", tmp_path, ids=ids, deleted="keep")
    (s3.root / "shop/bin-images/1.jpg").unlink()
    for bins in (ids, ids and ids[:1]):
        assert files(fetch_photos("s3://shop", tmp_path, ids=bins, deleted="keep")) == abid(["1", "2"])
    assert "bin-images/1.jpg" not in files(fetch_photos("s3://shop", tmp_path, ids=ids))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("s3://shop/nothing", "no object exists under s3://shop/nothing/"),
        ("s3://shop/bins/1/a.jpg", "no object exists under"),
        ("s3://no-such-bucket/x", "has no bucket for s3://no-such-bucket"),
        ("s3:/shop/bins", "write it as s3://bucket/folder"),
        ("S3://shop/bins", "write it as s3://bucket/folder"),
        ("s3://", "has no valid bucket name"),
        ("s3://../x", "has no valid bucket name"),
        ("s3://shop/../x", "has . or .. as a folder"),
        ("s3://shop//x", "empty folder"),
        ("s3://shop/\udcff", "is not UTF-8"),
    ],
)
def test_wrong_addresses_are_one_sentence(s3: S3Server, tmp_path: Path, source: str, sentence: str) -> None:
    s3.put("shop", PHOTOS)
    assert is_remote(source)
    with pytest.raises(DataError) as caught:
        fetch(source, tmp_path)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_ids_that_are_denied_later_cost_nothing_that_was_fetched(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("shop", abid(["1"]))
    fetch_photos("s3://shop", tmp_path, ids=["1"])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(DataError, match="is not readable without credentials"):
        fetch_photos("s3://shop", tmp_path, ids=["1"])
    for name, body in abid(["1"]).items():
        assert (tmp_path / "s3/shop" / name).read_bytes() == body


def test_ids_of_which_none_exists_are_an_error(s3: S3Server, tmp_path: Path) -> None:
    s3.put("shop", PHOTOS)
    with pytest.raises(DataError, match="none of the 4 objects exists"):
        fetch_photos("s3://shop", tmp_path, ids=["1", "2"])
    with pytest.raises(DataError, match="has no bucket"):
        fetch_photos("s3://no-such-bucket", tmp_path, ids=["1", "2"])


NAMES = st.text(st.sampled_from("a./\\\0~ é-\ud800"), max_size=12) | st.text(max_size=300)


@given(NAMES, NAMES)
def test_keys_that_pass_name_different_files_inside_the_folder(first: str, second: str) -> None:
    root = "/mirror"
    passed = [key for key in (first, second) if unusable_reason(key) is None]
    paths = [os.path.normpath(f"{root}/{key}") for key in passed]
    assert all(path.startswith(f"{root}/") for path in paths)
    assert len(set(paths)) == len(set(passed))


@given(st.text(max_size=60))
def test_any_text_after_the_scheme_is_parsed_or_refused(rest: str) -> None:
    try:
        bucket, prefix = parse_address(f"s3://{rest}")
    except DataError:
        return
    assert f"{bucket}/{prefix}".rstrip("/") == rest.rstrip("/")
    assert prefix == "" or unusable_reason(prefix) is None


@pytest.mark.parametrize("source", ["../shared/abid", "/data/s3", "s3", "data/s3://x", "C:s3"])
def test_local_folders_are_not_remote(source: str) -> None:
    assert not is_remote(source)
