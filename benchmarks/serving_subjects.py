"""Subjects of the serving benchmark: photos of original size, archives with random weights, and the bare model."""

import io
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
ORIGINALS = REPOSITORY.parent / "shared" / "abid" / "originals" / "bin-images"
COUNTS = (0, 1, 2, 3, 4, 5)
RESNET50 = {"_target_": "bincounter.model.backbones.resnet", "name": "resnet50"}
CNN = {"_target_": "bincounter.model.backbones.cnn", "width": 16, "blocks": 4}
CLASSIFICATION = {"_target_": "bincounter.model.objectives.Classification"}


def photos(number: int) -> list[bytes]:
    """JPEGs of original size: real ones if available, else rendered bins."""
    if ORIGINALS.is_dir():
        return [path.read_bytes() for path in sorted(ORIGINALS.glob("*.jpg"))[:number]]
    print("../shared/abid is not there: rendered bins are sent instead")
    return [_noise_over_blocks(seed) for seed in range(number)]


def capabilities() -> str:
    """Instructions of this CPU that matter to engines, and its number of cores."""
    return f"{os.cpu_count()} cores, torch: {torch.backends.cpu.get_cpu_capability()}"


def archive_of(
    folder: Path,
    *,
    precision: str,
    backbone: str = "resnet50",
    image_size: int = 224,
    engine: str = "torch",
    calibration: Sequence[bytes] = (),
) -> Path:
    """Package a model with random weights."""
    from bincounter.model.build import build_counter, checkpoint_metadata
    from bincounter.serving.packing.archive import PackageSettings, package

    model = {"backbone": RESNET50 if backbone == "resnet50" else CNN, "channels_last": True}
    torch.manual_seed(0)
    counter = build_counter(model, CLASSIFICATION, COUNTS)
    description = checkpoint_metadata(
        model,
        CLASSIFICATION,
        COUNTS,
        image_size=image_size,
        train_counts=dict.fromkeys(COUNTS, 1),
        train_ids=[],
        train_content=torch.empty(0, dtype=torch.int64),
    )
    folder.mkdir(parents=True)
    torch.save({"state_dict": counter.state_dict(), "bincounter": description}, folder / "best.ckpt")
    settings = PackageSettings(folder / "model.tar.gz", precision, engine=engine, calibration=calibration)
    return package(folder / "best.ckpt", settings).path


def bare_forward(archive: Path, jpegs: list[bytes], *, seconds: float) -> tuple[float, float, float]:
    """Seconds to decode one photo, seconds of the forward of one, and photos per second of the best batch size."""
    from bincounter.data.preprocessing import decode
    from bincounter.serving.application.served_model import ServedModel
    from bincounter.serving.packing.tarball import unpack

    model = ServedModel.load(unpack(archive, Path(tempfile.mkdtemp(dir=archive.parent)) / "bare"))
    started = time.perf_counter()
    decoded = torch.stack([decode(jpeg, model.image_size) for jpeg in jpegs[:64]])
    seconds_each = (time.perf_counter() - started) / len(decoded)
    one = statistics.median(_times(model, decoded, batch=1, seconds=seconds / 2))
    batches = (8, 16, 32)
    best = max(size / statistics.median(_times(model, decoded, size, seconds / 2 / len(batches))) for size in batches)
    return seconds_each, one, max(best, 1 / one)


def _times(model: Any, decoded: torch.Tensor, batch: int, seconds: float) -> list[float]:
    model.probabilities(decoded[:batch])
    times: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 3:
        started = time.perf_counter()
        model.probabilities(decoded[:batch])
        times.append(time.perf_counter() - started)
    return times


def _noise_over_blocks(seed: int) -> bytes:
    """A JPEG with about the size and the entropy of a bin photo."""
    from PIL import Image, ImageFilter

    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (500, 600, 3), generator=generator, dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy()).filter(ImageFilter.GaussianBlur(2))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
