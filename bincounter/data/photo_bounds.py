"""Bounds on photos by their bytes: segments, scans and chunks, and metadata that decides no pixel is dropped.

Pillow reads padding byte by byte, reads all metadata, and makes up the pixels that a JPEG lacks; here these are found
by searches in C, before it sees them. A model archive holds a copy of this file, which imports the standard library.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

MAX_PIXELS = 100_000_000
"""Width times height of the largest photo that is decoded; above it a few bytes could demand gigabytes of memory."""

MAX_SIDE = 65_535
"""Largest width or height in pixels, that of JPEG; Pillow keeps an address for each row."""

MAX_SCANS = 100
"""Most scans of a JPEG; encoders write about ten, and each one costs a pass over all pixels."""

MAX_SEGMENTS = 2_000
"""Most segments of a JPEG before its pixels, and between its scans; cameras write a few dozen."""

MAX_CHUNKS = 10_000
"""Most chunks of a PNG, beside one for every kilobyte; encoders write one for every 8 kB, or for every row."""

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
"""First bytes of these formats."""

_MARKER = re.compile(rb"\xff([^\x00\xff])")
_NEXT = re.compile(rb"(?<!\xff)\xff++([^\x00\x01\xd0-\xd7])")  # after coded bits, with the padding in front of it
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_SCAN, _END, _PROGRESSIVE = 0xDA, 0xD9, 0xC2
_SCAN_BYTES = bytes([0xFF, _SCAN])
_MOST_PADDING = 1 << 16  # bytes between the segments
_METADATA = {*range(0xE0, 0xF0), 0xFE}
# Colour space and orientation; the beginnings by their marker.
_KEPT_SEGMENTS = {0xE0: (b"JFIF",), 0xE1: (b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0"), 0xEE: (b"Adobe",)}
_MOST_ALIKE = 64  # of them; Pillow copies the EXIF once for each
_FRAMES = {0xC0: 2, 0xC1: 2, _PROGRESSIVE: 1}  # Huffman-coded frames -> bits that each of their blocks takes at least
# Bits with many beginnings, since the likeliest ones change no pixel, and restarts, at which decoders wait for one.
_FILLERS = [bytes((37 * place + 29 * number + 155) % 255 for place in range(32)) for number in range(9)]
_MORE_BITS = _FILLERS[8] + b"".join(bytes([0xFF, 0xD0 + number]) + _FILLERS[number] for number in range(8))

_KEPT_CHUNKS = (b"tRNS", b"eXIf")  # of those that are not critical
_ORIENTATION_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # where Pillow looks for one
_MOST_EXTRAS, _MOST_TEXT = 16, 1 << 20  # their number, and bytes of a text; Pillow refuses longer ones


class PhotoError(ValueError):
    """Bytes that cannot be decoded as a photo; the message is a short clause such as ``truncated``."""


class PhotoTooLargeError(PhotoError):
    """A photo of more than :data:`MAX_PIXELS` or :data:`MAX_SIDE`."""


@dataclass(frozen=True, slots=True)
class CleanedPhoto:
    """A photo without padding and metadata that decide no pixel.

    Attributes:
        data: its bytes.
        scan: place of a JPEG's first scan in them; ``None`` for other formats.
        scans: number of a JPEG's scans, or a few more; 1 for other formats.
    """

    data: bytes
    scan: int | None = None
    scans: int = 1

    def with_more_bits(self) -> bytes:
        """A JPEG with further bits behind those of each scan, which a decoder skips where it has all it needs.

        Raises:
            PhotoError: it has too many segments.
        """
        parts, place, in_scan = [], 0, True
        for end, code in self._markers():
            if in_scan:
                parts += [self.data[place:end], _MORE_BITS]
                place = end
            in_scan = code == _SCAN
        return b"".join([*parts, self.data[place:]])

    def has_too_many_scans(self) -> bool:
        """Return whether a JPEG has more than :data:`MAX_SCANS`."""
        # Counted in C at first, which also finds what is behind the photo.
        return self.scans > MAX_SCANS and sum(code == _SCAN for _, code in self._markers()) >= MAX_SCANS

    def _markers(self) -> Iterator[tuple[int, int]]:
        """Yield place and code of the markers from the first scan's end to the photo's, but for restarts."""
        assert self.scan is not None
        view = memoryview(self.data)
        place = self.scan + 2 + _length(self.data, self.scan + 2)
        for _ in range(MAX_SEGMENTS):
            marker = _NEXT.search(view[place:])  # a segment may end with the byte that markers begin with
            if marker is None:
                return
            yield place + marker.start(), marker[1][0]
            if marker[1][0] == _END:
                return
            place += marker.end()
            place += _length(self.data, place)
        raise _too_many_segments()


def cleaned(data: bytes) -> CleanedPhoto:
    """Drop what decides no pixel, and check the bounds that need no decoding.

    Raises:
        PhotoError: the header is invalid, a bound is exceeded, or a JPEG has fewer bits than its pixels take at least.
    """
    if not data:
        raise PhotoError("empty file")
    if data.startswith(JPEG):
        return _cleaned_jpeg(data)
    return CleanedPhoto(_cleaned_png(data)) if data.startswith(PNG) else CleanedPhoto(data)


def _cleaned_jpeg(data: bytes) -> CleanedPhoto:
    parts, place = [JPEG[:2]], 2
    left, padding = dict.fromkeys(_KEPT_SEGMENTS, _MOST_ALIKE), _MOST_PADDING
    components, least_bits = b"", 0
    for _ in range(MAX_SEGMENTS):
        marker = _MARKER.search(data, place, place + padding)
        if marker is None or marker[1][0] == _END:
            raise PhotoError("damaged header")
        padding -= marker.start() - place
        code, place = marker[1][0], marker.end()
        if code in _ALONE:
            continue
        body, place = place + 2, place + max(2, _length(data, place))
        if code == _SCAN:
            if 8 * (len(data) - place) < least_bits:
                raise PhotoError("truncated")
            # A frame that is not progressive ends with a scan of all components.
            scans = 1 if data[body : body + 1] == components else data.count(_SCAN_BYTES, marker.start())
            photo = CleanedPhoto(b"".join([*parts, data[marker.start() :]]), sum(map(len, parts)), scans)
            if photo.has_too_many_scans():
                raise PhotoError(f"stored in more than {MAX_SCANS} scans")
            return photo
        if code in _FRAMES:
            least_bits = _FRAMES[code] * _blocks(data[body:place])
            components = data[body + 5 : body + 6] if code != _PROGRESSIVE else b""
        if code in _METADATA:
            if not (left.get(code) and data.startswith(_KEPT_SEGMENTS[code], body)):
                continue
            left[code] -= 1
        parts.append(data[marker.start() : place])
    raise _too_many_segments()


def _length(data: bytes, place: int) -> int:
    return int.from_bytes(data[place : place + 2])


def _blocks(frame: bytes) -> int:
    """Number of 8x8 blocks of a frame, without those that pad it to whole MCUs; 0 if its header is broken."""
    try:
        _, height, width, number = struct.unpack_from(">BHHB", frame)
        factors = [(frame[7 + 3 * each] >> 4, frame[7 + 3 * each] & 15) for each in range(number)]
        widest, highest = (8 * max(column) for column in zip(*factors, strict=True))
        return sum(-(-width * across // widest) * -(-height * down // highest) for across, down in factors)
    except (struct.error, IndexError, ValueError, ZeroDivisionError):
        return 0


def _too_many_segments() -> PhotoError:
    return PhotoError(f"stored in more than {MAX_SEGMENTS:,} segments")


def _cleaned_png(data: bytes) -> bytes:
    parts: list[bytes] = []
    start, place, extras = 0, len(PNG), 0
    for _ in range(MAX_CHUNKS + len(data) // 1000):
        if place + 8 > len(data):
            return b"".join([*parts, data[start:]])
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if kind == b"IEND":
            return b"".join([*parts, data[start:end]])
        if kind[0] & 0x20:  # in lower case: not critical
            is_text = data.startswith(_ORIENTATION_TEXTS, place + 8)
            wanted = kind in _KEPT_CHUNKS or is_text
            extras += wanted
            if not wanted or extras > _MOST_EXTRAS or (is_text and not _is_readable(kind, data[place + 8 : end - 4])):
                parts.append(data[start:place])
                start = end
        place = end
    raise PhotoError("stored in too many chunks")


def _is_readable(kind: bytes, text: bytes) -> bool:
    """Return whether a text chunk unpacks to no more than Pillow reads."""
    content = text.partition(b"\0")[2]
    packed = content[1:] if kind == b"zTXt" else b""
    if kind == b"iTXt" and content[:1] == b"\1":  # compressed: flag, method, language, translated keyword
        packed = content[2:].split(b"\0", 2)[-1]
    unpacker = zlib.decompressobj()
    with suppress(zlib.error):
        unpacker.decompress(packed, _MOST_TEXT)
    return len(text) <= _MOST_TEXT and not unpacker.unconsumed_tail
