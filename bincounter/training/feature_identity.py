"""What the features of a data set's photos depend on: kept features that differ in any of it are not found."""

import hashlib
import inspect
import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bincounter.data.datamodule import BinDataModule
from bincounter.data.store import RECIPE
from bincounter.model import counter
from bincounter.model.counter import BinCounter


def identity(
    model: BinCounter, data: BinDataModule, *, backbone: Mapping[str, Any], precision: str, device: torch.device
) -> dict[str, str | int]:
    """Describe features as far as they can be told beforehand.

    Args:
        model: whose backbone makes them.
        data: prepared.
        backbone: the ``model.backbone`` node of the configuration.
        precision: Lightning's name of it.
        device: that computes them.
    """
    gpu = device.type == "cuda"
    return {
        "backbone": _digest(json.dumps(backbone, sort_keys=True, default=str).encode(), repr(model.backbone).encode()),
        "weights": _digest_of_tensors(model.backbone),
        "code": _digest_of_code(model.backbone),
        "image_size": data.image_size,
        "preprocessing": RECIPE,
        "photos": _digest(data.manifest.content.tobytes()),
        "precision": f"{precision}, float32 matrices {torch.get_float32_matmul_precision()}",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision")),
        "device": torch.cuda.get_device_name(device) if gpu else f"{device.type} {_instructions()}",
    }


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]


def _digest_of_tensors(module: nn.Module) -> str:
    """Digest of all parameters and buffers, those included that no checkpoint holds."""
    digest = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _digest_of_code(backbone: nn.Module) -> str:
    """Digest of the files that define the backbone's modules, and of how the model calls them."""
    modules = {type(module).__module__ for module in backbone.modules()} | {counter.__name__}
    files = {inspect.getsourcefile(sys.modules[name]) for name in modules if name in sys.modules}
    return _digest(*(Path(file).read_bytes() for file in sorted(filter(None, files))))


def _instructions() -> str:
    """The processor's vector instructions that torch chose its kernels by."""
    return torch.backends.cpu.get_cpu_capability()
