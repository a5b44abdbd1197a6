"""Where a counter looked: Grad-CAM of the count it found most likely.

Method: Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017
(arXiv:1610.02391), as implemented by Captum.
"""

from typing import cast

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam
from torch import nn


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
