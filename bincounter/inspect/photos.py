"""Photos for a page: bounded JPEG data URIs, and overlays of where a model looked."""

import base64
import io

import numpy as np
from PIL import Image, ImageOps

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
