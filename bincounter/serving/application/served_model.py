"""Model of an unpacked archive: weights and model.json in, probabilities out."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from bincounter.data.preprocessing import Normalize
from bincounter.model.backbones import feature_size
from bincounter.model.objectives import Objective
from bincounter.serving.application.answers import Limits

FORMAT = 1
"""Version of model.json and of the other members of an archive; archives without a number have format 1."""


class ArchiveError(ValueError):
    """A folder that is not a complete archive; the message ends with the next step."""


class ServedModel(nn.Module):
    """Model of an archive in evaluation mode, on the GPU if there is one.

    Args:
        described: the content of ``model.json``.

    Attributes:
        name: id of the model, part of every answer.
        counts: the support, ascending.
        image_size: side of the photos the model reads, in pixels.
        precision: ``fp32``, or ``bf16``: convolutions and matrix products in bfloat16. It runs on any CPU, and is
            faster on those with bfloat16 instructions.
        limits: bounds of requests.
        device: of the weights.
    """

    def __init__(self, described: Mapping[str, Any]) -> None:
        super().__init__()
        self.name: str = described["model"]
        self.counts: tuple[int, ...] = tuple(described["counts"])
        self.image_size: int = described["image_size"]
        self.precision: str = described["precision"]
        self.limits = Limits(**described["limits"])
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        node, objective = described["description"]["model"], described["description"]["objective"]
        self.backbone: nn.Module = instantiate(node["backbone"])
        self.objective: Objective = instantiate(objective, counts=list(self.counts))
        self.head = self.objective.head(feature_size(self.backbone), **(node.get("head") or {}))
        self._normalize = Normalize()
        self._memory_format = torch.channels_last if node.get("channels_last", True) else torch.contiguous_format
        self.to(memory_format=self._memory_format)
        self.eval()

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load the model of an unpacked archive.

        Args:
            folder: with ``model.json`` and ``weights.pt``.

        Raises:
            ArchiveError: they are missing, damaged or do not fit each other.
        """
        described = read_description(folder)
        try:
            model = cls(described)
            weights = torch.load(folder / "weights.pt", map_location="cpu", weights_only=True)
            model.load_state_dict(weights)
            if not all(weight.isfinite().all() for weight in weights.values()):
                raise ValueError("its weights hold NaN or infinite numbers")
        except ModuleNotFoundError as error:
            raise ArchiveError(
                f"The model of {folder} needs {error.name}, which is not installed; install it."
            ) from error
        except Exception as error:  # torch and constructors raise almost anything on broken input
            raise ArchiveError(
                f"The archive in {folder} is damaged ({_first_line(error)}); package it again."
            ) from error
        return model.to(model.device)

    @torch.inference_mode()
    def probabilities(self, photos: Tensor) -> Tensor:
        """``uint8[B, 3, S, S]`` -> distributions over the support, ``float32[B, K]`` on the CPU."""
        images = self._normalize(photos.to(self.device)).contiguous(memory_format=self._memory_format)
        with self._autocast():
            backbone = cast(Any, self.backbone)
            outputs = self.head(backbone.maps(images) if self.objective.spatial else backbone(images))
        return self.objective.probabilities(outputs.float()).cpu()

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()


def read_description(folder: Path) -> dict[str, Any]:
    """Read ``model.json`` of an unpacked archive.

    Raises:
        ArchiveError: it is missing or damaged, or of a format that a newer bincounter writes.
    """
    path = folder / "model.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        newer = described.get("format", 1) > FORMAT
        Limits(**described["limits"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArchiveError(
            f"{path} is missing or damaged ({_first_line(error)}); unpack the archive again, or package it again."
        ) from error
    if newer:
        raise ArchiveError(
            f"{path} has format {described['format']}, and this bincounter reads formats up to {FORMAT}; "
            "install a newer bincounter, or package the checkpoint with this one."
        )
    return described


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def instantiate(node: Mapping[str, Any], **arguments: Any) -> Any:
    """Instantiate a configuration node: call its ``_target_`` with its other keys, nested nodes first.

    Args:
        node: plain containers; ``_args_``, ``_partial_`` and ``_recursive_`` as in Hydra.
        arguments: override the node's keys.
    """
    options = {key: value for key, value in {**node, **arguments}.items() if not _is_special(key)}
    positional = node.get("_args_", [])
    if node.get("_recursive_", True):
        options = {key: _built(value) for key, value in options.items()}
        positional = _built(positional)
    target = import_object(node["_target_"])
    return partial(target, *positional, **options) if node.get("_partial_") else target(*positional, **options)


def import_object(path: str) -> Any:
    """Import the object with a dotted name, such as ``torchvision.models.ResNet`` or ``package.module.Class.method``.

    Raises:
        ImportError: it does not exist.
    """
    parts = path.split(".")
    found: Any = import_module(parts[0])
    for number, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part):
            import_module(".".join(parts[:number]))
        found = getattr(found, part)
    return found


def _is_special(key: str) -> bool:
    return key.startswith("_") and key.endswith("_")


def _built(value: Any) -> Any:
    if isinstance(value, Mapping):
        return instantiate(value) if "_target_" in value else {key: _built(inner) for key, inner in value.items()}
    return [_built(inner) for inner in value] if isinstance(value, list) else value
