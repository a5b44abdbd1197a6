"""``bincounter prepare``: from any source to split bins, in a folder or in a bucket of a real S3 server."""

import csv
import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from commands import Run
from made_photos import abid_bin, bin_folders, photo_bytes, write
from s3_server import S3Server
from sent_buckets import delete, empty_buckets, writable_server

from bincounter.cli.hydra_app import compose
from bincounter.data.arrange import PlacedFiles
from bincounter.data.layouts.folders import Folders
from bincounter.data.prepare import prepare_shards
from bincounter.data.records import SPLITS
from bincounter.data.s3.upload import send
from bincounter.data.scan import scan
from bincounter.data.splits import SplitRow, read_split
from bincounter.training.run import data_module

PHOTOS = 24


def public_bucket(root: Path, photos: int = PHOTOS) -> Path:
    """A folder in the shape of ABID's bucket, each bin photographed twice, and beside it a list of the photos."""
    for index in range(photos):
        abid_bin(root, f"{index:05}", index // 2 % 3, f"ASIN{index // 2}")
    listed = {"1": [f"data/metadata/{index:05}.json" for index in range(photos)]}
    return write(root.parent / "file_list.json", json.dumps(listed))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with writable_server(tmp_path_factory.mktemp("prepared")) as running:
        yield running


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server with two empty buckets, ``public`` and ``mine``."""
    with empty_buckets(server, monkeypatch, "public", "mine"):
        yield server


@pytest.fixture
def prepare(run: Run, tmp_path: Path) -> Run:
    """Run ``prepare`` with all that it keeps under ``tmp_path``."""

    def prepare_(destination: object, *overrides: str, code: int = 0):
        paths = [f"paths.{name}_dir={tmp_path / name}" for name in ("data", "cache")]
        return run("-m", "bincounter", "prepare", str(destination), *paths, *overrides, code=code)

    return prepare_


def test_a_public_bucket_and_an_id_list_become_split_bins_in_a_bucket(
    s3: S3Server, prepare: Run, tmp_path: Path
) -> None:
    ids = public_bucket(tmp_path / "public")
    abid_bin(tmp_path / "public", "99999", 1)  # not in the list
    send(
        ((path, str(path.relative_to(tmp_path / "public"))) for path in (tmp_path / "public").glob("*/*")),
        "s3://public",
    )
    source = ["data=abid", "data.source=s3://public", f"data.layout.ids={ids}", "data.counts=[0,1]"]
    done = prepare("s3://mine/bins/v1", *source)
    bins = contents(s3.root / "mine/bins/v1")
    rows = read_split(s3.root / "mine/bins/v1/split.csv")
    assert {row.id for row in rows} == bins.keys() - {"split.csv", "quarantine.csv"}
    assert {Path(row.id).stem for row in rows} == {f"{i:05}" for i in range(PHOTOS) if i // 2 % 3 < 2}
    for row in rows:
        folder, count, name = row.id.split("/")
        assert (folder, int(count)) == ({"validation": "valid"}.get(row.split, row.split), row.count)
        assert bins[row.id] == (tmp_path / "public/bin-images" / name).read_bytes()
    assert not straddling(rows)
    sides = Counter(row.id.partition("/")[0] for row in rows)
    assert done.stdout.splitlines() == [
        *(f"{side}: {sides[side]} photos" for side in ("train", "valid", "test")),
        f"{len(bins)} files written, 0.0 MB",
        "s3://mine/bins/v1",
    ]
    again = prepare("s3://mine/bins/v1", *source)
    assert "\n0 files written, 0.0 MB\n" in again.stdout


def test_training_uses_the_prepared_split(s3: S3Server, prepare: Run, tmp_path: Path) -> None:
    ids = public_bucket(tmp_path / "public", 60)
    prepare("s3://mine/bins", "data=abid", f"data.source={tmp_path / 'public'}", f"data.layout.ids={ids}")
    paths = [f"paths.{name}_dir={tmp_path / 'training' / name}" for name in ("data", "cache", "output")]
    overrides = ["data=s3", "data.source=s3://mine/bins", *paths]
    data = data_module(compose(overrides))
    data.prepare()
    sides = [SPLITS[side] for side in data.assignment]
    trained_on = {record.id: (record.group, side) for record, side in zip(data.records, sides, strict=True)}
    prepared = {row.id: (row.group, row.split) for row in read_split(s3.root / "mine/bins/split.csv")}
    assert trained_on == prepared
    assert not data.manifest.refusals


@pytest.mark.parametrize("form", ["folders", "shards"])
def test_photos_of_further_counts_are_prepared_for_training(prepare: Run, tmp_path: Path, form: str) -> None:
    bins, made = bin_folders(tmp_path / "source", 60, counts=6), tmp_path / "made"
    write(bins / "5/copy.jpg", (bins / "1/1.jpg").read_bytes())  # not learnt if its original is scored
    settings = ["data.counts=[0,1,2]", "data.learn_above=2"]
    prepare(made, "data=folders", f"data.source={bins}", *settings, f"--as={form}")

    def sides(source: Path, layout: str) -> list[set[str]]:
        paths = [f"paths.{name}_dir={tmp_path / name}" for name in ("data", "cache", "output")]
        data = data_module(compose([f"data={layout}", f"data.source={source}", *settings, *paths]))
        data.prepare()
        positions = data.training, data.side("validation"), data.side("test")
        return [{Path(data.manifest.records[i].id).name for i in each} for each in positions]

    learnt, *scored = sides(made, form)
    assert [learnt, *scored] == sides(bins, "folders")
    assert len(learnt) > 30


def straddling(rows: list[SplitRow]) -> set[int]:
    """Groups with photos on two sides."""
    sides: dict[int, set[str]] = {}
    for row in rows:
        sides.setdefault(row.group, set()).add(row.split)
    return {group for group, found in sides.items() if len(found) > 1}


def test_a_folder_gets_links_a_split_and_a_quarantine(prepare: Run, run: Run, tmp_path: Path) -> None:
    bins = bin_folders(tmp_path / "source", 30)
    write(bins / "1/broken.jpg", b"no photo")
    (tmp_path / "made").mkdir()
    source = ["data=folders", f"data.source={bins}"]
    prepare(tmp_path / "made", *source)
    rows = read_split(tmp_path / "made/split.csv")
    assert len(rows) == 30
    for row in rows:
        assert (tmp_path / "made" / row.id).samefile(bins / str(row.count) / Path(row.id).name)
    with (tmp_path / "made/quarantine.csv").open(newline="") as file:
        assert [(line["path"], bool(line["reason"])) for line in csv.DictReader(file)] == [("1/broken.jpg", True)]
    before = {path: path.stat() for path in (tmp_path / "made").rglob("*.*")}
    again = prepare(tmp_path / "made", *source)
    assert "\n0 files written" in again.stdout
    assert {path: path.stat() for path in (tmp_path / "made").rglob("*.*")} == before
    page = tmp_path / "data.html"
    options = ["data=folders", f"data.source={tmp_path / 'made'}", f"paths.cache_dir={tmp_path / 'cache'}"]
    done = run("-m", "bincounter", "explore", *options, "data.split.seed=7", "--output", str(page))
    assert "data.split.fractions and data.split.seed are not used" in done.stderr
    assert "grouped, by the folders of the source" in page.read_text() and "split seed" not in page.read_text()


def test_a_preparation_that_was_cut_short_is_gone_on_with(prepare: Run, tmp_path: Path) -> None:
    bins = bin_folders(tmp_path / "source", 30)
    source = ["data=folders", f"data.source={bins}"]
    prepare(tmp_path / "made", *source)
    whole = contents(tmp_path / "made")
    (tmp_path / "made/split.csv").unlink()
    for name in [name for name in whole if name.endswith("5.jpg")]:
        (tmp_path / "made" / name).unlink()
    again = prepare(tmp_path / "made", *source)
    assert "\n4 files written" in again.stdout
    assert contents(tmp_path / "made") == whole


@pytest.mark.parametrize("form", ["folders", "shards"])
def test_readable_again_photo_is_added_by_the_same_command(prepare: Run, tmp_path: Path, form: str) -> None:
    bins = bin_folders(tmp_path / "source", 30)
    late = write(bins / "1/1.jpg", b"")
    command = tmp_path / "made", "data=folders", f"data.source={bins}", f"--as={form}"
    prepare(*command)
    write(late, photo_bytes(1))
    wrong = prepare(*command, "data.counts=[1,2]", code=2)  # photos of count 0 would be lost
    assert "holds " in wrong.stderr and "name an empty folder" in wrong.stderr
    prepare(*command)
    prepare(tmp_path / "anew", *command[1:])
    assert contents(tmp_path / "made") == contents(tmp_path / "anew")
    assert "1/1.jpg" not in (tmp_path / "made/quarantine.csv").read_text()
    assert "\n0 files written" in prepare(*command).stdout


def test_photos_of_another_split_are_not_mixed_with(s3: S3Server, prepare: Run, tmp_path: Path) -> None:
    bins = bin_folders(tmp_path / "source", 30)
    source = ["data=folders", f"data.source={bins}"]
    for destination, lies in [(str(tmp_path / "made"), tmp_path / "made"), ("s3://mine/made", s3.root / "mine/made")]:
        prepare(destination, *source)
        before = contents(lies)
        done = prepare(destination, *source, "data.split.seed=1", code=2)
        assert f"{destination} holds other photos, such as t" in done.stderr and "name an empty folder" in done.stderr
        assert contents(lies) == before


def test_other_photos_of_the_same_names_are_not_replaced(s3: S3Server, prepare: Run, tmp_path: Path) -> None:
    bins = bin_folders(tmp_path / "source", 30)
    source = ["data=folders", f"data.source={bins}"]
    for destination, lies in [(str(tmp_path / "made"), tmp_path / "made"), ("s3://mine/made", s3.root / "mine/made")]:
        prepare(destination, *source)
        changed = photo_bytes(400 + len(destination))
        write(bins / "1/new.jpg", changed).rename(bins / "1/1.jpg")  # a linked copy keeps its content
        again = prepare(destination, *source)
        assert "1 of 30" in again.stderr and "\n2 files written" in again.stdout  # and split.csv
        assert changed in contents(lies).values()
        assert len(read_split(lies / "split.csv")) == 30
        before = contents(lies)
        others = tmp_path / "others"
        for photo in bins.rglob("*.jpg"):
            write(others / photo.relative_to(bins), photo_bytes(200 + int(photo.stem)))
        done = prepare(destination, "data=folders", f"data.source={others}", code=2)
        assert f"{destination} holds other photos, such as t" in done.stderr and "name an empty folder" in done.stderr
        assert contents(lies) == before


def test_photos_of_others_under_one_of_the_names_are_kept(s3: S3Server, prepare: Run, tmp_path: Path) -> None:
    bins = bin_folders(tmp_path / "source", 30)
    source = ["data=folders", f"data.source={bins}"]
    prepare(tmp_path / "names", *source)
    name = next(row.id for row in read_split(tmp_path / "names/split.csv"))
    ours = contents(tmp_path / "names")[name]
    for theirs in (photo_bytes(900), ours[::-1]):  # of another size, and of the same
        send([(write(tmp_path / "theirs.jpg", theirs), name)], "s3://mine/made")
        write(tmp_path / "made" / name, theirs)
        for destination in ("s3://mine/made", tmp_path / "made"):
            done = prepare(destination, *source, code=2)
            assert f"{destination} holds other photos, such as {name}: name an empty folder" in done.stderr
        assert contents(s3.root / "mine/made")[name] == contents(tmp_path / "made")[name] == theirs
        assert not (s3.root / "mine/made/split.csv").exists()


def test_shards_are_packed_and_sent_with_their_index_last(s3: S3Server, prepare: Run, tmp_path: Path) -> None:
    source = ["data=folders", f"data.source={bin_folders(tmp_path / 'source', 30)}"]
    prepare(tmp_path / "made", "--as", "shards", *source)
    done = prepare("s3://mine/made", *source, "--as=shards")
    there = contents(s3.root / "mine/made")
    assert there.keys() == {"bins-000000.tar", "index.csv", "quarantine.csv"}
    assert there == {path.name: path.read_bytes() for path in (tmp_path / "made").glob("[!.]*")}
    assert done.stdout.splitlines()[-2].startswith("3 files written")
    assert not list((tmp_path / "cache").rglob("*.tar"))
    again = prepare("s3://mine/made", *source, "--as=shards")
    assert "\n0 files written" in again.stdout
    delete("mine", "made/bins-000000.tar")
    healed = prepare("s3://mine/made", *source, "--as=shards")
    assert "bins-000000.tar is missing" in healed.stderr and "\n1 files written" in healed.stdout
    assert contents(s3.root / "mine/made") == there
    for others in (["--as=shards", "data.split.seed=1"], ["--as=folders"]):
        done = prepare("s3://mine/made", *source, *others, code=2)
        assert "s3://mine/made holds " in done.stderr and "name an empty folder of the bucket" in done.stderr
    assert contents(s3.root / "mine/made") == there


def test_a_quarantine_list_that_is_missing_or_old_is_written_anew(s3: S3Server, prepare: Run, tmp_path: Path) -> None:
    bins = bin_folders(tmp_path / "source", 30)
    source = ["data=folders", f"data.source={bins}", "--as=shards"]
    for destination, lies in [(str(tmp_path / "made"), tmp_path / "made"), ("s3://mine/made", s3.root / "mine/made")]:
        broken = write(bins / "1/broken.jpg", b"no photo")
        prepare(destination, *source)
        assert "1/broken.jpg" in (lies / "quarantine.csv").read_text()
        broken.rename(broken.with_name("renamed.jpg"))
        assert "\n1 files written" in prepare(destination, *source).stdout
        assert "1/renamed.jpg" in (lies / "quarantine.csv").read_text()
        (bins / "1/renamed.jpg").unlink()
    delete("mine", "made/quarantine.csv")
    assert "\n1 files written" in prepare("s3://mine/made", *source).stdout
    assert (s3.root / "mine/made/quarantine.csv").exists()


def test_shards_are_not_finished_beside_those_of_others(s3: S3Server, prepare: Run, tmp_path: Path) -> None:
    source = ["data=folders", f"data.source={bin_folders(tmp_path / 'source', 30)}", "--as=shards"]
    others = write(tmp_path / "others.tar", b"of a preparation that was given up")
    send([(others, f"bins-{number:06}.tar") for number in (0, 1)], "s3://mine/made")
    done = prepare("s3://mine/made", *source, code=2)
    assert "holds other photos, such as bins-000001.tar: name an empty folder of the bucket" in done.stderr
    assert not (s3.root / "mine/made/index.csv").exists()
    delete("mine", "made/bins-000001.tar")
    prepare("s3://mine/made", *source)
    assert (s3.root / "mine/made/index.csv").exists()


@pytest.mark.usefixtures("s3")
def test_of_two_who_pack_for_one_place_at_once_one_does_the_work(tmp_path: Path) -> None:
    manifest = scan(bin_folders(tmp_path / "source", 30), Folders(), tmp_path / "cache", image_size=None, workers=1)
    together = threading.Barrier(2)

    def pack(_: int) -> PlacedFiles:
        together.wait()
        photos, sides = np.arange(30), np.zeros(30, np.int8)
        return prepare_shards(manifest, photos, sides, "s3://mine/made", cache_dir=tmp_path / "cache")

    with ThreadPoolExecutor(2) as pool:
        assert sorted(placed.files for placed in pool.map(pack, range(2))) == [0, 3]


def test_a_line_break_in_a_name_does_not_cost_the_split(prepare: Run, tmp_path: Path) -> None:
    bins = bin_folders(tmp_path / "source", 30)
    for number, name in enumerate(["a\rb.jpg", "a\nb.jpg", 'a",b.jpg']):
        write(bins / "1" / name, photo_bytes(500 + number))
    prepare(tmp_path / "made", "data=folders", f"data.source={bins}")
    rows = read_split(tmp_path / "made/split.csv")
    listing = Folders().list(tmp_path / "made")
    assert not listing.refusals
    assert {photo.id: photo.group for photo in listing.candidates} == {row.id: row.group for row in rows}


def test_photos_that_are_numbered_anew_on_each_side_keep_apart(prepare: Run, run: Run, tmp_path: Path) -> None:
    for index in range(20):
        write(tmp_path / f"source/train/1/{index}.jpg", photo_bytes(index))
        write(tmp_path / f"source/test/1/{index}.jpg", photo_bytes(index + 100))
    write(tmp_path / "source/test/01/0.jpg", photo_bytes(300))
    write(tmp_path / "source/test/2/alone.jpg", photo_bytes(301))
    bins = ["data=folders", f"data.source={tmp_path / 'source'}", "data.split.method=random"]
    prepare(tmp_path / "made", *bins)
    made = {name: content for name, content in contents(tmp_path / "made").items() if name.endswith(".jpg")}
    assert sorted(made.values()) == sorted(contents(tmp_path / "source").values())
    assert not Folders().list(tmp_path / "made").refusals
    paths = [f"paths.{name}_dir={tmp_path / name}" for name in ("data", "cache")]
    for placed in ("42 photos, 42 of them placed now", "42 photos, 0 of them placed now"):
        assert placed in run("-m", "bincounter", "arrange", str(tmp_path / "arranged"), *bins, *paths).stdout
    arranged = contents(tmp_path / "arranged")
    assert arranged["1/train-7.jpg"] == photo_bytes(7)
    assert arranged["1/test-7.jpg"] == photo_bytes(107)
    assert {arranged["1/test-0.jpg"], arranged["1/test-1-0.jpg"]} == {photo_bytes(100), photo_bytes(300)}
    assert arranged["2/alone.jpg"] == photo_bytes(301)
    assert len(arranged) == 42


@pytest.mark.parametrize(
    ("destination", "said"),
    [
        ("s3:/mine/bins", "is not an S3 address: write it as s3://bucket/folder"),
        ("s3://nowhere/bins", "bucket nowhere does not exist: create it"),
        ("s3://public", "is inside the source"),
        ("s3://public/bin-images", "is inside the source"),
        ("{tmp}/file", "is a file: name a folder"),
        ("{tmp}/file/below", r"cannot be created (not a directory): name a folder that you can write to"),
        ("{tmp}/" + "x" * 256, "file name too long"),
        ("/proc/bins", "cannot be created"),
        ("~no-such-user/bins", "is the home folder of an unknown user: write its full path"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_wrong_destinations_are_a_sentence_before_anything_is_fetched(
    prepare: Run, tmp_path: Path, destination: str, said: str
) -> None:
    write(tmp_path / "file", "x")
    done = prepare(destination.format(tmp=tmp_path), "data=s3", "data.source=s3://public", code=2)
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_folder_in_the_source_is_refused(prepare: Run, run: Run, tmp_path: Path) -> None:
    bins = bin_folders(tmp_path / "source")
    given = ["data=folders", f"data.source={bins}"]
    arrange = ["-m", "bincounter", "arrange", *given, f"paths.cache_dir={tmp_path / 'cache'}"]
    for destination in (bins, bins / "made", tmp_path / "source/../source/made"):
        assert "is inside the source" in prepare(destination, *given, code=2).stderr
        assert "is inside the source" in run(*arrange[:3], str(destination), *arrange[3:], code=2).stderr
    assert not (bins / "made").exists()
    assert "is not a local folder" in run(*arrange[:3], "s3://bucket/bins", *arrange[3:], code=2).stderr
    assert (
        "x is a file: name a folder" in run(*arrange[:3], str(write(tmp_path / "x", "")), *arrange[3:], code=2).stderr
    )
