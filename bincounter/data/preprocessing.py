"""Photo bytes -> the pixels a model sees: one module for training and for serving, so that both see the same.

A model archive carries a copy of this file. That is why it imports torch and Pillow only (the serving image has these
and torchvision), and nothing of bincounter.
"""

import io
import re
import warnings
from contextlib import suppress

import torch

# Imported by name: Pillow loads its plugins lazily, which two threads may do at once, and WebP only as a last resort.
from PIL import Image, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError, WebPImagePlugin

# Pillow warns of what is settled here: large photos are refused, broken EXIF is ignored, odd palettes are converted.
warnings.filterwarnings("ignore", module=r"PIL\.")

MAX_PIXELS = 100_000_000
"""Width times height of the largest photo that is decoded; beyond it a few bytes could ask for gigabytes."""

MAX_SCANS = 100
"""Passes that a JPEG may be stored in; encoders write about ten, and each one walks over all pixels again."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The photo formats and nothing else: some of Pillow's other readers start programs or have no bounds.
_FORMATS = (
    JpegImagePlugin.JpegImageFile.format,
    PngImagePlugin.PngImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
)
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")

# EXIF tag 0x0112 says how the camera was held: the transposition that sets the photo upright.
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HIGH_BYTES = [value >> 8 for value in range(1 << 16)]
_STRIP = 256  # rows

_SCAN, _END = b"\xda", b"\xd9"
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # of those that a length follows, and the end


class PhotoError(ValueError):
    """Bytes that are no readable photo; the message is the reason, as a short clause such as ``truncated``."""


class PhotoTooLargeError(PhotoError):
    """A photo of more than :data:`MAX_PIXELS`."""


def decode(data: bytes, size: int) -> torch.Tensor:
    """Read a photo of any shape, colour mode and orientation as a square of RGB pixels.

    JPEG, PNG and WebP are read, by content whatever the name; of an animation the first frame. The photo is set
    upright as its EXIF orientation says, transparent parts are shown on white, 16-bit greys keep their high byte,
    and CMYK is read as Adobe writes it (inverted). The aspect ratio is not kept: the whole photo is stretched to the
    square, with antialiased bilinear filtering, after the JPEG decoder's own reduction (by 2, 4 or 8) where the photo
    is that much larger. The pixels depend on the bytes and the size alone, in any thread.

    Args:
        data: the content of the file.
        size: side of the square, in pixels.

    Returns:
        ``uint8[3, size, size]``, contiguous.

    Raises:
        PhotoError: with the reason, whatever is wrong with the bytes.
    """
    try:
        with _opened(data) as photo:
            photo.draft(None, (size, size))
            photo.load()
            square = _rgb(photo).resize((size, size), Image.Resampling.BILINEAR)
            turn = _UPRIGHT.get(_orientation(photo))
    except PhotoError:
        raise
    except Exception as error:  # Pillow's readers let through whatever broken bytes cause: OSError, SyntaxError, ...
        raise PhotoError("truncated" if "truncated" in str(error).lower() else "damaged") from error
    if turn is not None:
        square = square.transpose(turn)
    # By band: torch's own permutation would wake its thread pool for every photo, 20 times slower here.
    planes = b"".join(band.tobytes() for band in square.split())
    return torch.frombuffer(bytearray(planes), dtype=torch.uint8).view(3, size, size)


def photo_size(data: bytes) -> tuple[int, int]:
    """Read the width and height of a photo, in pixels as stored (before its EXIF orientation), from its header alone.

    Raises:
        PhotoError: where :func:`decode` would refuse the header.
    """
    with _opened(data) as photo:
        return photo.size


class Normalize(torch.nn.Module):
    """Scale pixels to what ImageNet weights were trained on: ``(x / 255 - mean) / std``, per channel.

    It holds no weights and nothing in a checkpoint; move it to a device to use it there.
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


def _opened(data: bytes) -> Image.Image:
    """Read the header; no memory is taken for pixels yet."""
    if not data:
        raise PhotoError("empty file")
    try:
        photo = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large() from error
    except UnidentifiedImageError as error:
        known = data.startswith(_SIGNATURES) or data[8:12] == b"WEBP"
        raise PhotoError("damaged header" if known else "not a JPEG, PNG or WebP image") from error
    except Exception as error:  # as in decode
        raise PhotoError("damaged header") from error
    if photo.width * photo.height > MAX_PIXELS:
        raise _too_large()
    if photo.format == JpegImagePlugin.JpegImageFile.format and _has_too_many_scans(data):
        raise PhotoError(f"stored in more than {MAX_SCANS} scans")
    return photo


def _has_too_many_scans(data: bytes) -> bool:
    if data.count(b"\xff" + _SCAN) <= MAX_SCANS:  # as good as always; more may lie in metadata or behind the photo
        return False
    scans, place = 0, 0
    while scans <= MAX_SCANS and (marker := _MARKER.search(data, place)) and marker[1] != _END:
        scans += marker[1] == _SCAN
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return scans > MAX_SCANS


def _too_large() -> PhotoTooLargeError:
    return PhotoTooLargeError(f"larger than {MAX_PIXELS // 1_000_000} megapixels")


def _rgb(photo: Image.Image) -> Image.Image:
    """Convert any colour mode of the readers above to RGB, with transparent parts on white."""
    if photo.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion clips at 255
        return photo.convert("I").point(_HIGH_BYTES, "L").convert("RGB")
    if not photo.has_transparency_data:
        return photo if photo.mode == "RGB" else photo.convert("RGB")
    whole = Image.new("RGB", photo.size)  # in strips: all copies of a large photo would take gigabytes
    for top in range(0, photo.height, _STRIP):
        strip = photo.crop((0, top, photo.width, min(top + _STRIP, photo.height))).convert("RGBA")
        whole.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
    return whole


def _orientation(photo: Image.Image) -> int:
    """Read the EXIF orientation, 1 to 8; a broken EXIF block says nothing against the pixels, so it counts as 1."""
    with suppress(Exception):
        return int(photo.getexif().get(_ORIENTATION_TAG, 1))
    return 1
