import errno
import io
import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from commands import Start
from hypothesis import given, settings
from hypothesis import strategies as st
from made_photos import abid_bin, bin_folders, metadata, photo_bytes, write
from warm_python import Started

from bincounter.data.layouts.abid import Abid
from bincounter.data.layouts.base import Layout
from bincounter.data.layouts.folders import Folders
from bincounter.data.preprocessing import decode
from bincounter.data.records import Manifest, RejectedInput
from bincounter.data.scan import scan
from bincounter.data.splits import load_or_assign_splits, write_split
from bincounter.errors import DataError, ResourceError


def scanned(
    root: Path, cache: Path, layout: Layout | None = None, image_size: int | None = None, workers: int = 2
) -> Manifest:
    return scan(root, layout or Folders(), cache, image_size=image_size, workers=workers)


def assert_same(one: Manifest, other: Manifest) -> None:
    assert (one.records, one.given_splits, one.refusals) == (other.records, other.given_splits, other.refusals)
    assert one.digest == other.digest
    np.testing.assert_array_equal(one.sizes, other.sizes)
    np.testing.assert_array_equal(one.content, other.content)


def spoil(path: Path) -> None:
    """Replace the content behind the back of size and time of change: whoever opens the file notices."""
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_readable_photos_become_records(tmp_path):
    root = tmp_path / "bins"
    write(root / "train" / "2" / "b.jpg", photo_bytes(0, 60, 40))
    write(root / "test" / "0" / "a.jpg", photo_bytes(1, 30, 50, "PNG"))
    write(root / "10" / "c.webp", photo_bytes(2, 16, 16, "WEBP"))
    manifest = scanned(root, tmp_path / "cache")
    assert [(record.id, record.count) for record in manifest.records] == [
        ("10/c.webp", 10),
        ("test/0/a.jpg", 0),
        ("train/2/b.jpg", 2),
    ]
    assert [record.file.path for record in manifest.records] == [root / record.id for record in manifest.records]
    assert manifest.given_splits == (None, "test", "train")
    assert manifest.sizes.tolist() == [[16, 16], [30, 50], [60, 40]]
    assert manifest.refusals == ()
    assert len({record.group for record in manifest.records}) == 3


def test_unreadable_photos_are_listed_with_their_reason(tmp_path):
    root = bin_folders(tmp_path / "bins")
    whole = photo_bytes(7, 200, 200)
    write(root / "1" / "empty.jpg", b"")
    write(root / "1" / "cut.jpg", whole[: len(whole) // 2])
    write(root / "1" / "text.jpg", "not a photo at all")
    write(root / "2" / "notes.txt", "not even called one")
    huge = write(root / "2" / "huge.jpg", b"\xff\xd8\xff")
    os.truncate(huge, 10**12)
    manifest = scanned(root, tmp_path / "cache")
    assert len(manifest.records) == 6
    assert manifest.refusals == (
        RejectedInput("1/cut.jpg", "truncated"),
        RejectedInput("1/empty.jpg", "empty file"),
        RejectedInput("1/text.jpg", "not a JPEG, PNG or WebP image"),
        RejectedInput("2/huge.jpg", "larger than 500 megabytes"),
        RejectedInput("2/notes.txt", "not a .jpg, .jpeg, .png or .webp file"),
    )


def test_what_cannot_be_read_now_is_looked_at_again(tmp_path, monkeypatch):
    root, cache = bin_folders(tmp_path / "bins"), tmp_path / "cache"
    write(root / "1" / "empty.jpg", b"")
    failures = {
        "0.jpg": PermissionError(errno.EACCES, "Permission denied"),
        "1.jpg": OSError(errno.EIO, "Input/output error"),
        "2.jpg": OSError(errno.EMFILE, "Too many open files"),
        "3.jpg": MemoryError(),
    }
    opened = []
    read_bytes = Path.read_bytes

    def failing(path: Path) -> bytes:
        opened.append(path.name)
        if path.name in failures:
            raise failures[path.name]
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    first = scanned(root, cache, image_size=16)
    verdict = RejectedInput("1/empty.jpg", "empty file")
    assert first.refusals == (
        RejectedInput("0/0.jpg", "cannot be read (permission denied)", passing=True),
        RejectedInput("0/3.jpg", "not read, for want of memory", passing=True),
        RejectedInput("1/1.jpg", "cannot be read (input/output error)", passing=True),
        verdict,
        RejectedInput("2/2.jpg", "cannot be read (too many open files)", passing=True),
    )
    assert opened.count("0.jpg") == 1
    assert opened.count("1.jpg") == opened.count("2.jpg") == opened.count("3.jpg") == 3
    opened.clear()
    failures["3.jpg"] = PermissionError(errno.EACCES, "Permission denied")
    again = scanned(root, cache, image_size=16)
    assert set(opened) == failures.keys(), "the others are not opened again"
    assert again.refusals[1] == RejectedInput("0/3.jpg", "cannot be read (permission denied)", passing=True)
    assert again.digest == first.digest
    for name in ("0.jpg", "1.jpg", "2.jpg", "3.jpg"):
        del failures[name]
        assert len(scanned(root, cache).records) == 6 - len(failures)
    assert scanned(root, cache).refusals == (verdict,)


def test_a_failure_that_passes_within_the_run_is_not_noticed(tmp_path, monkeypatch):
    root = bin_folders(tmp_path / "bins")
    attempts: Counter[bytes] = Counter()

    def failing(data: bytes, size: int):
        attempts[data] += 1
        if attempts[data] < 3:
            raise MemoryError
        return decode(data, size)

    monkeypatch.setattr("bincounter.data.scan.decode", failing)
    assert not scanned(root, tmp_path / "cache").refusals


def test_metadata_and_tables_that_cannot_be_read_now_are_looked_at_again(tmp_path, monkeypatch):
    abid, bins = tmp_path / "abid", bin_folders(tmp_path / "bins")
    for name in ("1", "2"):
        abid_bin(abid, name, 1, name)
    write(bins / "split.csv", "id,count,group,split\n0/0.jpg,0,7,train\n1/1.jpg,1,7,train\n")
    closed = {abid / "metadata" / "1.json", bins / "split.csv"}
    io_open = io.open

    def opening(path, *arguments, **options):
        if path in closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return io_open(path, *arguments, **options)

    monkeypatch.setattr(io, "open", opening)
    denied = "cannot be read (permission denied)"
    for _ in range(2):
        assert scanned(abid, tmp_path / "cache", Abid()).refusals == (
            RejectedInput("bin-images/1.jpg", f"metadata: {denied}", passing=True),
        )
        assert scanned(bins, tmp_path / "cache").refusals == (RejectedInput("split.csv", denied, passing=True),)
    closed.clear()
    assert len(scanned(abid, tmp_path / "cache", Abid()).records) == 2
    manifest = scanned(bins, tmp_path / "cache")
    assert not manifest.refusals
    assert len({record.group for record in manifest.records if record.id in ("0/0.jpg", "1/1.jpg")}) == 1


@pytest.mark.parametrize("closed", ["1", "metadata"])
def test_a_folder_that_cannot_be_read_once_is_read_by_the_next_scan(tmp_path, monkeypatch, closed):
    root, layout = bin_folders(tmp_path / "bins"), cast(Layout, Folders())
    if closed == "metadata":
        root, layout = tmp_path / "abid", Abid()
        for name in ("1", "2"):
            abid_bin(root, name, 1, name)
    scandir, walks = os.scandir, Counter[str]()

    def failing(folder):
        walks[str(folder)] += 1
        if folder == root / closed and walks[str(folder)] == 2:  # after the walk that the cache is keyed by
            raise OSError(errno.EMFILE, "Too many open files")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", failing)
    if closed == "metadata":
        with pytest.raises(ResourceError, match="2 no metadata file, 1 folder that cannot be read"):
            scanned(root, tmp_path / "cache", layout)
    else:
        denied = RejectedInput("1/", "folder that cannot be read (too many open files)", passing=True)
        assert scanned(root, tmp_path / "cache", layout).refusals == (denied,)
    assert not scanned(root, tmp_path / "cache", layout).refusals


def test_copies_share_content_and_group(tmp_path):
    root = bin_folders(tmp_path / "bins", photos=3)
    shutil.copy(root / "1" / "1.jpg", root / "2" / "copy.jpg")
    manifest = scanned(root, tmp_path / "cache")
    rows = {record.id: row for row, record in enumerate(manifest.records)}
    copies = rows["1/1.jpg"], rows["2/copy.jpg"]
    assert manifest.content[copies[0]] == manifest.content[copies[1]]
    assert manifest.records[copies[0]].group == manifest.records[copies[1]].group
    assert len(set(manifest.content.tolist())) == 3


def test_the_items_of_abid_bins_make_groups(tmp_path):
    for name, items in {"1": ("B1", "B2"), "2": ("B1", "B2", "B3"), "3": ("B9",), "4": (), "5": ()}.items():
        abid_bin(tmp_path / "abid", name, len(items), *items)
    manifest = scanned(tmp_path / "abid", tmp_path / "cache", Abid())
    groups = [record.group for record in manifest.records]
    assert groups[0] == groups[1]
    assert len(set(groups)) == 4


def test_a_prepared_split_is_the_split_that_is_read_back(tmp_path):
    root = tmp_path / "bins"
    for index in range(40):  # pairs of near-copies, which looks alone would tell apart
        write(root / ("train", "valid", "test")[index // 2 % 3] / str(index % 2) / f"{index}.jpg", photo_bytes(index))
    photos = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
    sides = {"train": "train", "valid": "validation", "test": "test"}
    lines = [
        f"{name},{name.split('/')[1]},{50 - int(Path(name).stem) // 2},{sides[name.split('/')[0]]}" for name in photos
    ]
    write(root / "split.csv", "\n".join(["id,count,group,split", *lines, ""]))
    manifest = scanned(root, tmp_path / "cache")
    assignment = load_or_assign_splits(
        manifest, np.arange(40), fractions=(0.8, 0.1, 0.1), method="grouped", seed=0, cache_dir=tmp_path / "cache"
    )
    write_split(tmp_path / "split.csv", manifest.records, assignment)
    assert (tmp_path / "split.csv").read_text() == (root / "split.csv").read_text()


def test_nothing_readable_is_an_error_that_counts_the_reasons(tmp_path):
    write(tmp_path / "bins" / "1" / "a.jpg", b"")
    write(tmp_path / "bins" / "1" / "b.jpg", b"")
    (tmp_path / "bins" / "2").mkdir()
    with pytest.raises(DataError, match=r"No readable photo .*2 empty file, 1 empty folder"):
        scanned(tmp_path / "bins", tmp_path / "cache")


def test_nothing_readable_for_want_of_memory_is_said_so(tmp_path, monkeypatch):
    def failing(*_):
        raise MemoryError

    monkeypatch.setattr("bincounter.data.scan.decode", failing)
    with pytest.raises(ResourceError, match=r"\(6 not read, for want of memory\): .* memory"):
        scanned(bin_folders(tmp_path / "bins"), tmp_path / "cache")


def test_an_unchanged_source_is_not_opened_again(tmp_path):
    root, cache = bin_folders(tmp_path / "bins"), tmp_path / "cache"
    write(root / "1" / "empty.jpg", b"")
    first = scanned(root, cache)
    for record in first.records:
        spoil(record.file.path)
    assert_same(scanned(root, cache), first)


@pytest.mark.parametrize("change", ["edit", "touch", "delete", "add", "mend", "new empty folder", "break"])
def test_a_changed_source_is_scanned_again(tmp_path, change):
    root, cache = bin_folders(tmp_path / "bins"), tmp_path / "cache"
    write(root / "1" / "empty.jpg", b"")
    scanned(root, cache)
    photo = root / "0" / "0.jpg"
    if change == "edit":
        write(photo, photo_bytes(50))
    elif change == "touch":
        os.utime(photo, ns=(0, 0))
    elif change == "delete":
        photo.unlink()
    elif change == "add":
        write(root / "5" / "new.jpg", photo_bytes(51))
    elif change == "mend":
        write(root / "1" / "empty.jpg", photo_bytes(52))
    elif change == "new empty folder":
        (root / "9").mkdir()
    else:
        photo.unlink()
        photo.symlink_to("nowhere")
    assert_same(scanned(root, cache), scanned(root, tmp_path / "fresh"))


def test_changed_metadata_and_id_lists_are_noticed(tmp_path):
    root, cache = tmp_path / "abid", tmp_path / "cache"
    for name in ("1", "2", "3"):
        abid_bin(root, name, 1, name)
    ids = write(tmp_path / "ids.txt", "1\n2\n")
    layout = Abid(str(ids))
    assert [record.count for record in scanned(root, cache, layout).records] == [1, 1]
    write(root / "metadata" / "1.json", metadata(4, "1"))
    assert [record.count for record in scanned(root, cache, layout).records] == [4, 1]
    write(ids, "1\n2\n3\n")
    assert [record.id for record in scanned(root, cache, layout).records] == ["1", "2", "3"]
    ids.unlink()
    with pytest.raises(DataError, match=r"ids\.txt"):
        scanned(root, cache, layout)


def test_sources_and_layouts_do_not_share_a_manifest(tmp_path):
    for name in ("1", "2"):
        abid_bin(tmp_path / "abid", name, 1, name)
    cache = tmp_path / "cache"
    one = scanned(tmp_path / "abid", cache, Abid(str(write(tmp_path / "one.txt", "1"))))
    both = scanned(tmp_path / "abid", cache, Abid())
    assert (len(one.records), len(both.records)) == (1, 2)
    shutil.copytree(tmp_path / "abid", tmp_path / "copy")
    assert {record.file.path.parents[1] for record in scanned(tmp_path / "copy", cache, Abid()).records} == {
        tmp_path / "copy"
    }


def test_the_digest_names_the_data_wherever_it_lies(tmp_path):
    root = bin_folders(tmp_path / "bins")
    digest = scanned(root, tmp_path / "cache").digest
    shutil.copytree(root, tmp_path / "elsewhere")
    assert scanned(tmp_path / "elsewhere", tmp_path / "cache2", workers=1).digest == digest
    (tmp_path / "elsewhere" / "2" / "2.jpg").rename(tmp_path / "elsewhere" / "0" / "2.jpg")
    assert scanned(tmp_path / "elsewhere", tmp_path / "cache2").digest != digest


def test_a_cache_inside_the_source_is_no_input(tmp_path):
    root = bin_folders(tmp_path / "bins")
    first = scanned(root, root / "cache", image_size=16)
    assert not first.refusals
    for record in first.records:
        spoil(record.file.path)
    assert_same(scanned(root, root / "cache", image_size=16), first)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_broken_cache_means_a_fresh_scan(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("broken")
    root, cache = bin_folders(folder / "bins", photos=2), folder / "cache"
    first = scanned(root, cache)
    (kept,) = (cache / "manifests").iterdir()
    content = bytearray(kept.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    kept.write_bytes(content)
    assert_same(scanned(root, cache), first)


def scanning(start: Start, root: Path, cache: Path) -> Started:
    code = """
import sys
from pathlib import Path
from bincounter.data.layouts.folders import Folders
from bincounter.data.scan import scan
from bincounter.data.splits import load_or_assign_splits, write_split
print(scan(Path(sys.argv[1]), Folders(), Path(sys.argv[2]), image_size=512, workers=1).digest)
"""
    return start("-c", code, str(root), str(cache))


def test_a_killed_scan_leaves_nothing_half(start, tmp_path):
    root, cache = bin_folders(tmp_path / "bins", photos=400), tmp_path / "cache"
    process = scanning(start, root, cache)
    deadline = time.monotonic() + 60
    while not any(part.stat().st_size for part in cache.glob("photos/.*.part")):
        assert time.monotonic() < deadline, "the scan never began to write"
        assert process.poll() is None, "the scan ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(cache.glob("manifests/*.npz"))
    assert not list(cache.glob("photos/*.uint8"))
    assert len(scanned(root, cache).records) == 400


def test_two_scans_at_once_agree(start, tmp_path):
    root, cache = bin_folders(tmp_path / "bins", photos=40), tmp_path / "cache"
    processes = [scanning(start, root, cache) for _ in range(2)]
    digests = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert digests == {scanned(root, tmp_path / "alone").digest}
    assert [path.stat().st_size for path in (cache / "photos").iterdir()] == [40 * 3 * 512 * 512]


@pytest.mark.photos
def test_real_photos(abid_photos, tmp_path):
    names = sorted(path.stem for path in (abid_photos / "bin-images").iterdir())[:300]
    ids = write(tmp_path / "ids.txt", "\n".join(names))
    manifest = scanned(abid_photos, tmp_path / "cache", Abid(str(ids)))
    assert [record.id for record in manifest.records] == names
    assert (manifest.sizes == 224).all()
    for record in manifest.records[::50]:
        stated = json.loads((abid_photos / "metadata" / f"{record.id}.json").read_text())
        assert record.count == stated["EXPECTED_QUANTITY"]
    assert 100 < len({record.group for record in manifest.records}) < 300
