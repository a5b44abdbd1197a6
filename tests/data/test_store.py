import errno
import logging
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from made_photos import bin_folders, photo_bytes, write

import bincounter.data.photo_store as store_module
import bincounter.data.scan as scan_module
from bincounter.data.feature_store import FeatureStore
from bincounter.data.layouts.folders import Folders
from bincounter.data.photo_store import PhotoStore, photos_path
from bincounter.data.preprocessing import decode
from bincounter.data.records import Manifest
from bincounter.data.scan import scan
from bincounter.errors import DataError, ResourceError
from bincounter.files import translate_disk_full

SIZE = 24


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    root = bin_folders(tmp_path / "bins", photos=7)
    write(root / "0" / "broken.jpg", b"")
    write(root / "1" / "grey.png", photo_bytes(3, 10, 90, "PNG"))
    return scan(root, Folders(), tmp_path / "cache", image_size=None, workers=2)


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def opened(manifest: Manifest, cache: Path, *, cached: bool = True, size: int = SIZE) -> PhotoStore:
    return PhotoStore.open(manifest, size, cache, cached=cached, workers=2)


def expected(manifest: Manifest, indices) -> torch.Tensor:
    return torch.stack([decode(manifest.records[index].file.path.read_bytes(), SIZE) for index in indices])


@pytest.mark.parametrize("cached", [True, False])
def test_batches_hold_the_photos_asked_for(manifest, cache, cached):
    store = opened(manifest, cache, cached=cached)
    assert store.cached == cached
    assert len(store) == 8
    for indices in ([0], [7, 0, 3, 3], range(8)):
        batch = store.batch(np.array(indices))
        assert batch.dtype == torch.uint8
        assert batch.is_contiguous()
        assert torch.equal(batch, expected(manifest, indices))
    assert store.batch(np.array([], dtype=np.int64)).shape == (0, 3, SIZE, SIZE)


def test_a_batch_belongs_to_the_caller(manifest, cache):
    store = opened(manifest, cache)
    store.batch([0, 1]).zero_()
    assert torch.equal(store.batch([0, 1]), expected(manifest, [0, 1]))


def test_scanning_with_a_size_decodes_once_for_all(tmp_path, manifest):
    cache = tmp_path / "other"
    wanted = expected(manifest, range(8))
    again = scan(manifest.root, Folders(), cache, image_size=SIZE, workers=2)
    for record in again.records:
        record.file.path.unlink()
    assert torch.equal(opened(again, cache).batch(range(8)), wanted)


def test_a_file_that_cannot_be_mapped(manifest, cache, monkeypatch):
    store = opened(manifest, cache)

    def fail(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("numpy.memmap", fail)
    features = FeatureStore(cache, {}, rows=2, size=5, dtype=torch.float32)
    for read in (lambda: store.batch([0]), lambda: features.fill(np.arange(2), lambda rows: [])):
        with pytest.raises(
            ResourceError, match=r"mapped into memory \(Cannot allocate memory\): raise .* data.cache=false"
        ):
            read()
    monkeypatch.undo()
    photos_path(cache, manifest, SIZE).unlink()
    with pytest.raises(DataError, match="are missing: run again to decode them again"):
        store.batch([0])


def test_photos_are_kept_for_the_next_time(manifest, cache):
    wanted = opened(manifest, cache).batch(range(8))
    for record in manifest.records:
        record.file.path.unlink()
    assert torch.equal(opened(manifest, cache).batch(range(8)), wanted)


def test_sizes_and_data_sets_do_not_share_a_file(manifest, cache, tmp_path):
    root = bin_folders(tmp_path / "more", photos=8)
    more = scan(root, Folders(), cache, image_size=None, workers=2)
    stores = [opened(manifest, cache), opened(manifest, cache, size=10), opened(more, cache)]
    assert [tuple(store.batch([2]).shape[2:]) for store in stores] == [(24, 24), (10, 10), (24, 24)]
    assert torch.equal(stores[2].batch([7]), expected(more, [7]))
    assert len(list((cache / "photos").iterdir())) == 3


def test_a_file_that_is_not_whole_is_made_again(manifest, cache):
    opened(manifest, cache)
    (file,) = (cache / "photos").iterdir()
    os.truncate(file, 1000)
    assert torch.equal(opened(manifest, cache).batch(range(8)), expected(manifest, range(8)))


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        ('"""Read the width and height', '# A comment.\n    """Size', 1),
        ('"""Magic numbers of the formats."""', "", 1),
        ("MAX_SCANS = 100", "MAX_SCANS = (100)  # reformatted", 1),
        ("MAX_SCANS = 100", "MAX_SCANS = 101", 2),
    ],
)
def test_cache_keys_ignore_comments_of_the_code(manifest, tmp_path, monkeypatch, old, new, kept):
    copies = [Path(shutil.copy(file, tmp_path)) for file in store_module.DECODERS]
    monkeypatch.setattr(store_module, "DECODERS", copies)
    monkeypatch.setattr(scan_module, "_SOURCES", copies)
    caches = tmp_path / "keyed"

    def fill() -> None:
        opened(scan(manifest.root, Folders(), caches, image_size=None, workers=1), caches)

    fill()
    (edited,) = (file for file in copies if old in file.read_text())
    edited.write_text(edited.read_text().replace(old, new))
    store_module.bare_code.cache_clear()  # as in a new process
    fill()
    assert len(list((caches / "photos").iterdir())) == len(list((caches / "manifests").iterdir())) == kept


class Photos(torch.utils.data.Dataset):
    def __init__(self, store: PhotoStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.store.batch([index])[0]


@pytest.mark.parametrize(("cached", "start"), [(True, "fork"), (True, "spawn"), (False, "fork")])
def test_loader_workers_read_the_same_pixels(manifest, cache, cached, start):
    store = opened(manifest, cache, cached=cached)
    store.batch([0])  # a map that is open already has to survive the way into a worker
    loader = torch.utils.data.DataLoader(Photos(store), batch_size=4, num_workers=1, multiprocessing_context=start)
    assert torch.equal(torch.cat(list(loader)), expected(manifest, range(8)))


def test_a_pickled_store_carries_no_pixels(manifest, cache):
    store = opened(manifest, cache, size=200)
    pixels = store.batch(range(8))
    pickled = pickle.dumps(store)
    assert len(pickled) < 10_000
    assert torch.equal(pickle.loads(pickled).batch(range(8)), pixels)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda path: path.unlink(), "can no longer be read"),
        (lambda path: path.write_bytes(b""), "was changed after"),
        (lambda path: path.write_bytes(photo_bytes(77)), "was changed after"),
    ],
)
def test_a_photo_harmed_after_the_scan_is_named(manifest, cache, cached, harm, told):
    harm(manifest.records[3].file.path)
    with pytest.raises(DataError, match=told) as caught:
        opened(manifest, cache, cached=cached).batch(range(8))
    assert str(manifest.records[3].file.path) in str(caught.value)
    assert not list(cache.glob("photos/*")), "half a file was left"


def test_no_room_on_the_disk_means_decoding_anew(manifest, cache, caplog):
    with caplog.at_level(logging.WARNING):
        store = opened(manifest, cache, size=1_000_000)
    assert not store.cached
    assert len(store) == 8
    assert caplog.text.count("no room") == 1
    assert not list(cache.glob("photos/*"))


def test_a_scan_goes_on_where_there_is_no_room_for_photos(manifest, tmp_path):
    again = scan(manifest.root, Folders(), tmp_path / "other", image_size=1_000_000, workers=2)
    assert again.digest == manifest.digest


def test_a_full_disk_is_answered_in_a_sentence():
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full, a file that is always full")
    with pytest.raises(ResourceError, match="no space is left"), translate_disk_full(full), full.open("wb", 0) as file:
        file.write(b"x")


def test_other_errors_of_the_system_pass():
    with pytest.raises(FileNotFoundError), translate_disk_full(Path()):
        Path("missing").read_bytes()


def test_parts_of_killed_processes_are_deleted_once_they_are_old(manifest, cache):
    fresh = write(cache / "photos" / ".photos-1-a.part", b"x")
    old = write(cache / "photos" / ".photos-1-b.part", b"x")
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    opened(manifest, cache)
    assert fresh.exists()
    assert not old.exists()
