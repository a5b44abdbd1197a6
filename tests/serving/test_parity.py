"""Parity gate: an archive whose answers differ from training's is stopped before it is served."""

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from bins import square_bins
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from served_runs import checkpoint_alone

from bincounter.data.demo.layout import render
from bincounter.data.layouts import Folders
from bincounter.data.scan import scan
from bincounter.data.shards.packing import pack_files
from bincounter.errors import DataError, ResourceError, UserError
from bincounter.report import report_photos
from bincounter.serving.application.answers import Limits
from bincounter.serving.packing.archive import Package, PackageSettings, package
from bincounter.serving.packing.parity import check_parity
from bincounter.serving.packing.parity_photos import parity_photos
from bincounter.serving.packing.tarball import CHECKSUMS, unpack, write_tarball
from bincounter.training.results import find_run_of_checkpoint

ODD = {"a grey JPEG", "a CMYK JPEG", "a rotated JPEG", "a transparent PNG", "a WebP", "a truncated JPEG"}


@pytest.fixture(scope="module")
def packed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return package(checkpoint, PackageSettings(tmp_path_factory.mktemp("packed") / "model.tar.gz"))


@pytest.fixture(scope="module")
def photos(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return parity_photos(find_run_of_checkpoint(checkpoint), 5, source=None, data_dir=tmp_path_factory.mktemp("data"))


@contextmanager
def changed(archive: Path, folder: Path) -> Iterator[Path]:
    """Unpack an archive for the block to change; afterwards ``folder / "model.tar.gz"`` is a whole archive of that."""
    inside = unpack(archive, folder / "inside")
    yield inside
    (inside / CHECKSUMS).unlink()
    files = {path.relative_to(inside).as_posix(): path.read_bytes() for path in inside.rglob("*") if path.is_file()}
    write_tarball(files, folder / "model.tar.gz")


def _other_weights(inside: Path) -> None:
    weights = torch.load(inside / "weights.pt", weights_only=True)
    name = next(name for name in weights if name.startswith("head.") and name.endswith("bias"))
    weights[name][0] += 0.1
    torch.save(weights, inside / "weights.pt")


def _no_orientation(inside: Path) -> None:
    module = inside / "code/bincounter/data/photo_decoder.py"
    module.write_text(module.read_text().replace("_ORIENTATION_TAG = 0x0112", "_ORIENTATION_TAG = 0x0113"))


def test_an_archive_as_it_is_made_answers_as_training_does(
    checkpoint: Path, packed: Package, photos: dict[str, bytes]
) -> None:
    parity = check_parity(checkpoint, packed.path, photos)
    assert parity.photos == len(photos) == 5 + len(ODD)
    assert parity.largest <= 1e-6
    assert parity.bound == 1e-4
    assert re.fullmatch(
        r"Parity: 11 photos.*, largest difference of a probability \d\.\de-\d\d, bound 0\.0001\.", str(parity)
    )


@pytest.mark.usefixtures("warm_archives")
def test_bfloat16_has_a_bound_of_its_own(checkpoint: Path, photos: dict[str, bytes], tmp_path: Path) -> None:
    limits = Limits(max_body_bytes=100, timeout_s=0.001)  # of requests, not of the comparison
    made = package(checkpoint, PackageSettings(tmp_path / "model.tar.gz", precision="bf16", limits=limits))
    parity = check_parity(checkpoint, made.path, photos)
    assert 0 < parity.largest <= parity.bound == 2e-2


@pytest.mark.parametrize("writing", ["shutil.copyfileobj", "pathlib.Path.write_bytes"], ids=["unpacks", "photos"])
def test_a_full_disk_is_reported_with_the_variable_of_its_folder(
    writing: str, checkpoint: Path, packed: Package, photos: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, fail)
    with pytest.raises(ResourceError, match=r"\(no space left on device\): free disk space, or set TMPDIR to another"):
        check_parity(checkpoint, packed.path, photos)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_other_weights, r"the probability of count \d is 0\.\d+ in training and 0\.\d+ in the archive"),
        (_no_orientation, r"^a rotated JPEG: the probability"),
    ],
)
@pytest.mark.usefixtures("warm_archives")
def test_a_broken_archive_is_stopped(
    change: Callable[[Path], None],
    said: str,
    checkpoint: Path,
    packed: Package,
    photos: dict[str, bytes],
    tmp_path: Path,
) -> None:
    with changed(packed.path, tmp_path) as inside:
        change(inside)
    with pytest.raises(UserError, match=said) as stopped:
        check_parity(checkpoint, tmp_path / "model.tar.gz", photos)
    assert re.search("package .*again", str(stopped.value))


def test_an_archive_that_imports_a_library_of_training_is_stopped(
    checkpoint: Path, packed: Package, photos: dict[str, bytes], tmp_path: Path
) -> None:
    with changed(packed.path, tmp_path) as inside:
        module = inside / "code/bincounter/model/objectives.py"
        module.write_text(f"import lightning\n{module.read_text()}")
    with pytest.raises(UserError, match=r"lightning.*package .*again"):
        check_parity(checkpoint, tmp_path / "model.tar.gz", photos)


def test_photos_are_those_the_run_did_not_learn_from_and_odd_ones(photos: dict[str, bytes], served_run: Path) -> None:
    names = photos.keys() - ODD
    assert len(names) == 5
    lines = (served_run / "split.csv").read_text().splitlines()
    unseen = {line.split(",")[0] for line in lines if not line.endswith(",train")}
    assert {"/".join(Path(name).parts[-2:]) for name in names} <= unseen


@pytest.mark.parametrize("kind", ["rendered", "shards", "upper-case suffixes", "home"])
def test_photos_of_the_run_are_found_in_every_kind_of_source(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All of them: four validation photos, and nothing is rendered for the comparison."""
    monkeypatch.setenv("HOME", str(tmp_path))
    data: dict[str, Any] = {"source": str(tmp_path / "bins"), "layout": {"_target_": "bincounter.data.layouts.Folders"}}
    ids = [path.relative_to(tmp_path / "bins") for path in sorted(square_bins(tmp_path / "bins", 8).rglob("*.png"))]
    if kind == "rendered":
        render(tmp_path / "data/demo-8-32-5", photos=8, size=32, seed=5)
        ids = [path.relative_to(tmp_path / "data/demo-8-32-5") for path in (tmp_path / "data").rglob("*.jpg")]
        target = "bincounter.data.demo.layout.DemoBins"
        data = {"source": None, "layout": {"_target_": target, "photos": 8, "size": 32, "seed": 5}}
    elif kind == "shards":
        manifest = scan(tmp_path / "bins", Folders(), tmp_path / "cache", image_size=None, workers=2)
        list(pack_files(manifest, np.arange(8), None, tmp_path / "packed"))
        data["source"] = str(tmp_path / "packed")
    elif kind == "upper-case suffixes":
        (tmp_path / "bins/bin-images").mkdir()
        for id_ in ids:
            (tmp_path / "bins" / id_).rename(tmp_path / f"bins/bin-images/{id_.stem}.PNG")
        ids = [Path(id_.stem) for id_ in ids]
    else:
        data["source"] = "~/bins"
    run = tmp_path / "run"
    run.mkdir()
    config = {"task_name": "bins", "data": data, "paths": {"data_dir": str(tmp_path / "data")}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    sides = ["train", "validation"] * 4
    rows = [f"{id_},0,{number},{side}\n" for number, (id_, side) in enumerate(zip(ids, sides, strict=True))]
    (run / "split.csv").write_text("id,count,group,split\n" + "".join(rows))
    caplog.set_level("INFO")
    chosen = parity_photos(find_run_of_checkpoint(run / "best.ckpt"), 4, source=None, data_dir=tmp_path)
    assert len(chosen) == 4 + len(ODD)
    assert not [name for name in chosen if name.startswith("demo bin")]
    assert "Comparing answers on 4 photos of the run and 0 rendered ones." in caplog.text


def test_where_the_runs_own_photos_are_few_others_are_rendered(checkpoint: Path, tmp_path: Path) -> None:
    chosen = parity_photos(find_run_of_checkpoint(checkpoint), 34, source=None, data_dir=tmp_path)
    assert len(chosen) == 34 + len(ODD)
    assert {name for name in chosen if name.startswith("demo")} == {"demo bin 0", "demo bin 1"}


def test_photos_can_be_named_and_are_rendered_where_none_are_at_hand(served_run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: yolov8n")  # of another tool
    alone = find_run_of_checkpoint(checkpoint_alone(tmp_path))
    assert alone.run is None
    rendered = parity_photos(alone, 2, source=None, data_dir=tmp_path)
    assert rendered.keys() == {"demo bin 0", "demo bin 1"} | ODD
    named = parity_photos(alone, 3, source=str(served_run.parents[1] / "bins" / "2"), data_dir=tmp_path)
    assert {Path(name).parent.name for name in named.keys() - ODD} == {"2"}
    with pytest.raises(DataError):
        parity_photos(alone, 3, source=str(tmp_path / "nowhere"), data_dir=tmp_path)


def test_photos_that_cannot_be_read_are_compared_too(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    alone = find_run_of_checkpoint(checkpoint_alone(tmp_path))
    chosen = parity_photos(alone, 3, source=str(tmp_path / "broken.jpg"), data_dir=tmp_path)
    assert chosen.keys() == {str(tmp_path / "broken.jpg")} | ODD


def test_a_photo_with_a_large_text_is_compared_and_shown(checkpoint: Path, tmp_path: Path) -> None:
    texts = PngInfo()
    texts.add_text("parameters", "x" * 3_000_000, zip=True)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png", pnginfo=texts)
    photos = parity_photos(find_run_of_checkpoint(checkpoint), 1, source=str(tmp_path), data_dir=tmp_path)
    assert photos.keys() >= ODD
    assert report_photos._open((tmp_path / "a.png").read_bytes(), 64) is not None
