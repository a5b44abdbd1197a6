"""Shards that stay in their bucket: photos are read by range, by the processes that need them."""

import multiprocessing
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_photos import bin_folders, photo_bytes, write
from s3_faults import denied, unavailable
from s3_proxy import Answer, FaultyProxy
from s3_server import S3Server

from bincounter.data.datamodule import BinDataModule
from bincounter.data.layouts import Detected
from bincounter.data.layouts.abid import Abid
from bincounter.data.layouts.base import IndexedLayout, Layout
from bincounter.data.layouts.folders import Folders
from bincounter.data.photo_store import PhotoStore
from bincounter.data.records import Manifest
from bincounter.data.scan import scan
from bincounter.data.shards.index import Shards, streamed_manifest
from bincounter.data.shards.packing import pack_files
from bincounter.errors import BinCounterError, ConfigError, DataError

PHOTOS = 40
SOURCE = "s3://packed/some/bins"
PLAIN = {
    "flip": False,
    "shift": 0.0,
    "scale": 0.0,
    "rotation": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
}


@pytest.fixture
def shards(s3: S3Server, tmp_path: Path) -> Path:
    """Forty photos in shards of a few, which lie in the bucket."""
    manifest = scan(
        bin_folders(tmp_path / "bins", photos=PHOTOS), Folders(), tmp_path / "cache", image_size=None, workers=2
    )
    folder = s3.root / "packed" / "some" / "bins"
    list(pack_files(manifest, np.arange(PHOTOS), None, folder, shard_bytes=20_000))
    return folder


@pytest.fixture
def ranges(s3_proxy: FaultyProxy) -> FaultyProxy:
    """The server behind a proxy that answers requests for a range as S3 does, which rclone answers by 200."""
    s3_proxy.spoil(
        "GET .*", lambda answer: replace(answer, status=206) if "content-range" in answer.headers else answer
    )
    return s3_proxy


def of_photos(proxy: FaultyProxy) -> list[str]:
    return [request for request in proxy.requests if re.search(r"\.tar", request)]


def streamed(tmp_path: Path, source: str = SOURCE) -> Manifest:
    return streamed_manifest(source, tmp_path / "streaming", 8)


def module(tmp_path: Path, layout: Layout | IndexedLayout | Detected | None = None, **options: object) -> BinDataModule:
    settings = {
        "source": SOURCE,
        "layout": layout or Shards(),
        "counts": None,
        "image_size": 24,
        "batch_size": 6,
        "split": {"method": "grouped", "fractions": (0.6, 0.2, 0.2), "seed": 0},
        "augmentation": PLAIN,
        "data_dir": tmp_path / "data",
        "cache_dir": tmp_path / "module",
        "sync": {"connections": 8, "stream": True},
    }
    return BinDataModule(**settings | options)  # type: ignore[arg-type]


def assert_same_pixels(ours: PhotoStore, folder: Path, cache: Path) -> None:
    there = PhotoStore.open(Shards().manifest(folder), 24, cache, cached=False, workers=1)
    rows = np.random.default_rng(0).permutation(PHOTOS)
    assert torch.equal(ours.batch(rows), there.batch(rows))


@pytest.mark.parametrize("cached", [True, False])
def test_streamed_photos_are_those_that_lie_in_the_shards(shards, s3, tmp_path, cached):
    manifest = streamed(tmp_path)
    local = Shards().manifest(shards)
    assert (manifest.digest, manifest.given_splits) == (local.digest, local.given_splits)
    assert manifest.records[0].file.name.startswith("s3://packed/some/bins/bins-0")
    store = PhotoStore.open(manifest, 24, tmp_path / "c", cached=cached, workers=2)
    assert_same_pixels(store, shards, tmp_path / "d")


def test_photos_that_lie_together_come_by_one_request(shards, ranges, tmp_path):
    manifest = streamed(tmp_path)
    number = len({record.file.path for record in manifest.records})
    assert number > 3
    store = PhotoStore.open(manifest, 24, tmp_path / "c", cached=True, workers=2)
    assert len(of_photos(ranges)) == number
    assert_same_pixels(store, shards, tmp_path / "d")
    ranges.requests.clear()
    PhotoStore.open(manifest, 32, tmp_path / "c", cached=False, workers=2).batch([0])
    assert len(of_photos(ranges)) == 1


def test_an_unchanged_index_is_not_fetched_again(shards, s3_proxy, tmp_path):
    first = streamed(tmp_path)
    size = (shards / "index.csv").stat().st_size
    sent: list[int] = []

    def measured(answer: Answer) -> Answer:
        sent.append(len(answer.body))
        return answer

    s3_proxy.spoil(r"index\.csv", measured)
    assert streamed(tmp_path).records == first.records
    assert sent == [0]
    shutil.rmtree(shards)
    fewer = scan(tmp_path / "bins", Folders(), tmp_path / "cache", image_size=None, workers=2)
    list(pack_files(fewer, np.arange(7), None, shards))
    assert [record.id for record in streamed(tmp_path).records] == [record.id for record in fewer.records[:7]]
    assert 0 < sent[-1] < size


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("layout", [Shards(), Detected()])
def test_workers_read_the_same_batches(shards, s3, tmp_path, stream, layout):
    data = module(
        tmp_path, layout, cache=False, num_workers=2 if stream else 0, sync={"connections": 8, "stream": stream}
    )
    data.prepare()
    local = module(tmp_path, Folders(), source=str(tmp_path / "bins"), sync=None)
    local.prepare()
    for name in ("training", "validation", "test"):
        np.testing.assert_array_equal(data.side(name), local.side(name))
    ours, theirs = list(data.train_dataloader()), list(local.train_dataloader())
    assert len(ours) == len(theirs) == 4
    for a, b in zip(ours, theirs, strict=True):
        assert a["id"] == b["id"]
        assert torch.equal(a["image"], b["image"])


def forked(reading: Callable[[], object]) -> str:
    """Result of a forked process; a hung one would keep the test from ending."""
    told: multiprocessing.SimpleQueue[str] = multiprocessing.get_context("fork").SimpleQueue()

    def child() -> None:
        try:
            reading()
            told.put("")
        except BinCounterError as error:
            told.put(str(error))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    process.kill()
    return told.get()


def test_a_forked_process_is_told_that_it_cannot_stream(shards, s3, tmp_path):
    store = PhotoStore.open(streamed(tmp_path), 24, tmp_path / "c", cached=False, workers=2)
    store.batch([0])
    assert "process that was forked" in forked(lambda: store.batch([0]))
    store.batch([1])


def test_a_shard_that_changed_in_the_bucket_is_told(shards, s3, tmp_path):
    manifest = streamed(tmp_path)
    file = manifest.records[5].file
    shard = shards / file.path.name
    content = bytearray(shard.read_bytes())
    content[file.offset + 50] ^= 1
    shard.write_bytes(content)
    with pytest.raises(
        DataError, match=r"s3://packed/some/bins/bins-.*byte \d+ is not the photo that index\.csv describes"
    ):
        PhotoStore.open(manifest, 24, tmp_path / "c", cached=True, workers=2)


def test_shards_missing_or_cut_short_in_the_bucket_are_told(shards, s3, tmp_path):
    last = sorted(shards.glob("*.tar"))[-1]
    write(last, last.read_bytes()[:700])
    with pytest.raises(DataError, match=f"{SOURCE}/{last.name} is cut short, to 700 of at least .* bytes"):
        streamed(tmp_path)
    last.unlink()
    with pytest.raises(DataError, match=f"{SOURCE}/{last.name} is missing: "):
        streamed(tmp_path)


def test_what_passes_is_waited_for_and_what_stays_is_told(shards, ranges, tmp_path):
    manifest = streamed(tmp_path)
    ranges.spoil(r"\.tar", unavailable, times=4)
    assert_same_pixels(PhotoStore.open(manifest, 24, tmp_path / "c", cached=False, workers=2), shards, tmp_path / "d")
    ranges.spoil(r"\.tar", denied)
    with pytest.raises(DataError, match=r"access to s3://packed/some/bins/bins-.* is denied"):
        PhotoStore.open(manifest, 24, tmp_path / "c", cached=True, workers=2)


@pytest.mark.parametrize("table", ["index.csv", "quarantine.csv"])
def test_a_table_that_is_damaged_is_told_where_it_lies(shards, s3, tmp_path, table):
    (shards / table).write_text("id,count\n")
    with pytest.raises(DataError, match=f"^{SOURCE}/{table} is not "):
        streamed(tmp_path)


def test_a_bucket_without_shards_is_told_what_to_do(s3, tmp_path):
    s3.put("packed", {"3/a.jpg": photo_bytes(1)})
    with pytest.raises(DataError, match=r"no s3://packed/index\.csv: pack .* or set data\.sync\.stream=false"):
        streamed(tmp_path, "s3://packed")
    with pytest.raises(DataError, match="has no bucket"):
        streamed(tmp_path, "s3://nowhere")


@pytest.mark.parametrize(
    "options", [{"layout": Abid()}, {"layout": Folders()}, {"source": "bins"}, {"source": None, "layout": Folders()}]
)
def test_only_shards_in_a_bucket_are_streamed(tmp_path, options):
    with pytest.raises(ConfigError, match=r"data\.sync\.stream=true is for shards in a bucket: set data=shards"):
        module(tmp_path, **options).prepare()
