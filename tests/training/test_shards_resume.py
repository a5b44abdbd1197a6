"""Training from shards, on disk or in a bucket, is training from the folder they were packed from, bit for bit."""

import signal
from pathlib import Path

import numpy as np
import pytest
from bins import square_bins
from commands import Run, Start
from s3_server import S3Server
from test_resume import RECIPE, assert_same, kill_after

from bincounter.data.layouts.folders import Folders
from bincounter.data.scan import scan
from bincounter.data.shards.packing import pack_files
from bincounter.data.splits import load_or_assign_splits

SHARDS = ["data=shards" if override == "data=folders" else override for override in RECIPE]


@pytest.fixture
def bins(tmp_path: Path) -> Path:
    return square_bins(tmp_path / "bins")


@pytest.fixture
def shards(bins: Path, tmp_path: Path) -> Path:
    """Shards of the bins by ``prepare --as shards``: a dozen, with the default split."""
    cache = tmp_path / "packing"
    manifest = scan(bins, Folders(), cache, image_size=None, workers=2)
    kept = np.arange(len(manifest.records))
    assignment = load_or_assign_splits(
        manifest, kept, fractions=(0.8, 0.1, 0.1), method="grouped", seed=0, cache_dir=cache
    )
    list(pack_files(manifest, kept, assignment, tmp_path / "shards", shard_bytes=50_000))
    return tmp_path / "shards"


def test_runs_from_shards_are_the_run_from_the_folder(
    bins: Path, shards: Path, start: Start, train: Run, tmp_path: Path
) -> None:
    train(*RECIPE, f"data.source={bins}", f"paths.output_dir={tmp_path / 'folder'}")
    run = tmp_path / "run"
    recipe = [*SHARDS, f"data.source={shards}", f"paths.cache_dir={tmp_path / 'fresh'}", f"paths.output_dir={run}"]
    assert kill_after(start, run, 5, *recipe) == -signal.SIGKILL
    train("ckpt_path=last", f"paths.output_dir={run}")
    assert_same(run, tmp_path / "folder")
    assert (run / "split.csv").read_text() == (tmp_path / "folder" / "split.csv").read_text()


@pytest.mark.long
def test_a_run_that_streams_its_photos_is_the_run_from_the_folder(
    bins: Path, shards: Path, s3: S3Server, train: Run, tmp_path: Path
) -> None:
    (s3.root / "packed").mkdir()
    shards.rename(s3.root / "packed" / "bins")
    streaming = ["data.sync.stream=true", "data.cache=false", "data.num_workers=2"]
    for name, recipe in {
        "folder": [*RECIPE, f"data.source={bins}"],
        "streamed": [*SHARDS, "data.source=s3://packed/bins", *streaming],
    }.items():
        train(*recipe, f"paths.cache_dir={tmp_path / name}", f"paths.output_dir={tmp_path / name / 'run'}")
    assert_same(tmp_path / "streamed" / "run", tmp_path / "folder" / "run")
