"""Photos packed into shards, and read from there as from the folder they come from."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from commands import REPOSITORY, command, environment
from hypothesis import given, settings
from hypothesis import strategies as st
from made_photos import bin_folders, photo_bytes, write

from bincounter.data.layouts import Detected, detect
from bincounter.data.layouts.abid import Abid
from bincounter.data.layouts.folders import Folders
from bincounter.data.photo_store import PhotoStore
from bincounter.data.photos import content_hash, photo_suffix, read_photos
from bincounter.data.records import SPLITS, BinRecord, Manifest, PhotoFile, RejectedInput, data_digest
from bincounter.data.sampler import ResumableBatchSampler
from bincounter.data.scan import scan
from bincounter.data.shards.index import Shards
from bincounter.data.shards.packing import pack_files
from bincounter.data.splits import load_or_assign_splits
from bincounter.errors import DataError

SHARD_BYTES = 20_000  # a few of the photos below


def scanned(root: Path, cache: Path) -> Manifest:
    return scan(root, Detected(), cache, image_size=None, workers=2)


def packed(manifest: Manifest, folder: Path, assignment: np.ndarray | None = None) -> Path:
    list(pack_files(manifest, np.arange(len(manifest.records)), assignment, folder, shard_bytes=SHARD_BYTES))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def assert_same_photos(one: Manifest, other: Manifest) -> None:
    """All but the place where the photos lie."""
    nowhere = PhotoFile(Path())
    ours, theirs = ([replace(record, file=nowhere) for record in each.records] for each in (one, other))
    assert ours == theirs
    assert (one.given_splits, one.digest, one.refusals) == (other.given_splits, other.digest, other.refusals)
    np.testing.assert_array_equal(one.sizes, other.sizes)
    np.testing.assert_array_equal(one.content, other.content)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    root = bin_folders(tmp_path / "bins", photos=40)
    write(root / "1" / "grey.png", photo_bytes(90, 30, 20, "PNG"))
    write(root / "1" / "late.webp", photo_bytes(91, 30, 20, "WEBP"))
    write(root / "2" / "broken.jpg", b"no photo")
    return scanned(root, tmp_path / "cache")


def test_shards_are_the_photos_they_were_packed_from(manifest, tmp_path):
    folder = packed(manifest, tmp_path / "shards")
    again = scanned(folder, tmp_path / "other")
    assert_same_photos(again, manifest)
    assert again.refusals == (RejectedInput("2/broken.jpg", "not a JPEG, PNG or WebP image"),)
    assert len({record.file.path for record in again.records}) > 3
    assert read_photos([record.file for record in again.records]) == read_photos([r.file for r in manifest.records])
    for cached in (True, False):
        stores = [
            PhotoStore.open(each, 24, tmp_path / f"{cached}{each.root.name}", cached=cached, workers=2)
            for each in (manifest, again)
        ]
        batches = [store.batch([41, 3, 3, 20]) for store in stores]
        assert batches[0].equal(batches[1])


def test_the_split_is_the_one_that_was_packed(manifest, tmp_path):
    kept = np.flatnonzero([record.count != 0 for record in manifest.records])
    options = {"fractions": (0.6, 0.2, 0.2), "method": "grouped", "seed": 3, "cache_dir": tmp_path / "cache"}
    assignment = load_or_assign_splits(manifest, kept, **options)
    list(pack_files(manifest, kept, assignment, tmp_path / "shards", shard_bytes=SHARD_BYTES))
    again = scanned(tmp_path / "shards", tmp_path / "other")
    assert [record.id for record in again.records] == [manifest.records[i].id for i in kept]
    assert again.given_splits == tuple(SPLITS[side] for side in assignment)
    there = load_or_assign_splits(again, np.arange(len(kept)), **options | {"seed": 8, "cache_dir": tmp_path / "other"})
    np.testing.assert_array_equal(there, assignment)


def test_every_rank_is_dealt_the_same_photos(manifest, tmp_path):
    folder = packed(manifest, tmp_path / "shards")
    dealt = []
    for each in (manifest, scanned(folder, tmp_path / "other")):
        options = {"fractions": (0.8, 0.1, 0.1), "method": "grouped", "seed": 0, "cache_dir": tmp_path / "c"}
        training = np.flatnonzero(load_or_assign_splits(each, np.arange(42), **options) == 0)
        for rank in (0, 1):
            sampler = ResumableBatchSampler(len(training), 4, seed=1, rank=rank, world_size=2)
            sampler.start_at(2, 1)
            dealt.append([[each.records[training[i]].id for i in batch.positions] for batch in sampler])
    assert dealt[:2] == dealt[2:]
    assert not {id_ for batch in dealt[0] for id_ in batch} & {id_ for batch in dealt[1] for id_ in batch}


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(
    photos=st.dictionaries(
        names,
        st.tuples(
            st.binary(max_size=3000),
            st.integers(0, 999_999),
            st.integers(0, 10**9),
            st.sampled_from([None, *SPLITS]),
        ),
        min_size=1,
        max_size=30,
    ),
    shard_bytes=st.integers(1, 40_000),
)
def test_whatever_is_packed_comes_back(tmp_path_factory, photos, shard_bytes):
    folder = tmp_path_factory.mktemp("packed")
    ids = sorted(photos)
    files = [PhotoFile(write(folder / f"{row}.jpg", photos[name][0])) for row, name in enumerate(ids)]
    records = tuple(
        BinRecord(name, file, photos[name][1], photos[name][2]) for name, file in zip(ids, files, strict=True)
    )
    content = np.array([content_hash(photos[name][0]) for name in ids], np.uint64)
    sizes = np.arange(2 * len(ids), dtype=np.int32).reshape(-1, 2)
    manifest = Manifest(
        folder,
        records,
        tuple(photos[name][3] for name in ids),
        sizes,
        content,
        (RejectedInput("a, \r\n.jpg", "truncated"),),
        data_digest(records, content),
    )
    for name in ("one", "other"):
        list(pack_files(manifest, np.arange(len(ids)), None, folder / name, shard_bytes=shard_bytes))
    assert contents(folder / "one") == contents(folder / "other")
    again = Shards().manifest(folder / "one")
    assert_same_photos(again, manifest)
    assert read_photos([record.file for record in again.records]) == [photos[name][0] for name in ids]
    members: dict[str, bytes] = {}
    for shard in (folder / "one").glob("*.tar"):
        with tarfile.open(shard) as tar:
            members |= {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    for row, name in enumerate(ids):
        data, count, group, split = photos[name]
        key = f"{row:09d}"
        assert members.pop(key + photo_suffix(data)) == data
        assert int(members.pop(f"{key}.cls")) == count
        about = {"id": name, "count": count, "group": group, "split": split}
        assert json.loads(members.pop(f"{key}.json")) == about
    assert not members


def test_webdataset_reads_them(manifest, tmp_path):
    folder = packed(manifest, tmp_path / "shards")
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    samples = {sample["__key__"]: sample for sample in webdataset.WebDataset(shards, shardshuffle=False)}
    assert sorted(samples) == [f"{row:09d}" for row in range(42)]
    for row, record in enumerate(manifest.records):
        sample = samples[f"{row:09d}"]
        assert sample[record.id.rpartition(".")[2]] == record.file.path.read_bytes()
        assert int(sample["cls"]) == record.count
        assert json.loads(sample["json"])["id"] == record.id


def test_packing_goes_on_where_it_was_cut_short(manifest, tmp_path):
    whole = contents(packed(manifest, tmp_path / "whole"))
    for files in range(len(whole)):
        folder = tmp_path / f"cut{files}"
        packing = pack_files(manifest, np.arange(42), None, folder, shard_bytes=SHARD_BYTES)
        there = [next(packing) for _ in range(files)]
        packing.close()
        before = {path: path.stat().st_ino for path in there if path.suffix == ".tar"}
        assert not (folder / "index.csv").exists()
        packed(manifest, folder)
        assert contents(folder) == whole
        assert {path: path.stat().st_ino for path in before} == before, "a shard that was whole is packed again"


@pytest.mark.long
def test_a_killed_packing_leaves_nothing_that_passes_for_whole(tmp_path):
    root = bin_folders(tmp_path / "bins", photos=300)
    code = f"""
from pathlib import Path
from test_shards import packed, scanned
packed(scanned(Path({str(root)!r}), Path({str(tmp_path / "cache")!r})), Path({str(tmp_path / "shards")!r}))
"""
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=here, env={**os.environ, "PYTHONPATH": str(here.parent)}
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("shards/*.tar"))) < 3:
        assert time.monotonic() < deadline, "no shards were packed"
        assert process.poll() is None, "the packing ended before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not (tmp_path / "shards" / "index.csv").exists():  # as good as always
        with pytest.raises(DataError, match=r"no index\.csv"):
            detect(tmp_path / "shards")
    manifest = scanned(root, tmp_path / "cache")
    assert contents(packed(manifest, tmp_path / "shards")) == contents(packed(manifest, tmp_path / "whole"))


def test_a_cut_packing_of_other_photos_is_begun_anew(manifest, tmp_path):
    kept = np.arange(10)
    packing = pack_files(manifest, kept, None, tmp_path / "shards", shard_bytes=1)
    assert [next(packing).name for _ in range(2)] == ["bins-000000.tar", "bins-000001.tar"]
    packing.close()
    write(tmp_path / "shards" / ".bins-000001.tar.abc.part", b"half")
    assert contents(packed(manifest, tmp_path / "shards")) == contents(packed(manifest, tmp_path / "whole"))


def test_more_shards_than_files_may_be_open_are_read(tmp_path):
    manifest = scanned(bin_folders(tmp_path / "source", 90), tmp_path / "cache")
    list(pack_files(manifest, np.arange(90), None, tmp_path / "shards", shard_bytes=1))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80)); from pathlib import Path\n"
        "from bincounter.data.photos import read_checked\nfrom bincounter.data.shards.index import Shards\n"
        "found = Shards().manifest(Path(sys.argv[1]))\nfiles = [record.file for record in found.records]\n"
        "print(len(read_checked(files, found.content)))\n"
        "held = []\ntry:\n    while True: held.append(open('/dev/null'))\n"
        "except OSError: read_checked(files, found.content)"
    )
    started = command("-c", code, str(tmp_path / "shards"))  # with an import of its own, which reads the limit
    done = subprocess.run(started, check=False, capture_output=True, text=True, cwd=REPOSITORY, env=environment())
    assert done.stdout == "90\n"
    assert "ResourceError" in done.stderr and "(too many open files): check the device" in done.stderr


def test_packing_again_changes_nothing(manifest, tmp_path):
    folder = packed(manifest, tmp_path / "shards")
    before = {path: path.stat().st_ino for path in folder.iterdir()}
    packed(manifest, folder)
    assert {path: path.stat().st_ino for path in folder.iterdir()} == before


@pytest.mark.parametrize("there", ["3/a.jpg", "bins-000000.tar", "quarantine.csv", "index.csv"])
def test_a_folder_with_other_things_is_refused(manifest, tmp_path, there):
    write(tmp_path / "shards" / there, b"precious")
    with pytest.raises(DataError, match=r"index of shards|name an empty folder"):
        packed(manifest, tmp_path / "shards")
    assert (tmp_path / "shards" / there).read_bytes() == b"precious"


def test_shards_of_another_split_are_refused(manifest, tmp_path):
    folder = packed(manifest, tmp_path / "shards")
    before = contents(folder)
    with pytest.raises(DataError, match="another split: name an empty folder"):
        packed(manifest, folder, np.zeros(42, np.int8))
    assert contents(folder) == before


def test_a_photo_that_changed_since_the_scan_is_not_packed(manifest, tmp_path):
    write(manifest.records[7].file.path, photo_bytes(1000))
    with pytest.raises(DataError, match=f"{manifest.records[7].file.path} was changed"):
        packed(manifest, tmp_path / "shards")
    assert not (tmp_path / "shards" / "index.csv").exists()


def lines_of(index: Path) -> list[list[str]]:
    with index.open(newline="") as file:
        return list(csv.reader(file))


def edit(index: Path, line: int, column: int, value: str) -> None:
    lines = lines_of(index)
    lines[line][column] = value
    index.write_text("".join(",".join(each) + "\n" for each in lines))


DAMAGES = [
    pytest.param(lambda index: index.unlink(), r"index\.csv cannot be read .*name the folder", id="no index"),
    pytest.param(lambda index: index.write_bytes(b""), "is not an index of shards: name", id="empty index"),
    pytest.param(lambda index: index.write_bytes(b"\xff\xfe"), "damaged in line", id="binary index"),
    pytest.param(lambda index: index.write_text("a,b\n1,2\n"), "is not an index of shards: name", id="another table"),
    pytest.param(lambda index: edit(index, 0, 9, "bytes"), "another version of bincounter: use that", id="newer"),
    pytest.param(lambda index: index.write_text(",".join(lines_of(index)[0]) + "\n"), "no photo", id="no photo"),
    pytest.param(lambda index: edit(index, 5, 1, "many"), "damaged in line 6", id="count"),
    pytest.param(lambda index: edit(index, 5, 3, "both"), "damaged in line 6", id="split"),
    pytest.param(lambda index: edit(index, 5, 4, str(2**40)), "damaged in line 6", id="width"),
    pytest.param(lambda index: edit(index, 5, 6, "-1"), "damaged in line 6", id="content"),
    pytest.param(lambda index: edit(index, 5, 7, "../secret"), "damaged in line 6", id="shard"),
    pytest.param(lambda index: edit(index, 5, 8, "-1"), "damaged in line 6", id="offset"),
    pytest.param(lambda index: edit(index, 5, 0, "0/0.jpg"), "damaged in line 6", id="twice"),
    pytest.param(lambda index: index.write_text(index.read_text()[:-40]), "damaged in line 43", id="cut index"),
    pytest.param(
        lambda index: write(index.with_name("quarantine.csv"), "a"), "is not a table of path,reason: ", id="list"
    ),
    pytest.param(lambda index: index.with_name("bins-000001.tar").unlink(), r"01\.tar is missing: ", id="missing"),
    pytest.param(
        lambda index: index.with_name("bins-000001.tar").write_bytes(b"x" * 999),
        r"01\.tar is cut short, to 999 of at least 1\d,\d+ bytes: ",
        id="cut short",
    ),
]


@pytest.mark.parametrize(("damage", "told"), DAMAGES)
def test_damaged_shards_are_told_in_a_sentence(manifest, tmp_path, damage, told):
    folder = packed(manifest, tmp_path / "shards")
    damage(folder / "index.csv")
    with pytest.raises(DataError, match=told) as caught:
        scan(folder, Shards(), tmp_path / "cache", image_size=None, workers=1)
    assert "\n" not in str(caught.value)


def swap(folder: Path) -> None:
    one, other = folder / "bins-000000.tar", folder / "bins-000001.tar"
    longest = max(one.stat().st_size, other.stat().st_size)
    a, b = (path.read_bytes().ljust(longest, b"\0") for path in (one, other))
    one.write_bytes(b)
    other.write_bytes(a)


def flip(folder: Path) -> None:
    name, offset = lines_of(folder / "index.csv")[5][7:9]
    with (folder / name).open("r+b") as file:
        file.seek(int(offset) + 100)
        file.write(b"\0\1\2\3")


@pytest.mark.parametrize("harm", [swap, flip])
@pytest.mark.parametrize("cached", [True, False])
def test_other_bytes_than_were_packed_are_told_when_they_are_read(manifest, tmp_path, harm, cached):
    folder = packed(manifest, tmp_path / "shards")
    harm(folder)
    with pytest.raises(DataError, match=r"bins-.*at byte \d+ is not the photo that index\.csv describes: restore"):
        PhotoStore.open(scanned(folder, tmp_path / "c"), 24, tmp_path / "c", cached=cached, workers=2).batch(range(42))


def test_shards_that_vanish_or_shrink_later_are_told_too(manifest, tmp_path):
    folder = packed(manifest, tmp_path / "shards")
    there = scanned(folder, tmp_path / "c")
    shutil.move(folder / "bins-000002.tar", tmp_path / "elsewhere.tar")
    with pytest.raises(DataError, match=r"bins-000002\.tar at byte \d+ can no longer be read \(No such file"):
        PhotoStore.open(there, 24, tmp_path / "c", cached=False, workers=2).batch(range(42))
    write(folder / "bins-000002.tar", b"")
    with pytest.raises(DataError, match=r"bins-000002\.tar at byte \d+ can no longer be read \(it ends before"):
        PhotoStore.open(there, 24, tmp_path / "c", cached=True, workers=2)


def test_shards_packed_anew_are_read_anew(manifest, tmp_path):
    folder = packed(manifest, tmp_path / "shards")
    store = PhotoStore.open(scanned(folder, tmp_path / "c"), 24, tmp_path / "c", cached=False, workers=1)
    store.batch(range(42))  # the shards stay open
    shutil.rmtree(folder)
    some = np.arange(5, 42)
    list(pack_files(manifest, some, None, folder, shard_bytes=SHARD_BYTES))
    again = PhotoStore.open(scanned(folder, tmp_path / "c"), 24, tmp_path / "c", cached=False, workers=1)
    whole = PhotoStore.open(manifest, 24, tmp_path / "c", cached=False, workers=1)
    assert again.batch(range(37)).equal(whole.batch(some))


def test_shards_are_detected(manifest, tmp_path):
    folder = packed(manifest, tmp_path / "shards")
    assert detect(folder) == Shards()
    (folder / "index.csv").unlink()
    with pytest.raises(DataError, match=r"holds shards, but no index\.csv"):
        detect(folder)
    root = bin_folders(tmp_path / "others")
    write(root / "index.csv", "file,label\n")
    assert detect(root) == Folders()


@pytest.mark.photos
def test_real_photos(abid_photos, tmp_path):
    names_ = sorted(path.stem for path in (abid_photos / "bin-images").iterdir())[:100]
    layout = Abid(str(write(tmp_path / "ids.txt", "\n".join(names_))))
    manifest = scan(abid_photos, layout, tmp_path / "cache", image_size=None, workers=2)
    list(pack_files(manifest, np.arange(100), None, tmp_path / "shards", shard_bytes=500_000))
    again = scanned(tmp_path / "shards", tmp_path / "other")
    assert_same_photos(again, manifest)
    stores = [
        PhotoStore.open(each, 96, tmp_path / str(row), cached=True, workers=2)
        for row, each in enumerate((manifest, again))
    ]
    assert stores[0].batch(range(100)).equal(stores[1].batch(range(100)))
