"""A small unpacked archive, its service, and photos to send it."""

import asyncio
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import REPOSITORY
from PIL import Image

from bincounter.model.build import build_counter
from bincounter.serving.application.served_model import ServedModel
from bincounter.serving.application.service import Reply, Service

COUNTS = (0, 1, 2, 3)
SIZE = 32
MODEL = {"backbone": {"_target_": "bincounter.model.backbones.cnn", "width": 8, "blocks": 3}, "channels_last": True}
OBJECTIVE = {"_target_": "bincounter.model.objectives.Classification"}
LIMITS = {
    "max_body_bytes": 2_000_000,
    "max_instances": 8,
    "max_batch": 8,
    "max_queue": 64,
    "timeout_s": 20.0,
    "url_hosts": [],
}
CARD = """---
license: unknown
model-index:
- name: bincounter-0123456789ab
  results:
  - task: {type: image-classification}
    dataset: {name: squares, type: image, split: test}
    metrics: [{type: accuracy, value: 0.875}, {type: rmse, value: 0.25}]
---
# bincounter-0123456789ab
"""
_CODE = (
    "__init__.py",
    "errors.py",
    "parallel.py",
    "audit/__init__.py",
    "audit/posterior.py",
    "data/__init__.py",
    "data/photo_bounds.py",
    "data/photo_decoder.py",
    "data/preprocessing.py",
    "model/__init__.py",
    "model/answer.py",
    "model/backbones.py",
    "model/objectives.py",
    "serving/__init__.py",
)


def unpacked_archive(folder: Path, **limits: Any) -> Path:
    """Write the unpacked archive of a small model."""
    torch.manual_seed(0)
    counter = build_counter(MODEL, OBJECTIVE, COUNTS)
    folder.mkdir(parents=True)
    parts = ("backbone.", "head.", "objective.")
    torch.save({k: v for k, v in counter.state_dict().items() if k.startswith(parts)}, folder / "weights.pt")
    described = {
        "format": 1,
        "model": "bincounter-0123456789ab",
        "counts": COUNTS,
        "image_size": SIZE,
        "precision": "fp32",
        "description": {"model": {**MODEL, "weights": None, "head": {}}, "objective": OBJECTIVE},
        "limits": {**LIMITS, **limits},
        "audit": {"error_rate": 0.1, "spread": 0.25, "training_shares": [0.1, 0.2, 0.3, 0.4]},
        "task_name": "squares",
        "bincounter": "0.1.0",
    }
    (folder / "model.json").write_text(json.dumps(described), encoding="utf-8")
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    source, code = REPOSITORY / "bincounter", folder / "code" / "bincounter"
    for name in _CODE:
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, code / name)
    shutil.copytree(source / "serving/application", code / "serving/application", ignore=lambda *_: ["__pycache__"])
    return folder


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked archive for all tests that leave it as it is."""
    return unpacked_archive(tmp_path_factory.mktemp("unpacked") / "archive")


class Running:
    """The service of an unpacked archive, in a loop of its own."""

    def __init__(self, folder: Path) -> None:
        self._runner = asyncio.Runner()
        self._service = Service(ServedModel.load(folder))
        self._runner.run(self._service.start())

    def ask(
        self, body: bytes, content_type: str | None = None, accept: str | None = None, expected: str | None = None
    ) -> Reply:
        return self._runner.run(self._service.handle(body, content_type, accept, expected))

    def close(self) -> None:
        self._runner.run(self._service.close())
        self._runner.close()


def photo(seed: int = 0, format_: str = "JPEG", side: int = 96) -> bytes:
    """A photo of bright squares on noise."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 90, (side, side, 3), dtype=np.uint8)
    for _ in range(seed % len(COUNTS)):
        top, left = generator.integers(0, side - side // 5, 2)
        pixels[top : top + side // 5, left : left + side // 5] = generator.integers(150, 256, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format_)
    return buffer.getvalue()
