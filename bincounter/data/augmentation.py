"""Progressive resizing, augmentation and mixing of training batches, on the device of the batch.

Random numbers are drawn from (seed, epoch, photo id), those of mixing from (seed, epoch, step): the augmentation of a
photo does not depend on the process, the batch size or a resume.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# Numbers drawn per photo: flip, shift x and y, scale, rotation, brightness, contrast, saturation.
_DRAWS = 8


def draws(seed: int, epoch: int, ids: Sequence[str]) -> Tensor:
    """Uniform numbers in [0, 1) for each photo, ``float32[B, 8]``, a pure function of the arguments."""
    rows = np.empty((len(ids), _DRAWS), dtype=np.uint64)
    for row, id_ in zip(rows, ids, strict=True):
        digest = hashlib.blake2b(f"{seed}/{epoch}/{id_}".encode(), digest_size=8 * _DRAWS).digest()
        row[:] = np.frombuffer(digest, dtype="<u8")
    return torch.from_numpy((rows >> np.uint64(40)).astype(np.float32) / np.float32(2**24))


class Augmentation:
    """Flip, shift, scale, rotate and recolour each photo of a batch.

    Geometry is a single affine resampling (bilinear, border repeated), since every resampling blurs.

    Args:
        flip: mirror left and right with probability one half.
        shift: largest shift, as a fraction of the side.
        scale: zoom by a factor between ``1 - scale`` and ``1 + scale``.
        rotation: degrees, either way.
        brightness: factor between ``1 - b`` and ``1 + b``; likewise contrast and saturation.
        contrast: see brightness.
        saturation: see brightness.
        seed: of all draws.
    """

    def __init__(
        self,
        *,
        flip: bool = False,
        shift: float = 0.0,
        scale: float = 0.0,
        rotation: float = 0.0,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._flip, self._shift, self._scale, self._rotation = flip, shift, scale, rotation
        self._colour = (brightness, contrast, saturation)
        self._seed = seed

    def __call__(self, image: Tensor, ids: Sequence[str], epoch: int) -> Tensor:
        """Augment ``float32[B, 3, S, S]`` in 0..255; returns the same shape and range."""
        # Drawn on the CPU, so that the numbers are the same for every device.
        uniform = draws(self._seed, epoch, ids)
        if self._flip or self._shift or self._scale or self._rotation:
            grid = _grid(self._geometry(uniform).to(image.device), image.shape[-1])
            image = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
        if any(self._colour):
            image = self._recolour(image, uniform[:, 5:8].to(image.device))
        return image

    def _geometry(self, uniform: Tensor) -> Tensor:
        """Affine matrices from output to input coordinates, ``float32[B, 2, 3]``."""
        signed = 2 * uniform - 1
        mirror = torch.where(uniform[:, 0] < 0.5, -1.0, 1.0) if self._flip else torch.ones(len(uniform))
        angle = signed[:, 4] * math.radians(self._rotation)
        zoom = 1 / (1 + signed[:, 3] * self._scale)
        cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
        # Coordinates run from -1 to 1, so a whole side is 2.
        move_x, move_y = signed[:, 1] * 2 * self._shift, signed[:, 2] * 2 * self._shift
        rows = [torch.stack([cos * mirror, -sin, move_x], dim=1), torch.stack([sin * mirror, cos, move_y], dim=1)]
        return torch.stack(rows, dim=1)

    def _recolour(self, image: Tensor, uniform: Tensor) -> Tensor:
        """Brightness, then saturation, then contrast: one linear map per photo, in two passes over its pixels."""
        strength = torch.tensor(self._colour, device=image.device)
        brightness, contrast, saturation = (1 + (2 * uniform - 1) * strength).T[:, :, None, None, None]
        red, green, blue = image.split(1, dim=1)
        grey = (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)  # ITU-R BT.601
        mean = grey.mean(dim=(2, 3), keepdim=True)
        both = brightness * contrast
        offset = grey.mul_(both * (1 - saturation)).add_(brightness * (1 - contrast) * mean)
        return torch.addcmul(offset, image, both * saturation).clamp_(0, 255)


def _grid(matrices: Tensor, side: int) -> Tensor:
    """``F.affine_grid`` of square photos, for ``align_corners=False``; a quarter of its time on a CPU.

    Args:
        matrices: ``float32[B, 2, 3]``.
        side: in pixels.

    Returns:
        Input coordinates of each output pixel, ``float32[B, S, S, 2]``.
    """
    centre = (torch.arange(side, device=matrices.device, dtype=matrices.dtype) * 2 + 1) / side - 1
    of_x, of_y, constant = matrices[:, None, None].unbind(-1)  # [B, 1, 1, 2] each
    return torch.addcmul(of_y * centre[:, None, None] + constant, of_x, centre[:, None])


class ProgressiveResizing:
    """Shrink training photos in the first epochs of a fit.

    The time of a step is about proportional to the area of its photos, and coarse features are learned as well from
    small ones: as in Howard et al.'s entries to DAWNBench,
    https://www.fast.ai/posts/2018-08-10-fastai-diu-imagenet.html. The side grows by 32 pixels at a time, by which most
    networks divide it: a ResNet18 takes three quarters as long for 72 pixels as for 96, and half as long for 64.

    Args:
        start_size: pixels, both sides, in the first epoch; ``None`` is off.
        until: share of the epochs after which photos keep their size.
    """

    def __init__(self, *, start_size: int | None = None, until: float = 0.75) -> None:
        self._start, self._until = start_size, until

    def size(self, full: int, epoch: int, epochs: int) -> int:
        """Side in pixels of the training photos in an epoch, counted from 0; ``full`` is that of whole photos."""
        growing = self._until * epochs
        if self._start is None or epoch >= growing:
            return full
        return min(self._start + 32 * round((full - self._start) * epoch / growing / 32), full)

    def __call__(self, image: Tensor, epoch: int, epochs: int) -> Tensor:
        """Shrink ``float32[B, 3, S, S]``, with the low-pass filter that keeps edges from aliasing."""
        size = self.size(image.shape[-1], epoch, epochs)
        return image if size == image.shape[-1] else F.interpolate(image, (size, size), mode="bilinear", antialias=True)


class Mixing:
    """Mixup or CutMix: mix each photo, and its label, with another of its batch.

    Mixup: Zhang et al., ICLR 2018, https://arxiv.org/abs/1710.09412. CutMix: Yun et al., ICCV 2019,
    https://arxiv.org/abs/1905.04899. If both are on, one is drawn for each batch.

    Args:
        mixup: alpha of the Beta distribution of the share; 0 is off.
        cutmix: the same for CutMix.
        seed: of all draws.
    """

    def __init__(self, *, mixup: float, cutmix: float, seed: int) -> None:
        self._alphas = {"mixup": mixup, "cutmix": cutmix}
        self._seed = seed

    def __bool__(self) -> bool:
        """True if either is on."""
        return any(self._alphas.values())

    def __call__(self, image: Tensor, target: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Mix ``float[B, 3, S, S]`` and ``float[B, K]``; the partner of a photo is drawn from (seed, epoch, step)."""
        generator = np.random.Generator(np.random.PCG64([self._seed, epoch, step]))
        ways = [way for way, alpha in self._alphas.items() if alpha]
        way = ways[generator.integers(len(ways))]
        share = float(generator.beta(self._alphas[way], self._alphas[way]))
        partner = torch.from_numpy(generator.permutation(len(image))).to(image.device)
        if way == "mixup":
            mixed = share * image + (1 - share) * image[partner]
        else:
            mixed, share = _paste(image, image[partner], share, generator)
        return mixed, share * target + (1 - share) * target[partner]


def _paste(image: Tensor, other: Tensor, share: float, generator: np.random.Generator) -> tuple[Tensor, float]:
    """Paste a box of ``other`` into ``image``; returns the result and the remaining area share of ``image``."""
    height, width = image.shape[-2:]
    cut = math.sqrt(1 - share)
    middle_y, middle_x = generator.integers(height), generator.integers(width)
    top, bottom = (int(np.clip(middle_y + side * height * cut / 2, 0, height)) for side in (-1, 1))
    left, right = (int(np.clip(middle_x + side * width * cut / 2, 0, width)) for side in (-1, 1))
    mixed = image.clone()
    mixed[..., top:bottom, left:right] = other[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
