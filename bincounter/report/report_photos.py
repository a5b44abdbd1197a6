"""Photos of the report: their selection, Grad-CAM, and inline JPEG.

Method: Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017
(arXiv:1610.02391), as implemented by Captum.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam
from PIL import Image, ImageOps
from torch import nn

from bincounter.data.photo_bounds import cleaned
from bincounter.data.photo_decoder import rgb
from bincounter.data.photos import read_photos
from bincounter.errors import BinCounterError
from bincounter.model.answer import positions
from bincounter.model.objectives import clamped_log
from bincounter.training.results import SPLIT_OF_SIDE, RunResults

if TYPE_CHECKING:
    from bincounter.training.run import RunOutcome

SAMPLE, MISTAKES = 24, 8
_QUALITY = 80  # of a JPEG
EXPLAINED = 3  # right predictions, and as many mistakes

# Brightness of highlighted and other parts: different enough on dull brown bins.
_BRIGHT, _DIM = 1.25, 0.45


@dataclass(frozen=True, slots=True)
class ScoredPhoto:
    """One photo that the report shows.

    Attributes:
        id: of the photo.
        count: true count.
        predicted: answered count.
        probabilities: by count of the support, ascending.
    """

    id: str
    count: int
    predicted: int
    probabilities: Mapping[int, float]


@dataclass(frozen=True)
class PhotoSelection:
    """All photos that the report shows.

    Attributes:
        sample: drawn at random, by ascending count.
        mistakes: wrong predictions that gave the true count the least probability, the worst first.
        explained: the surest right predictions, of different counts where possible, then the worst mistakes.
        files: bytes of the photos' files by id; without those that cannot be read any more.
        heat: Grad-CAM of ``explained`` by id, ``float[H, W]`` in 0..1.
    """

    sample: Sequence[ScoredPhoto] = ()
    mistakes: Sequence[ScoredPhoto] = ()
    explained: Sequence[ScoredPhoto] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    heat: Mapping[str, np.ndarray] = field(default_factory=dict)

    def ids(self) -> set[str]:
        """Ids of all photos."""
        return {photo.id for photo in (*self.sample, *self.mistakes, *self.explained)}


def select_photos(results: RunResults) -> PhotoSelection:
    """Choose the photos that the report shows, the same ones for the same predictions.

    They are test photos if these were scored, else validation photos.
    """
    scored = results.predictions and results.predictions.of(SPLIT_OF_SIDE[results.headline_side])
    if not scored or not len(scored.ids):
        return PhotoSelection()
    truth = scored.probability_of_truth()
    right, wrong = (np.flatnonzero((scored.counts == scored.predicted) == is_right) for is_right in (True, False))
    worst = wrong[np.argsort(truth[wrong], kind="stable")]
    surest = right[np.argsort(-truth[right], kind="stable")]
    _, first = np.unique(scored.counts[surest], return_index=True)  # the surest of each count
    ordered = np.concatenate([surest[np.sort(first)], np.delete(surest, first)])
    drawn = np.random.default_rng(0).choice(len(scored.ids), min(SAMPLE, len(scored.ids)), replace=False)

    def photos(rows: np.ndarray) -> list[ScoredPhoto]:
        return [
            ScoredPhoto(
                id=str(scored.ids[row]),
                count=int(scored.counts[row]),
                predicted=int(scored.predicted[row]),
                probabilities=dict(zip(scored.support, scored.probabilities[row].tolist(), strict=True)),
            )
            for row in rows
        ]

    return PhotoSelection(
        sample=photos(drawn[np.lexsort((drawn, scored.counts[drawn]))]),
        mistakes=photos(worst[:MISTAKES]),
        explained=photos(np.concatenate([ordered[:EXPLAINED], worst[:EXPLAINED]])),
    )


def explain(photos: PhotoSelection, outcome: "RunOutcome") -> PhotoSelection:
    """Add the bytes of the photos, and Grad-CAM of those to explain.

    Args:
        photos: selected.
        outcome: of the run, with the scored model on the device of its fabric.
    """
    data, fabric = outcome.data, outcome.fabric
    positions = {record.id: i for i, record in enumerate(data.manifest.records)}
    files: dict[str, bytes] = {}
    for id_ in photos.ids() & positions.keys():
        with suppress(OSError, BinCounterError):
            files[id_] = read_photos([data.manifest.records[positions[id_]].file])[0]
    heat: dict[str, np.ndarray] = {}
    explained = [positions[photo.id] for photo in photos.explained if photo.id in positions]
    for batch in data.photo_loader(np.array(explained)) if explained else ():
        image = data.on_after_batch_transfer(fabric.to_device(batch), 0)["image"]
        with fabric.autocast():  # as the run computed, and twice as fast where the hardware multiplies bfloat16
            heat |= dict(zip(batch["id"], grad_cam(outcome.model, image), strict=True))
    return replace(photos, files=files, heat=heat)


def inline(data: bytes | None, side: int, quality: int = _QUALITY) -> str | None:
    """Shrink a photo so that its longer side is at most ``side`` pixels and encode it as a JPEG data URI.

    Args:
        data: the photo's file; ``None`` if it is missing.
        side: pixels.
        quality: of the JPEG, 1 to 95.

    Returns:
        The URI; ``None`` without a readable photo.
    """
    photo = _open(data, side)
    return None if photo is None else _uri(photo, quality)


def inline_attention(data: bytes | None, heat: np.ndarray, side: int) -> str | None:
    """Highlight parts of a photo by a heat map; the rest fades to a dark grey.

    Highlighted parts keep their colours, so that they can be recognised, also by the colour-blind.

    Args:
        data: the photo's file; ``None`` if it is missing.
        heat: float ``[H, W]`` in 0..1, stretched over the photo.
        side: pixels of the longer side.
    """
    photo = _open(data, side)
    if photo is None:
        return None
    mask = Image.fromarray(np.asarray(heat, dtype=np.float32)).resize(photo.size, Image.Resampling.BICUBIC)
    light = np.clip(np.asarray(mask), 0, 1)[..., None] ** 0.7  # so that half the heat is still bright
    colours = np.asarray(photo, dtype=np.float32)
    grey = np.asarray(photo.convert("L"), dtype=np.float32)[..., None] * _DIM
    lit = grey + (_BRIGHT * colours - grey) * light
    return _uri(Image.fromarray(lit.clip(0, 255).astype(np.uint8)), _QUALITY)


def _open(data: bytes | None, side: int) -> Image.Image | None:
    """Decode to RGB as for the model, upright, at most ``side`` pixels long; ``None`` if the file cannot be read."""
    if not data:
        return None
    try:
        image = Image.open(io.BytesIO(cleaned(data).data))
        image.draft("RGB", (side, side))
        photo = rgb(ImageOps.exif_transpose(image))
        photo.thumbnail((side, side), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return photo


def _uri(photo: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


class _LogProbability(nn.Module):
    """Counter with log-probabilities of the counts as outputs, for any objective."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        probabilities = self.model.probabilities_of_view(image).float()  # type: ignore[operator]
        return clamped_log(probabilities)


def grad_cam(model: nn.Module, images: torch.Tensor) -> np.ndarray:
    """Compute Grad-CAM of the answered count of each photo.

    It explains the log-probability of that count, which works for objectives whose logits are not class scores (CORN).
    Parameters are neither changed nor given gradients, and may be frozen.

    Args:
        model: a counter with ``probabilities(image) -> [B, K]`` and ``answer``, of which it takes the count;
            ``probabilities_of_view(image) -> [B, K]``, which it explains; and ``cam_layer``, its last spatial layer.
        images: float ``[B, 3, S, S]``, normalised, on the model's device.

    Returns:
        float32 ``[B, S, S]`` in 0..1, the largest value of each photo being 1; all zeros if no part of the photo
        supports the count.
    """
    was_training = model.training
    model.eval()
    try:
        # Gradients of the photo pass through frozen layers; the clone is not an inference tensor.
        with torch.inference_mode(False), torch.enable_grad():
            images = images.detach().clone().requires_grad_()
            explained = _LogProbability(model)
            with torch.no_grad():
                answered = positions(cast(Any, model).probabilities(images), str(model.answer))
            layer = cast(nn.Module, model.cam_layer)
            coarse = LayerGradCam(explained, layer).attribute(images, answered, relu_attributions=True)
            heat = LayerAttribution.interpolate(coarse, tuple(images.shape[-2:]), "bilinear")[:, 0].detach().float()
    finally:
        model.train(was_training)
    peak = heat.amax(dim=(1, 2), keepdim=True)
    return torch.where(peak > 0, heat / peak.clamp_min(torch.finfo(torch.float32).tiny), heat).cpu().numpy()
