"""Choice of the objects to fetch and the files to delete: counts, ids, kept files, listings in parts."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from made_photos import photo_bytes
from s3_bins import bins, files, put
from s3_faults import denied, listing
from s3_proxy import FaultyProxy
from s3_server import S3Server

from bincounter.data.layouts.abid import Abid, read_photo_names
from bincounter.data.layouts.folders import Folders
from bincounter.data.s3 import catalogue
from bincounter.data.s3.sync import fetch
from bincounter.data.source import fetch_photos, find_photos
from bincounter.errors import DataError

FOLDERS = {f"{count}/{name}.jpg": f"{count}{name}".encode() for count in (0, 1, 2, 10) for name in "ab"}
SPLIT = {f"{split}/{name}": body for split in ("train", "Valid", "test") for name, body in FOLDERS.items()}
TABLES = {"split.csv": b"id,count,group,split\n", "read/me.txt": b"no photo", "x.jpg": b"in no folder of a count"}


def abid(counts: dict[str, object]) -> dict[str, bytes]:
    """Photos with metadata, by id."""
    objects = {f"bin-images/{name}.jpg": f"photo {name}".encode() for name in counts}
    return objects | {
        f"metadata/{name}.json": json.dumps({"EXPECTED_QUANTITY": count}).encode() for name, count in counts.items()
    }


ABID = abid({"1": 1, "02": 2, "3": 1, "4": 40, "5": "many"})


def without(objects: dict[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: body for name, body in objects.items() if name not in names}


@pytest.mark.parametrize(
    ("objects", "left"),
    [
        (FOLDERS, [name for name in FOLDERS if name.split("/")[0] in ("0", "10")]),
        (SPLIT, [name for name in SPLIT if name.split("/")[1] in ("0", "10")]),
        (ABID, ["bin-images/4.jpg"]),  # what has no count that can be read is for the layout to report
    ],
    ids=["bin folders", "split bin folders", "ABID"],
)
def test_only_photos_of_the_counts_are_fetched(
    s3_proxy: FaultyProxy,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    objects: dict[str, bytes],
    left: Sequence[str],
) -> None:
    put(s3_proxy.server, objects | TABLES)
    caplog.set_level(logging.INFO)
    for requests in (len(objects) + len(TABLES) - len(left), 0):
        s3_proxy.requests.clear()
        fetch_photos("s3://shop/bins", tmp_path, counts=[1, 2], only="counts")
        assert files(tmp_path) == without(objects, *left) | TABLES
        assert s3_proxy.objects_sent() == requests
        assert len(s3_proxy.requests) == requests + 1
        assert f"{len(left)} objects are excluded by data.sync.only and stay in the bucket" in caplog.text
    fetch_photos("s3://shop/bins", tmp_path, counts=[1, 2])
    assert files(tmp_path) == objects | TABLES
    fetch_photos("s3://shop/bins", tmp_path, counts=[1], only="counts")
    # what is here stays, as long as it is in the bucket
    assert files(tmp_path) == objects | TABLES
    (s3_proxy.server.root / "shop/bins" / left[0]).unlink()
    fetch_photos("s3://shop/bins", tmp_path, counts=[1], only="counts")
    assert files(tmp_path) == without(objects, left[0]) | TABLES


def test_only_photos_of_the_counts_are_fetched_of_ids(
    s3_proxy: FaultyProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(s3_proxy.server, ABID | abid({"9": 1}))
    ids = ["1", "4", "404", "5", "tab\t", os.fsdecode(b"\xff")]
    expected = {name: body for name, body in ABID.items() if Path(name).stem in ids}
    for counts, left in (([1], ["bin-images/4.jpg"]), ([1, 40], [])):
        fetch_photos("s3://shop/bins", tmp_path, ids=ids, counts=counts, only="counts")
        assert files(tmp_path) == without(expected, *left)
    assert all(name in caplog.text for name in ("bin-images/404.jpg", "metadata/404.json", "bin-images/tab\t.jpg"))
    assert "'bins/bin-images/\\udcff.jpg' is not UTF-8" in caplog.text
    fetch_photos("s3://shop/bins", tmp_path, ids=["1", "4"], counts=[7], only="counts")  # which none of them has
    fetch_photos("s3://shop/bins", tmp_path, ids=ids, only="counts")  # no counts are all counts
    assert files(tmp_path) == expected


def test_photos_of_an_id_list_are_fetched_by_their_own_suffix(s3: S3Server, tmp_path: Path) -> None:
    objects = abid({"1": 1, "2": 2})
    s3.put("shop", {name.replace("2.jpg", "2.png"): body for name, body in objects.items()})
    lists = {"1": ["metadata/1.json"], "2": ["metadata/2.json", "bin-images/2.png"]}
    (tmp_path / "ids.json").write_text(json.dumps(lists))
    folder = fetch_photos("s3://shop", tmp_path, ids=read_photo_names(tmp_path / "ids.json"))
    assert (folder / "bin-images" / "2.png").read_bytes() == objects["bin-images/2.jpg"]


SPLIT_TABLE = b"""id,count,group,split
train/1/1.jpg,1,1,train
train/3/3.jpg,3,3,train
test/2/2.jpg,2,2,test
"""


def test_photos_that_were_left_are_not_in_quarantine(s3: S3Server, tmp_path: Path) -> None:
    objects = {name: body for name, body in abid({"1": 1, "2": 2, "3": 3, "4": "many"}).items() if "metadata" in name}
    objects |= {f"bin-images/{name}.jpg": photo_bytes(int(name)) for name in "1234"}
    split = {f"{side}/{count}/{count}.jpg": photo_bytes(count) for side, count in (("train", 1), ("train", 3))}
    s3.put("abid", objects | {"metadata/9.json": b'{"EXPECTED_QUANTITY": 1}'})
    s3.put("split", split | {"split.csv": SPLIT_TABLE})
    for source, layout, used, refused in (
        ("s3://abid", Abid(), ["1", "2"], {"bin-images/4.jpg", "metadata/9.json"}),
        ("s3://split", Folders(), ["train/1/1.jpg"], {"test/2/"}),
    ):
        manifest = find_photos(
            source,
            layout,
            counts=[1, 2],
            sync={"only": "counts", "deleted": "mirror", "connections": 4},
            data_dir=tmp_path / "data",
            cache_dir=tmp_path / "cache",
            stored_size=None,
            workers=1,
        )
        assert [record.id for record in manifest.records] == used
        assert {refusal.path for refusal in manifest.refusals} == refused


def test_denied_ids_are_missing_ones_unless_all_are(s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    put(s3_proxy.server, ABID)
    s3_proxy.spoil("/(bin-images|metadata)/3", denied)
    fetch_photos("s3://shop/bins", tmp_path, ids=["1", "3"])
    assert files(tmp_path) == abid({"1": 1})
    with pytest.raises(DataError, match=r"access to s3://shop/bins/.* is denied"):
        fetch_photos("s3://shop/bins", tmp_path / "other", ids=["3"])


def test_deleted_objects_are_kept_on_demand(s3: S3Server, tmp_path: Path) -> None:
    put(s3, FOLDERS)
    fetch("s3://shop/bins", tmp_path)
    (s3.root / "shop/bins/1/a.jpg").unlink()
    put(s3, {"1/b.jpg": b"changed", "3/c.jpg": b"new"})
    fetch("s3://shop/bins", tmp_path, deleted="keep")
    assert files(tmp_path) == FOLDERS | {"1/b.jpg": b"changed", "3/c.jpg": b"new"}
    fetch("s3://shop/bins", tmp_path)
    assert files(tmp_path) == without(FOLDERS, "1/a.jpg") | {"1/b.jpg": b"changed", "3/c.jpg": b"new"}


def test_the_mark_of_an_empty_folder_is_asked_for_once(s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    put(s3_proxy.server, FOLDERS)
    s3_proxy.spoil("list-type", listing(("bins/7/", 0), ("bins/", 0), ("bins/1/", 0)))
    for requests in (len(FOLDERS) + 1, 0):
        s3_proxy.requests.clear()
        fetch("s3://shop/bins", tmp_path)
        assert files(tmp_path) == FOLDERS
        assert s3_proxy.objects_sent() == requests


def test_a_listing_in_parts_is_one_in_a_row(
    s3_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = bins(250, size=10)
    put(s3_proxy.server, objects)
    s3_proxy.server.put("shop", {"bins2/1.jpg": b"another folder"})
    fetch("s3://shop/bins", tmp_path)
    monkeypatch.setattr(catalogue, "_CHUNK", 5)  # keys of a request
    s3_proxy.requests.clear()
    fetch("s3://shop/bins", tmp_path)
    assert len(s3_proxy.requests) == 8 and s3_proxy.objects_sent() == 0
    names = sorted(objects)
    for name in (names[0], names[100], names[-1]):
        (s3_proxy.server.root / "shop/bins" / name).unlink()
        del objects[name]
    more = {"!first.jpg": b"1", names[50]: b"2", f"{names[120]}.jpg": b"3", "~last.jpg": b"4"}
    put(s3_proxy.server, more)
    s3_proxy.requests.clear()
    fetch("s3://shop/bins", tmp_path)
    assert files(tmp_path) == objects | more
    assert s3_proxy.objects_sent() == len(more)
