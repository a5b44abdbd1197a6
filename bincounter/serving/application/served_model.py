"""Model of an unpacked archive: weights or model.onnx, and model.json in, probabilities out."""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from bincounter.audit.posterior import RecordJudge
from bincounter.data.preprocessing import Normalize
from bincounter.errors import first_line, unreadable
from bincounter.model.backbones import feature_size
from bincounter.model.objectives import Objective, learnt_counts
from bincounter.serving.application.answers import Limits
from bincounter.serving.application.engines import ONNX_FILE, TORCH, open_model

FORMAT = 2
"""Version of model.json and of the other members of an archive: 2 names the engine; 1, or no number, is for torch."""


class ArchiveError(ValueError):
    """A folder that is not a complete archive; the message ends with the next step."""


class Network(nn.Module):
    """Network of a model in evaluation mode: pixels in, distributions out; what training computes.

    Args:
        backbone: features or maps of normalised images.
        head: outputs of features or maps.
        objective: distributions of outputs.
        channels_last: memory format of images and weights.
        precision: ``fp32``, or ``bf16``: convolutions and matrix products in bfloat16.
        average_flips: see :class:`bincounter.model.counter.BinCounter`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        objective: Objective,
        *,
        channels_last: bool = True,
        precision: str = "fp32",
        average_flips: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.objective = backbone, head, objective
        self._normalize, self._precision, self.average_flips = Normalize(), precision, average_flips
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self._memory_format)
        self.eval()

    @classmethod
    def load(cls, folder: Path, described: Mapping[str, Any]) -> Self:
        """Load the network of an unpacked archive, on the CPU.

        Args:
            folder: with ``weights.pt``.
            described: the content of ``model.json``.

        Raises:
            ValueError: a weight is NaN or infinite; constructors and torch raise other errors on broken input.
        """
        node, counts = described["description"]["model"], list(described["counts"])
        backbone: nn.Module = instantiate(node["backbone"])
        learnt = learnt_counts(counts, described.get("learn_above", 0))
        objective: Objective = instantiate(described["description"]["objective"], counts=learnt)
        objective.answered = tuple(counts)
        objective.calibration_temperature = described.get("temperature", 1.0)
        head = objective.head(feature_size(backbone), **(node.get("head") or {}))
        network = cls(
            backbone,
            head,
            objective,
            channels_last=node.get("channels_last", True),
            precision=described["precision"],
            average_flips=node.get("average_flips", False),
        )
        weights = torch.load(folder / "weights.pt", map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
        if not all(weight.isfinite().all() for weight in weights.values()):
            raise ValueError("its weights hold NaN or infinite numbers")
        return network

    def forward(self, photos: Tensor) -> Tensor:
        """``uint8[B, 3, S, S]`` -> distributions over the support, ``float32[B, K]``."""
        images = self._normalize(photos).contiguous(memory_format=self._memory_format)
        backbone = cast(Any, self.backbone)
        with self._autocast(photos.device.type):
            # As one batch: weights that an exported graph uses twice keep its batch norms out of its convolutions.
            seen = torch.cat([images, images.flip(-1)]) if self.average_flips else images
            outputs = self.head(backbone.maps(seen) if self.objective.spatial else backbone(seen)).float()
        views = [outputs[: images.shape[0]], outputs[images.shape[0] :]] if self.average_flips else [outputs]
        return self.objective.calibrated(*views)

    def _autocast(self, device: str) -> AbstractContextManager[Any]:
        return torch.autocast(device, torch.bfloat16) if self._precision == "bf16" else nullcontext()


class ServedModel:
    """Model of an archive: by torch on the GPU if there is one, or by another engine on the CPU.

    Args:
        described: the content of ``model.json``.
        folder: of the unpacked archive.

    Attributes:
        name: id of the model, part of every answer.
        counts: the support, ascending.
        image_size: side of the photos the model reads, in pixels.
        precision: ``fp32``; ``bf16``, which runs on any CPU, and faster on those with bfloat16 instructions; or
            ``int8``, of the other engines.
        engine: ``torch``, ``onnxruntime`` or ``openvino``.
        limits: bounds of requests.
        answer: which count is answered, ``mode`` or ``median``.
        least: confidence below which an answer needs a person, ``None`` if answers do not say so.
        judge: of recorded counts; ``None`` in archives of earlier versions.
    """

    def __init__(self, described: Mapping[str, Any], folder: Path) -> None:
        self.name: str = described["model"]
        self.counts: tuple[int, ...] = tuple(described["counts"])
        self.image_size: int = described["image_size"]
        self.precision: str = described["precision"]
        self.engine: str = described.get("engine", TORCH)
        self.answer: str = described["description"]["model"].get("answer", "mode")
        self.limits = Limits(**described["limits"])
        self.least: float | None = described.get("needs_person_below")
        self._described, self._folder = described, folder
        self._forward = self._on_torch() if self.engine == TORCH else open_model(self.engine, folder / ONNX_FILE)
        audit = described.get("audit")
        self.judge = None if audit is None else RecordJudge.of(audit, self.counts)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load the model of an unpacked archive.

        Args:
            folder: with ``model.json``, ``weights.pt`` and, for other engines than torch, ``model.onnx``.

        Raises:
            ArchiveError: they are missing, damaged or do not fit each other.
        """
        described = read_description(folder)
        try:
            return cls(described, folder)
        except ModuleNotFoundError as error:
            raise ArchiveError(
                f"The model of {folder} needs {error.name}, which is not installed; install it."
            ) from error
        except Exception as error:  # torch and constructors raise almost anything on broken input
            broken = f"The archive in {folder} is damaged ({first_line(error)}); package it again."
            raise ArchiveError(str(unreadable(f"The archive in {folder}", error) or broken)) from error

    def probabilities(self, photos: Tensor) -> Tensor:
        """``uint8[B, 3, S, S]`` -> distributions over the support, ``float32[B, K]`` on the CPU."""
        return self._forward(photos)

    def network(self) -> Network:
        """Load the network once more, on the CPU and for torch, such as for Grad-CAM."""
        return Network.load(self._folder, self._described)

    def _on_torch(self) -> Callable[[Tensor], Tensor]:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = self.network().to(device)

        @torch.inference_mode()
        def forward(photos: Tensor) -> Tensor:
            return network(photos.to(device)).cpu()

        return forward


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
        broken = f"{path} is missing or damaged ({first_line(error)}); unpack the archive again, or package it again."
        raise ArchiveError(str(unreadable(path, error) or broken)) from error
    if newer:
        raise ArchiveError(
            f"{path} has format {described['format']}, and this bincounter reads formats up to {FORMAT}; "
            "install a newer bincounter, or package the checkpoint with this one."
        )
    return described


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
