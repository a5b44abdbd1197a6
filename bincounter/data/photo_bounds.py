"""Checks of photo bytes before Pillow reads them: limits on segments, scans and chunks; unused metadata is removed.

Pillow reads padding byte by byte, reads all metadata, and fills in missing pixels of a JPEG without an error. This
module finds such photos by searches in C. A model archive holds a copy of this file; it imports only the standard
library.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

MAX_PIXELS = 100_000_000
"""Maximum width times height of a photo; beyond it, a few bytes could demand gigabytes of memory."""

MAX_SIDE = 65_535
"""Maximum width or height in pixels, as in JPEG; Pillow keeps a pointer to each row."""

MAX_SCANS = 100
"""Maximum number of scans of a JPEG; encoders write about ten, and each one costs a pass over all pixels."""

MAX_SEGMENTS = 2_000
"""Maximum number of segments of a JPEG before its first scan, and after it; cameras write a few dozen."""

MAX_CHUNKS = 10_000
"""Maximum number of chunks of a PNG, plus one per kilobyte; encoders write one per 8 kB, or one per row."""

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
"""Magic numbers of the formats."""

_MARKER = re.compile(rb"\xff([^\x00\xff])")
_NEXT = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")  # after entropy-coded data and padding of 0xFF
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_SCAN, _END, _PROGRESSIVE = 0xDA, 0xD9, 0xC2
_SCAN_BYTES = bytes([0xFF, _SCAN])
_MOST_PADDING = 1 << 16  # bytes between segments
_METADATA = {*range(0xE0, 0xF0), 0xFE}
# Metadata that changes pixels (colour space, orientation): marker -> prefixes of its content.
_KEPT_SEGMENTS = {0xE0: (b"JFIF",), 0xE1: (b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0"), 0xEE: (b"Adobe",)}
_MOST_ALIKE = 64  # kept segments per marker; Pillow copies the EXIF block once for each
_FRAMES = {0xC0: 2, 0xC1: 2, _PROGRESSIVE: 1}  # Huffman-coded frames -> minimum bits per block
# Various bit patterns, since the most likely ones change no pixel, and restart markers, for decoders that wait for one.
_FILLERS = [bytes((37 * place + 29 * number + 155) % 255 for place in range(32)) for number in range(9)]
# Twice the bytes that decoders read ahead, of no Huffman code, so that they do for less than four blocks.
_LAST_BITS = b"\xff\x00" * 16
_MORE_BITS = _FILLERS[8] + b"".join(bytes([0xFF, 0xD0 + number]) + _FILLERS[number] for number in range(8))

_KEPT_CHUNKS = (b"tRNS", b"eXIf")  # ancillary chunks that change pixels
_ORIENTATION_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # text chunks in which Pillow looks for one
_MOST_EXTRAS, _MOST_TEXT = 16, 1 << 20  # kept ancillary chunks; bytes of a text, as in Pillow


class PhotoError(ValueError):
    """Bytes that cannot be decoded as a photo; the message is a short clause such as ``truncated``."""


class PhotoTooLargeError(PhotoError):
    """A photo of more than :data:`MAX_PIXELS` or :data:`MAX_SIDE`."""


@dataclass(frozen=True, slots=True)
class CleanedPhoto:
    """A photo without padding and without metadata that changes no pixel.

    Attributes:
        data: bytes of the photo. The end marker of a JPEG of one scan is replaced by a few bits: a decoder that needs
            more reports that the data ends, where it would fill in pixels in front of a marker.
        scan: offset of the first scan of a JPEG; ``None`` for other formats.
        scans: upper bound on the number of scans of a JPEG, above 1 unless it has only one; 1 for other formats.
    """

    data: bytes
    scan: int | None = None
    scans: int = 1

    def with_more_bits(self) -> bytes:
        """Append bits to each scan of a JPEG; a decoder ignores them if the scan is complete.

        Raises:
            PhotoError: the JPEG has too many segments.
        """
        parts, place, in_scan = [], 0, True
        for end, code in self._markers():
            if in_scan:
                parts += [self.data[place:end].rstrip(b"\xff"), _MORE_BITS]
                place = end
            in_scan = code == _SCAN
        return b"".join([*parts, self.data[place:]])

    def has_too_many_scans(self) -> bool:
        """Return True if a JPEG has more than :data:`MAX_SCANS`."""
        # `scans` is counted in C, and includes bytes after the end of the photo.
        return self.scans > MAX_SCANS and sum(code == _SCAN for _, code in self._markers()) >= MAX_SCANS

    def _markers(self) -> Iterator[tuple[int, int]]:
        """Yield offset and code of each marker after the first scan's data, except restart markers."""
        assert self.scan is not None
        place = self.scan + 2 + _length(self.data, self.scan + 2)
        for _ in range(MAX_SEGMENTS):
            marker = _NEXT.search(self.data, place)
            if marker is None:
                return
            yield marker.start(), marker[1][0]
            if marker[1][0] == _END:
                return
            place = marker.end() + _length(self.data, marker.end())
        raise _too_many_segments()


def cleaned(data: bytes) -> CleanedPhoto:
    """Remove padding and metadata that change no pixel, and check the limits that need no decoding.

    Raises:
        PhotoError: the header is invalid, a limit is exceeded, or a JPEG has too few bits for its number of blocks.
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
            # In a frame that is not progressive, a scan of all components is the only one.
            start, scans, coded = sum(map(len, parts)), 1, data[marker.start() :]
            if data[body : body + 1] != components:
                scans = max(2, data.count(_SCAN_BYTES, marker.start()))
            elif end := _NEXT.search(data, place):
                coded = data[marker.start() : end.start()].rstrip(b"\xff") + _LAST_BITS
            photo = CleanedPhoto(b"".join([*parts, coded]), start, scans)
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
    """Number of 8x8 blocks of a frame, without the padding to whole MCUs; 0 if the frame header is invalid."""
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
        if kind[0] & 0x20:  # lower case: ancillary chunk
            is_text = data.startswith(_ORIENTATION_TEXTS, place + 8)
            wanted = kind in _KEPT_CHUNKS or is_text
            extras += wanted
            if not wanted or extras > _MOST_EXTRAS or (is_text and not _is_readable(kind, data[place + 8 : end - 4])):
                parts.append(data[start:place])
                start = end
        place = end
    raise PhotoError("stored in too many chunks")


def _is_readable(kind: bytes, text: bytes) -> bool:
    """Check that a text chunk decompresses to no more bytes than Pillow accepts."""
    content = text.partition(b"\0")[2]
    packed = content[1:] if kind == b"zTXt" else b""
    if kind == b"iTXt" and content[:1] == b"\1":  # compressed: flag, method, language, translated keyword
        packed = content[2:].split(b"\0", 2)[-1]
    unpacker = zlib.decompressobj()
    with suppress(zlib.error):
        unpacker.decompress(packed, _MOST_TEXT)
    return len(text) <= _MOST_TEXT and not unpacker.unconsumed_tail
