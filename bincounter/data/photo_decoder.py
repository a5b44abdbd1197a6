"""Decoder: photo bytes -> square RGB pixels. Also a program, to decode in a process of its own.

A model archive holds a copy of this file. It imports only Pillow: without torch a process starts quickly.
"""

import io
import os
import signal
import sys
import warnings
import zlib
from typing import NamedTuple

# Imported eagerly: Pillow's lazy import of plugins is not thread-safe, and fails without free file descriptors.
from PIL import (
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,  # noqa: F401  # reads EXIF
    UnidentifiedImageError,
    WebPImagePlugin,
)

from bincounter.data.photo_bounds import (
    JPEG,
    MAX_PIXELS,
    MAX_SIDE,
    PNG,
    CleanedPhoto,
    PhotoError,
    PhotoTooLargeError,
    cleaned,
)

# Pillow warns of cases that are handled here: large photos (rejected), invalid EXIF (ignored), palettes (converted).
warnings.filterwarnings("ignore", module=r"PIL\.")

PIXELS, REFUSED, FAILED = b"=", b"!", b"?"
"""First byte of a reply of the decoding process: pixels, message of a :class:`PhotoError`, or lack of resources."""

# Photo formats only: some other readers of Pillow start programs or have no limits.
_FORMATS = (
    JpegImagePlugin.JpegImageFile.format,
    PngImagePlugin.PngImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
)

# EXIF tag 0x0112 (orientation) -> the transposition that turns the photo upright.
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


class Header(NamedTuple):
    """Values of a photo's header.

    Attributes:
        width: in pixels as stored, before the EXIF orientation.
        height: likewise.
        scans: number of scans of a JPEG, each a pass over all pixels; 1 for other formats.
        is_jpeg: True for JPEG, which decodes several times faster than the other formats.
    """

    width: int
    height: int
    scans: int
    is_jpeg: bool


def read_header(data: bytes) -> Header:
    """Read the header of a photo, and check all limits that need no decoding.

    Raises:
        PhotoError: the header is invalid, or a limit is exceeded.
        MemoryError: there is too little memory.
    """
    photo = cleaned(data)
    with _opened(photo) as opened:
        return Header(*opened.size, photo.scans, photo.scan is not None)


def decode_square(data: bytes, size: int) -> bytes:
    """Decode a photo; see :func:`bincounter.data.preprocessing.decode`.

    Args:
        data: the content of the file.
        size: side of the square, in pixels.

    Returns:
        ``uint8[3, size, size]``, row by row.

    Raises:
        PhotoError: the bytes cannot be decoded, on any machine.
        MemoryError: there is too little memory.
        OSError: a system call failed, for example because no file descriptor was free.
    """
    whole = cleaned(data)
    with _opened(whole) as photo:
        pixels, stored = photo.width * photo.height, photo.size
        try:
            photo.draft(None, (size, size))
            photo.load()
            if whole.scans > 1 and _ends_early(whole, photo if photo.size == stored else None):
                raise PhotoError("truncated")
            square = rgb(photo).resize((size, size), Image.Resampling.BILINEAR)
            turn = _UPRIGHT.get(_orientation(photo))
        except Exception as error:  # Pillow raises many types for invalid bytes: OSError, SyntaxError, ...
            raise pillow_verdict(error, pixels) from error
    if turn is not None:
        square = square.transpose(turn)
    return b"".join(band.tobytes() for band in square.split())


def _opened(photo: CleanedPhoto) -> Image.Image:
    """Read the header, without allocating memory for pixels."""
    try:
        opened = Image.open(io.BytesIO(photo.data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large() from error
    except UnidentifiedImageError as error:
        known = photo.data.startswith((JPEG, PNG)) or photo.data[8:12] == b"WEBP"
        raise PhotoError("damaged header" if known else "not a JPEG, PNG or WebP image") from error
    except Exception as error:  # as in decode_square
        pixels = _webp_pixels(photo.data) if photo.data[8:12] == b"WEBP" else 0  # Pillow has allocated them already
        if pixels > MAX_PIXELS:
            raise _too_large() from error
        raise pillow_verdict(error, pixels, "damaged header") from error
    if opened.width * opened.height > MAX_PIXELS:
        raise _too_large()
    if max(opened.size) > MAX_SIDE:
        raise PhotoTooLargeError(f"longer than {MAX_SIDE:,} pixels on one side")
    return opened


def _webp_pixels(data: bytes) -> int:
    """Read the number of pixels of a WebP from its first chunk (RFC 9649); 0 if it is invalid."""
    match data[12:16]:
        case b"VP8X":
            width, height = (1 + int.from_bytes(data[place : place + 3], "little") for place in (24, 27))
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            width, height = (int.from_bytes(data[place : place + 2], "little") & 0x3FFF for place in (26, 28))
        case _:
            return 0
    return width * height


def pillow_verdict(error: Exception, pixels: int, reason: str = "") -> PhotoError:
    """Translate an exception of Pillow to a :class:`PhotoError`.

    Args:
        error: the exception.
        pixels: number of pixels of the photo.
        reason: message; the default is derived from the exception.

    Raises:
        MemoryError: the cause was too little memory, which Pillow's JPEG decoder reports as invalid data.
        OSError: the cause was another failure of the system.
    """
    if isinstance(error, PhotoError):
        return error
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        raise error
    words = str(error).lower()
    if "memory" in words:
        raise MemoryError(words) from error
    bytes(8 * pixels)  # touches no page; raises MemoryError if so much memory cannot be allocated
    return PhotoError(reason or ("truncated" if "truncated" in words else "damaged"))


def _ends_early(whole: CleanedPhoto, decoded: Image.Image | None) -> bool:
    """Check whether a JPEG of several scans has too few bits; its decoder fills in pixels without an error.

    Its pixels change if bits are appended to its scans. They are compared in full size, whatever size is wanted: a
    photo is truncated, or it is not.

    Args:
        whole: the photo.
        decoded: its pixels, if they are there in full size.
    """
    return _checksum(decoded or _read(whole.data)) != _checksum(_read(whole.with_more_bits()))


def _read(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def _checksum(photo: Image.Image) -> int:
    checksum = 0
    for top in range(0, photo.height, _STRIP):
        strip = photo.crop((0, top, photo.width, min(top + _STRIP, photo.height)))
        checksum = zlib.crc32(strip.tobytes(), checksum)
    return checksum


def _too_large() -> PhotoTooLargeError:
    return PhotoTooLargeError(f"larger than {MAX_PIXELS // 1_000_000} megapixels")


def rgb(photo: Image.Image) -> Image.Image:
    """Convert any colour mode to RGB, with transparent parts on white."""
    if photo.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion clips at 255
        return photo.convert("I").point(_HIGH_BYTES, "L").convert("RGB")
    if not photo.has_transparency_data:
        return photo if photo.mode == "RGB" else photo.convert("RGB")
    whole = Image.new("RGB", photo.size)  # in strips: copies of a whole large photo would take gigabytes
    for top in range(0, photo.height, _STRIP):
        strip = photo.crop((0, top, photo.width, min(top + _STRIP, photo.height))).convert("RGBA")
        whole.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
    return whole


def _orientation(photo: Image.Image) -> int:
    """Read the EXIF orientation, 1 to 8; 1 if the EXIF block is invalid."""
    try:
        return int(photo.getexif().get(_ORIENTATION_TAG, 1))
    except Exception as error:
        pillow_verdict(error, 0)
        return 1


def main() -> None:
    """Decode photos from stdin to stdout, until end of input: ``python photo_decoder.py SIZE SECONDS``.

    A request is the length of a photo (8 bytes, big-endian) and its bytes. A reply is :data:`PIXELS`, :data:`REFUSED`
    or :data:`FAILED`, a length, and the pixels or a message. SIGPROF ends the process if a photo takes more than
    SECONDS of CPU time.
    """
    size, seconds = int(sys.argv[1]), float(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    os.nice(10)
    photos, answers = sys.stdin.buffer, sys.stdout.buffer
    while head := photos.read(8):
        data = photos.read(int.from_bytes(head))
        signal.setitimer(signal.ITIMER_PROF, seconds)
        kind, answer = _answer(data, size)
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(kind + len(answer).to_bytes(8) + answer)
        answers.flush()


def _answer(data: bytes, size: int) -> tuple[bytes, bytes]:
    try:
        return PIXELS, decode_square(data, size)
    except PhotoError as error:
        return REFUSED, str(error).encode()
    except (MemoryError, OSError) as error:
        return FAILED, str(error).encode()


if __name__ == "__main__":
    main()
