"""Photo bytes -> pixels, shared by training and serving.

A model archive holds a copy of this file and of the two that decode. They import only torch and Pillow, which the
serving image has, and nothing else of bincounter.
"""

import torch

from bincounter.data.photo_decoder import decode_square, read_header

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def decode(data: bytes, size: int) -> torch.Tensor:
    """Decode a photo of any shape, colour mode and orientation to a square of RGB pixels.

    JPEG, PNG and WebP are recognised by content; an animation is represented by its first frame. The EXIF
    orientation is applied, transparent parts are composited on white, 16-bit greyscale keeps its high byte, and CMYK
    is read as inverted (Adobe's convention). The aspect ratio is not kept: the photo is resized to the square by
    antialiased bilinear interpolation, after the JPEG decoder's own downscaling (by 2, 4 or 8) of large photos. The
    pixels depend only on the bytes and the size, in any thread.

    Args:
        data: the content of the file.
        size: side of the square, in pixels.

    Returns:
        ``uint8[3, size, size]``, contiguous.

    Raises:
        PhotoError: the bytes cannot be decoded.
        MemoryError: there is too little memory; the photo may be valid.
        OSError: a system call failed, for example because no file descriptor was free; the photo may be valid.
    """
    return as_tensor(decode_square(data, size), size)


def as_tensor(square: bytes, size: int) -> torch.Tensor:
    """Pixels of :func:`bincounter.data.photo_decoder.decode_square` as ``uint8[3, size, size]``."""
    # Planar already: a permutation by torch would start its thread pool for every photo, 20 times slower.
    return torch.frombuffer(bytearray(square), dtype=torch.uint8).view(3, size, size)


def photo_size(data: bytes) -> tuple[int, int]:
    """Read the width and height of a photo, in pixels as stored (before its EXIF orientation), from its header alone.

    Raises:
        PhotoError: the header is invalid, or a limit is exceeded.
    """
    header = read_header(data)
    return header.width, header.height


class Normalize(torch.nn.Module):
    """Normalise pixels as for ImageNet weights: ``(x / 255 - mean) / std``, per channel.

    It has no parameters and no state in a checkpoint; move it to the device of its input.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise ``uint8`` or floating ``[B, 3, S, S]`` with values 0 to 255; returns ``float32[B, 3, S, S]``."""
        return (images.to(torch.float32) - self.mean) / self.std
