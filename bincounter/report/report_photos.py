"""Which photos are shown, as inline JPEG, with Grad-CAM.

Method: Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017
(arXiv:1610.02391), as implemented by Captum.
"""

import base64
import io
from typing import cast

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam
from PIL import Image, ImageOps
from torch import nn

from bincounter.training.results import Predictions

# Brightness of what was looked at and of the rest: apart enough to be told at a glance on dull brown bins.
_LAMP, _DUSK = 1.25, 0.45


def inline(data: bytes | None, side: int, quality: int = 80) -> str | None:
    """Shrink a photo so that its longer side is at most ``side`` pixels and encode it as a JPEG data URI.

    Args:
        data: the photo's file, or ``None`` where it is gone.
        side: pixels.
        quality: of the JPEG, 1 to 95.

    Returns:
        The URI, or ``None`` where there is no photo to show.
    """
    photo = _open(data, side)
    return None if photo is None else _uri(photo, quality)


def inline_attention(data: bytes | None, heat: np.ndarray, side: int, quality: int = 80) -> str | None:
    """Light up the parts of a photo a model looked at; the rest fades to a dark grey.

    The photo's own colours stay where the light falls, so that what was looked at can be recognised, also by the
    colour-blind.

    Args:
        data: the photo's file, or ``None`` where it is gone.
        heat: float ``[H, W]`` in 0..1, stretched over the photo.
        side: pixels of the longer side.
        quality: of the JPEG, 1 to 95.
    """
    photo = _open(data, side)
    if photo is None:
        return None
    mask = Image.fromarray(np.asarray(heat, dtype=np.float32)).resize(photo.size, Image.Resampling.BICUBIC)
    light = np.clip(np.asarray(mask), 0, 1)[..., None] ** 0.7  # so that half the heat is still well lit
    colours = np.asarray(photo, dtype=np.float32)
    grey = np.asarray(photo.convert("L"), dtype=np.float32)[..., None] * _DUSK
    lit = grey + (_LAMP * colours - grey) * light
    return _uri(Image.fromarray(lit.clip(0, 255).astype(np.uint8)), quality)


def _open(data: bytes | None, side: int) -> Image.Image | None:
    """Decode to RGB, upright, at most ``side`` pixels long; ``None`` where the file cannot be read any more."""
    if not data:
        return None
    try:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (side, side))
        photo = ImageOps.exif_transpose(image).convert("RGB")
        photo.thumbnail((side, side), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return photo


def _uri(photo: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def sample(predictions: Predictions, photos: int) -> Predictions:
    """Draw photos at random, the same ones every time, ordered by count."""
    size = min(photos, len(predictions.ids))
    drawn = np.random.default_rng(0).choice(len(predictions.ids), size, replace=False)
    return predictions.rows(drawn[np.lexsort((drawn, predictions.counts[drawn]))])


def mistakes(predictions: Predictions, photos: int) -> Predictions:
    """Take the wrong answers that gave the true count the least probability, the worst first."""
    wrong = np.flatnonzero(predictions.counts != predictions.predicted)
    order = np.argsort(predictions.probability_of_truth()[wrong], kind="stable")
    return predictions.rows(wrong[order][:photos])


def look_closer(predictions: Predictions, each: int = 3) -> Predictions:
    """Take the surest right answers, of different counts where possible, then the worst mistakes."""
    right = np.flatnonzero(predictions.counts == predictions.predicted)
    surest = right[np.argsort(-predictions.probability_of_truth()[right], kind="stable")]
    _, first = np.unique(predictions.counts[surest], return_index=True)
    preferred = surest[np.sort(first)]
    others = surest[~np.isin(surest, preferred)]
    chosen = np.concatenate([preferred, others])[:each]
    worst = mistakes(predictions, each)
    wrong = np.flatnonzero(np.isin(predictions.ids, worst.ids) & (predictions.counts != predictions.predicted))
    return predictions.rows(np.concatenate([chosen, wrong]))


class _LogProbability(nn.Module):
    """A counter whose outputs are log-probabilities of the counts, whatever its objective made of its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        probabilities = self.model.probabilities(image).float()  # type: ignore[operator]
        return probabilities.clamp_min(torch.finfo(torch.float32).tiny).log()


def attention(model: nn.Module, images: torch.Tensor) -> np.ndarray:
    """Explain the most likely count of each photo.

    The log-probability of that count is what is explained, so that objectives whose logits are no class scores (CORN)
    are explained the same way. Parameters are neither changed nor given gradients, and may be frozen.

    Args:
        model: a counter with ``probabilities(image) -> [B, K]`` and ``cam_layer``, its last spatial layer.
        images: float ``[B, 3, S, S]``, normalised, on the model's device.

    Returns:
        float32 ``[B, S, S]`` in 0..1, the largest value of each photo being 1; all zeros where nothing in the photo
        spoke for the count.
    """
    was_training = model.training
    model.eval()
    try:
        # A photo that asks for gradients carries them through frozen layers; the clone leaves inference mode behind.
        with torch.inference_mode(False), torch.enable_grad():
            images = images.detach().clone().requires_grad_()
            explained = _LogProbability(model)
            with torch.no_grad():
                likely = explained(images).argmax(dim=1)
            layer = cast(nn.Module, model.cam_layer)
            coarse = LayerGradCam(explained, layer).attribute(images, likely, relu_attributions=True)
            heat = LayerAttribution.interpolate(coarse, tuple(images.shape[-2:]), "bilinear")[:, 0].detach().float()
    finally:
        model.train(was_training)
    peak = heat.amax(dim=(1, 2), keepdim=True)
    return torch.where(peak > 0, heat / peak.clamp_min(torch.finfo(torch.float32).tiny), heat).cpu().numpy()
