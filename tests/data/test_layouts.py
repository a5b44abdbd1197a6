import errno
import json
import logging
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_photos import abid_bin, bin_folders, metadata, photo_bytes, write

from bincounter.data.arrange import arrange
from bincounter.data.layouts import detect
from bincounter.data.layouts.abid import Abid, read_photo_names
from bincounter.data.layouts.base import find_photos
from bincounter.data.layouts.folders import Folders
from bincounter.data.records import Listing, read_quarantine, write_quarantine
from bincounter.errors import DataError


def refused(listing: Listing) -> dict[str, str]:
    reasons = {refusal.path: refusal.reason for refusal in listing.refusals}
    assert len(reasons) == len(listing.refusals), "an input is refused twice"
    return reasons


def counts(listing: Listing) -> dict[str, int]:
    return {candidate.id: candidate.count for candidate in listing.candidates}


def test_bin_folders(tmp_path):
    for name in ("0/a.jpg", "3/b.JPEG", "3/c.Png", "12/d.webp", "007/e.jpg"):
        write(tmp_path / name, b"unopened")
    listing = Folders().list(tmp_path)
    assert counts(listing) == {"0/a.jpg": 0, "007/e.jpg": 7, "12/d.webp": 12, "3/b.JPEG": 3, "3/c.Png": 3}
    assert not listing.refusals
    assert all(candidate.split is None and candidate.items is None for candidate in listing.candidates)
    assert {candidate.file.path for candidate in listing.candidates} == {tmp_path / name for name in counts(listing)}


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", "train"),
        ("valid", "validation"),
        ("validation", "validation"),
        ("val", "validation"),
        ("test", "test"),
        ("Train", "train"),
    ],
)
def test_bin_folders_split_beforehand(tmp_path, folder, split):
    write(tmp_path / folder / "4" / "a.jpg", b"unopened")
    (candidate,) = Folders().list(tmp_path).candidates
    assert (candidate.id, candidate.count, candidate.split) == (f"{folder}/4/a.jpg", 4, split)


def test_what_is_no_photo_in_a_count_folder_is_refused_with_the_reason(tmp_path):
    for name in (
        "README.md",
        "3/notes.txt",
        "3/deep/a.jpg",
        "train/b.jpg",
        "train/many/c.jpg",
        "many/d.jpg",
        "-1/e.jpg",
        "1.5/f.jpg",
        "\u0664/g.jpg",
        "12345678/h.jpg",
        "train/train/1/i.jpg",
    ):
        write(tmp_path / name, b"unopened")
    (tmp_path / "4").mkdir()
    (tmp_path / "3" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "3" / "round.jpg").symlink_to("round.jpg")
    os.mkfifo(tmp_path / "3" / "pipe.jpg")
    listing = Folders().list(tmp_path)
    assert not listing.candidates
    assert refused(listing) == {
        "README.md": "not inside a count folder",
        "3/notes.txt": "not a .jpg, .jpeg, .png or .webp file",
        "3/deep/a.jpg": "nested deeper than its count folder",
        "3/gone.jpg": "dangling link",
        "3/round.jpg": "dangling link",
        "3/pipe.jpg": "not a regular file",
        "4/": "empty folder",
        "train/b.jpg": "not inside a count folder",
        "train/many/c.jpg": "folder name 'many' is not a count",
        "many/d.jpg": "folder name 'many' is not a count",
        "-1/e.jpg": "folder name '-1' is not a count",
        "1.5/f.jpg": "folder name '1.5' is not a count",
        "\u0664/g.jpg": "folder name '\u0664' is not a count",
        "12345678/h.jpg": "folder name '12345678' is not a count",
        "train/train/1/i.jpg": "folder name 'train' is not a count",
    }


def test_hidden_files_are_passed_over(tmp_path):
    for name in ("3/a.jpg", "3/.DS_Store", ".git/3/b.jpg", "3/._a.jpg"):
        write(tmp_path / name, b"unopened")
    listing = Folders().list(tmp_path)
    assert counts(listing) == {"3/a.jpg": 3}
    assert not listing.refusals


def test_links_to_photos_and_folders_are_followed_and_loops_are_not(tmp_path):
    write(tmp_path / "elsewhere" / "a.jpg", b"unopened")
    root = tmp_path / "bins"
    root.mkdir()
    (root / "2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "b.jpg").symlink_to(tmp_path / "elsewhere" / "a.jpg")
    (tmp_path / "elsewhere" / "loop").symlink_to(root)
    listing = Folders().list(root)
    assert counts(listing) == {"2/a.jpg": 2, "2/b.jpg": 2}
    assert refused(listing) == {"2/loop/": "link to a folder that contains it"}


def test_photos_in_any_folder_are_found_and_skipped_files_counted(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    root, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for name in ("a.jpg", "B.JPEG", "x.jpg/c.png", ".Trashes/t.jpg", "._a.jpg", "notes.txt", "-1.webp"):
        write(root / name, b"unopened")
    write(elsewhere / "d.jpg", b"unopened")
    latin = root / os.fsdecode(b"caf\xe9.jpg")
    latin.write_bytes(b"unopened")
    os.mkfifo(root / "fifo.jpg")
    for name, target in (("linked", elsewhere), ("again", elsewhere), ("loop", root), ("gone.jpg", "nowhere")):
        (root / name).symlink_to(target)
    (root / "itself.jpg").symlink_to(root / "itself.jpg")
    for number in range(12):  # each leads to all others: without a bound, 12! paths
        (elsewhere / f"s{number}").mkdir()
        for other in range(12):
            (elsewhere / f"s{number}" / f"to{other}").symlink_to(elsewhere / f"s{other}")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(root)  # the address of a socket is at most 107 bytes
        listening.bind("socket.jpg")
        found = {str(path.relative_to(root)) for path in find_photos(root)}
    assert found == {"a.jpg", "B.JPEG", "x.jpg/c.png", "-1.webp", latin.name, "again/d.jpg"}
    (line,) = caplog.messages
    for said in ("2 hidden", "2 not a regular file", "2 dangling link", "1 not a .jpg", "link to a folder"):
        assert said in line
    with pytest.raises(DataError, match=r"has no photos \(1 hidden, 1 empty folder\)"):
        find_photos(write(tmp_path / "none" / ".t.jpg", b"unopened").parent)


def test_names_that_no_text_file_can_hold_are_refused(tmp_path):
    folder = write(tmp_path / "1" / "a.jpg", b"unopened").parent
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.jpg")).write_bytes(b"unopened")
    listing = Folders().list(tmp_path)
    assert counts(listing) == {"1/a.jpg": 1}
    assert refused(listing) == {"1/\udcff.jpg": "file name that is not UTF-8"}
    write_quarantine(tmp_path / "quarantine.csv", listing.refusals)
    assert (tmp_path / "quarantine.csv").read_text().splitlines()[1] == r"1/\xff.jpg,file name that is not UTF-8"
    assert read_quarantine(tmp_path / "quarantine.csv") == listing.refusals


SPLIT = "id,count,group,split\ntrain/3/a.jpg,3,5,train\ntest/0/b.jpg,0,2,test\n"


def test_groups_come_from_the_split_of_prepared_folders(tmp_path):
    for name in ("train/3/a.jpg", "train/3/new.jpg", "test/0/b.jpg"):
        write(tmp_path / name, b"unopened")
    write(tmp_path / "split.csv", SPLIT)
    write(tmp_path / "quarantine.csv", 'path,reason\n"bin-images/9, 8.jpg",truncated\n')
    listing = Folders().list(tmp_path)
    groups = {candidate.id: candidate.group for candidate in listing.candidates}
    assert groups == {"train/3/a.jpg": 5, "train/3/new.jpg": None, "test/0/b.jpg": 2}
    assert refused(listing) == {"bin-images/9, 8.jpg": "truncated"}


def test_photos_of_the_split_that_are_not_there_are_named(tmp_path):
    write(tmp_path / "test" / "0" / "b.jpg", b"unopened")
    write(tmp_path / "test" / "0" / "c.txt", b"unopened")
    missing = "".join(f"{name},1,9,train\n" for name in ("test/0/c.txt", "test/0/d.jpg", "val/1/e.jpg", "val/1/f.jpg"))
    write(tmp_path / "split.csv", SPLIT + missing)
    assert refused(Folders().list(tmp_path)) == {
        "train/3/": "listed in split.csv, but no such folder",
        "test/0/c.txt": "not a .jpg, .jpeg, .png or .webp file",
        "test/0/d.jpg": "listed in split.csv, but no such photo",
        "val/1/": "listed in split.csv, but no such folder",
    }


@pytest.mark.parametrize(
    "content",
    ["", "a,b\n1,2\n", SPLIT + SPLIT[21:], SPLIT.replace(",5,", ",-5,"), SPLIT.replace(",5,", ",x,"), b"\xff"],
)
def test_a_split_that_is_none_is_refused_and_said(tmp_path, content, caplog):
    write(tmp_path / "train" / "3" / "a.jpg", b"unopened")
    write(tmp_path / "split.csv", content)
    write(tmp_path / "quarantine.csv", content)
    listing = Folders().list(tmp_path)
    assert [candidate.group for candidate in listing.candidates] == [None]
    assert refused(listing) == {
        "split.csv": "not a table of id,count,group,split",
        "quarantine.csv": "not a table of path,reason",
    }
    assert caplog.text.count("is not a split") == 1


def test_tables_elsewhere_are_files_that_are_no_photos(tmp_path):
    for name in ("3/split.csv", "quarantine.csv"):
        write(tmp_path / name, SPLIT)
    assert refused(Folders().list(tmp_path)) == {
        "3/split.csv": "not a .jpg, .jpeg, .png or .webp file",
        "quarantine.csv": "not inside a count folder",
    }


def test_a_root_that_is_no_folder(tmp_path):
    for layout in (Folders(), Abid()):
        with pytest.raises(DataError, match="missing"):
            layout.list(tmp_path / "missing")


names = st.text("ab1. -", min_size=1, max_size=4).filter(lambda name: name.strip(".") == name)


@given(
    tree=st.sets(
        st.lists(st.one_of(names, st.sampled_from(["1", "22", "train", "val"])), min_size=1, max_size=4).map(tuple)
    )
)
def test_every_file_is_listed_once_or_refused_once(tmp_path_factory, tree):
    root = tmp_path_factory.mktemp("bins")
    written = set()
    for *folders, name in sorted(tree):
        file = root.joinpath(*folders, name + ".jpg")
        try:
            write(file, b"unopened")
        except (FileExistsError, NotADirectoryError):
            continue
        written.add(file.relative_to(root).as_posix())
    listing = Folders().list(root)
    listed = [candidate.id for candidate in listing.candidates]
    told = listed + list(refused(listing))
    assert sorted(told) == sorted(written or {""})


def test_abid(tmp_path):
    abid_bin(tmp_path, "1", 2, "B1", "B2")
    abid_bin(tmp_path, "00001", 0)
    listing = Abid().list(tmp_path)
    assert counts(listing) == {"1": 2, "00001": 0}
    assert {candidate.id: candidate.items for candidate in listing.candidates} == {
        "1": {"B1", "B2"},
        "00001": frozenset(),
    }
    assert not listing.refusals


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "metadata is not JSON"),
        ('{"EXPECTED_QUANTITY": 3', "metadata is not JSON"),
        (b"\xff\xfe{}", "metadata is not JSON"),
        ("[" * 100_000, "metadata is not JSON"),
        ("[3]", "metadata without EXPECTED_QUANTITY"),
        ("{}", "metadata without EXPECTED_QUANTITY"),
        (metadata(-1), "EXPECTED_QUANTITY is not an integer from 0 to 999999"),
        (metadata(2.5), "EXPECTED_QUANTITY is not an integer from 0 to 999999"),
        (metadata("3"), "EXPECTED_QUANTITY is not an integer from 0 to 999999"),
        (metadata(True), "EXPECTED_QUANTITY is not an integer from 0 to 999999"),
        (metadata(None), "EXPECTED_QUANTITY is not an integer from 0 to 999999"),
        (metadata(10**30), "EXPECTED_QUANTITY is not an integer from 0 to 999999"),
    ],
)
def test_abid_metadata_that_gives_no_count(tmp_path, content, reason):
    abid_bin(tmp_path, "1", 2)
    write(tmp_path / "metadata" / "1.json", content)
    listing = Abid().list(tmp_path)
    assert not listing.candidates
    assert refused(listing) == {"bin-images/1.jpg": reason}


@pytest.mark.parametrize("items", [None, [], "B1", 3])
def test_abid_metadata_without_items_still_gives_the_count(tmp_path, items):
    abid_bin(tmp_path, "1", 2)
    write(tmp_path / "metadata" / "1.json", json.dumps({"BIN_FCSKU_DATA": items, "EXPECTED_QUANTITY": 2}))
    (candidate,) = Abid().list(tmp_path).candidates
    assert (candidate.count, candidate.items) == (2, None)


def test_abid_inputs_without_their_other_half_are_refused(tmp_path):
    abid_bin(tmp_path, "1", 2)
    write(tmp_path / "bin-images" / "2.jpg", b"unopened")
    write(tmp_path / "metadata" / "3.json", metadata(3))
    write(tmp_path / "bin-images" / "1.png", b"unopened")
    write(tmp_path / "bin-images" / "list.txt", "1")
    write(tmp_path / "bin-images" / "more" / "4.jpg", b"unopened")
    (tmp_path / "metadata" / "5.json").symlink_to("nowhere")
    write(tmp_path / "bin-images" / "5.jpg", b"unopened")
    (tmp_path / "bin-images" / "6.jpg").symlink_to("nowhere")
    write(tmp_path / "metadata" / "6.json", metadata(3))
    listing = Abid().list(tmp_path)
    assert counts(listing) == {"1": 2}
    assert refused(listing) == {
        "bin-images/2.jpg": "no metadata file",
        "metadata/3.json": "metadata without a photo",
        "bin-images/1.png": "same id as bin-images/1.jpg",
        "bin-images/list.txt": "not a .jpeg or .jpg or .png or .webp file right inside bin-images/",
        "bin-images/more/4.jpg": "not a .jpeg or .jpg or .png or .webp file right inside bin-images/",
        "bin-images/5.jpg": "metadata: dangling link",
        "bin-images/6.jpg": "dangling link",
    }


def test_abid_needs_both_folders(tmp_path):
    write(tmp_path / "bin-images" / "1.jpg", b"unopened")
    with pytest.raises(DataError, match="metadata/"):
        Abid().list(tmp_path)


def test_abid_with_an_id_list(tmp_path):
    root = tmp_path / "abid"
    for name in ("1", "00001", "2"):
        abid_bin(root, name, 1)
    ids = write(tmp_path / "ids.txt", "00001\n2\n777\nbin-images/778.png\n")
    listing = Abid(str(ids)).list(root)
    assert counts(listing) == {"00001": 1, "2": 1}
    missing = "in the id list, but no such photo"
    assert refused(listing) == {"bin-images/777.jpg": missing, "bin-images/778.png": missing}


def test_ids_from_the_udacity_list(tmp_path):
    lists = {"1": ["data/metadata/100313.json", "data/metadata/00001.json"], "2": ["data/metadata/1.json"], "3": []}
    assert list(read_photo_names(write(tmp_path / "file_list.json", json.dumps(lists)))) == ["100313", "00001", "1"]


@pytest.mark.parametrize("text", ["00001\n1\n\n", "\ufeff00001\r\n1\r\n1", "  bin-images/00001.jpg\nmetadata/1.json"])
def test_ids_from_text(tmp_path, text):
    assert list(read_photo_names(write(tmp_path / "ids.txt", text))) == ["00001", "1"]


@pytest.mark.parametrize("suffix", [".jpeg", ".PNG", ".webp"])
def test_ids_from_paths_of_photos(tmp_path, suffix):
    photo = write(tmp_path / "bin-images" / f"1{suffix}", b"unopened")
    write(tmp_path / "metadata" / "1.json", metadata(2))
    ids = write(tmp_path / "ids.txt", f"bin-images/{photo.name}\n")
    listing = Abid(str(ids)).list(tmp_path)
    assert counts(listing) == {"1": 2} and not listing.refusals


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n\n",
        b"\xff\xd8\xff\xe0",
        '{"1": "x"}',
        '["1"]',
        '{"1": [1]}',
        '{"1": [',
        "id,count\n1,2",
        "a b",
        "..",
        "[" * 100_000,
    ],
)
def test_what_is_no_id_list_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="ids") as caught:
        read_photo_names(write(tmp_path / "ids.txt", content))
    assert "ids.txt" in str(caught.value)


def test_an_id_list_that_is_missing(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_photo_names(tmp_path / "ids.txt")


@given(st.text(max_size=60))
def test_ids_are_plain_file_names_or_refused(tmp_path_factory, text):
    file = write(tmp_path_factory.mktemp("ids") / "ids.txt", text.encode("utf-8", "replace"))
    try:
        ids = list(read_photo_names(file))
    except DataError:
        return
    assert all(Path(name).name == name and name not in ("", ".", "..") for name in ids)


def test_detect(tmp_path):
    abid_bin(tmp_path / "abid", "1", 2)
    bin_folders(tmp_path / "folders")
    write(tmp_path / "split" / "Valid" / "1" / "a.jpg", b"unopened")
    assert detect(tmp_path / "abid") == Abid()
    assert detect(tmp_path / "folders") == Folders()
    assert detect(tmp_path / "split") == Folders()


def test_detect_says_what_it_looked_for(tmp_path):
    write(tmp_path / "photos" / "a.jpg", b"unopened")
    with pytest.raises(DataError, match=r"bin-images/.*metadata/.*0/.*train/"):
        detect(tmp_path)


@pytest.fixture(params=[True, False], ids=["links", "copies"])
def links(request, monkeypatch):
    """True where the file system allows hard links."""
    if not request.param:
        forbid_links(monkeypatch)
    return request.param


def forbid_links(monkeypatch):
    def refuse(path, source):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", refuse)


def test_arranged_photos_are_bin_folders(tmp_path, links):
    for index in range(5):
        abid_bin(tmp_path / "abid", f"{index}", index % 2)
    listing = Abid().list(tmp_path / "abid")
    bins = tmp_path / "bins"
    arrange(listing, bins)
    arranged = Folders().list(bins)
    assert counts(arranged) == {f"{index % 2}/{index}.jpg": index % 2 for index in range(5)}
    assert not arranged.refusals
    for candidate in listing.candidates:
        copy = bins / str(candidate.count) / f"{candidate.id}.jpg"
        assert copy.samefile(candidate.file.path) == links
        assert copy.read_bytes() == candidate.file.path.read_bytes()


@pytest.mark.usefixtures("links")
def test_arranging_again_changes_nothing_but_what_is_missing(tmp_path):
    for index in range(3):
        abid_bin(tmp_path / "abid", f"{index}", 1)
    listing, bins = Abid().list(tmp_path / "abid"), tmp_path / "bins"
    arrange(listing, bins)
    before = {path.name: path.stat() for path in (bins / "1").iterdir()}
    (bins / "1" / "2.jpg").unlink()
    arrange(listing, bins)
    after = {path.name: path.stat() for path in (bins / "1").iterdir()}
    assert after.keys() == before.keys()
    assert all(os.path.samestat(after[name], before[name]) for name in ("0.jpg", "1.jpg"))


def test_other_photos_of_the_same_names_are_not_replaced(tmp_path, monkeypatch):
    forbid_links(monkeypatch)  # else one file has two names
    abid_bin(tmp_path / "abid", "1", 1)
    bins = tmp_path / "bins"
    arrange(Abid().list(tmp_path / "abid"), bins)
    older = (bins / "1" / "1.jpg").read_bytes()
    write(tmp_path / "abid" / "bin-images" / "1.jpg", photo_bytes(99, width=80))
    with pytest.raises(DataError, match=r"holds other photos, such as 1/1\.jpg"):
        arrange(Abid().list(tmp_path / "abid"), bins)
    assert (bins / "1" / "1.jpg").read_bytes() == older


def test_photos_are_not_arranged_among_others(tmp_path):
    abid_bin(tmp_path / "abid", "1", 1)
    bins = bin_folders(tmp_path / "bins")
    with pytest.raises(DataError, match=r"holds other photos, such as 0/0\.jpg"):
        arrange(Abid().list(tmp_path / "abid"), bins)
