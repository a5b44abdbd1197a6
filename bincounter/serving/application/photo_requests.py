"""Parser of requests: JSON, forms and photos, compressed or not; the recorded counts of their bins."""

import base64
import binascii
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bincounter.errors import closest_match
from bincounter.serving.application.answers import Limits, Problem, shorten

JSON, FORM = "application/json", "multipart/form-data"
GENERIC_TYPES = ("", "application/octet-stream", "binary/octet-stream")
"""Content types that boto3, SageMaker and S3 send by default; the body's first bytes decide."""

PHOTO_TYPES = ("image/jpeg", "image/jpg", "image/png", "image/webp", "application/x-image")
"""Content types of photos; the format is read from the content."""

EXPECTED = "X-Bincounter-Expected"
"""Header with the recorded count of the bin, for a body that is a photo."""

_ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"  # that SageMaker passes on; expected=3 among them is read, too
_COUNT = re.compile("[0-9]{1,6}")
_FORMS = 'send {"image": BASE64}, {"url": "https://..."} or {"instances": [...]} with a list of these'
_BROWSER_PREFIX = re.compile(r"data:[^,]{0,100};base64,")
_SPACES = b" \t\r\n"  # the base64 command wraps its lines
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_COMPRESSED = (b"\x1f\x8b", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")  # AWS's adapter drops the header
_MOST_MEMBERS = 100  # of a gzip stream; each costs a copy of those behind it
_AS_IT_IS = (b"binary", b"8bit", b"7bit")  # transfer encodings that change nothing
_PARTS_OF_PHOTO = 16  # brackets and commas that one photo may take in JSON; it needs two


@dataclass(frozen=True)
class Url:
    """A photo given by its URL."""

    text: str


@dataclass(frozen=True)
class Base64:
    """A photo in base64."""

    text: str

    def decoded(self) -> bytes:
        """The photo's bytes.

        Raises:
            Problem: 400, it is not base64.
        """
        prefix = _BROWSER_PREFIX.match(self.text)
        try:
            encoded = self.text[prefix.end() if prefix else 0 :].encode("ascii")
            return base64.b64decode(encoded.translate(None, _SPACES), validate=True)
        except (binascii.Error, UnicodeEncodeError) as error:
            raise Problem(400, '"image" is not base64; send the bytes of a photo, base64-encoded.') from error


Photo = bytes | Base64 | Url


@dataclass(frozen=True)
class PhotoRequest:
    """Photos of a request.

    Attributes:
        photos: in order, at least one.
        several: a list of answers is expected, even for one photo.
        kind: name of the list of photos in the request, for messages.
        expected: recorded count of the bin of each photo, ``None`` for those without; empty if none has one.
    """

    photos: Sequence[Photo]
    several: bool
    kind: str = "instances"
    expected: Sequence[int | None] = ()

    def where(self, number: int) -> str:
        """Prefix of a problem with a photo: ``instances[2]: ``, or an empty string."""
        return f"{self.kind}[{number}]: " if self.several else ""


def expected_of(headers: Mapping[str, str]) -> str | None:
    """Return the recorded count that headers hold as text, ``None`` if they hold none."""
    found = {name.lower(): value for name, value in headers.items()}
    if EXPECTED.lower() in found:
        return found[EXPECTED.lower()]
    attributes = (each.partition("=") for each in re.split(r"[,;\s]+", found.get(_ATTRIBUTES, "")))
    return next((value for name, equals, value in attributes if equals and name.lower() == "expected"), None)


def parse_request(body: bytes, content_type: str | None, limits: Limits, expected: str | None = None) -> PhotoRequest:
    """Parse a request.

    Args:
        body: of the request.
        content_type: its header; if it is missing or one of :data:`GENERIC_TYPES`, the body's first bytes decide.
        limits: of the archive.
        expected: from :func:`expected_of`.

    Raises:
        Problem: 400 malformed, 413 too large, 415 of an unknown type.
    """
    if len(body) > limits.max_body_bytes:
        raise too_large(limits)
    if not body:
        raise Problem(400, f"The body is empty; send the bytes of a photo, or in JSON {_FORMS.removeprefix('send ')}.")
    if body.startswith(_COMPRESSED):
        raise Problem(415, "The body is compressed, but without its Content-Encoding; send it as it is.")
    kind = (content_type or "").partition(";")[0].strip().lower()
    is_json = kind == JSON or (kind in GENERIC_TYPES and body[:64].lstrip()[:1] == b"{")
    if expected is not None and (is_json or kind == FORM):
        raise Problem(400, f'{EXPECTED} is for a body that is a photo; put "expected" beside "image" in JSON.')
    if is_json:
        return _asked(_parsed(body, limits), limits)
    if kind == FORM:
        return PhotoRequest(_files(body, content_type or "", limits), several=True, kind="files")
    if kind not in PHOTO_TYPES and kind not in GENERIC_TYPES:
        raise Problem(
            415,
            f"Content-Type {shorten(kind)!r} is not supported; send image/jpeg, image/png, image/webp, {JSON} or "
            f"{FORM}.",
        )
    return PhotoRequest([body], several=False, expected=() if expected is None else [_header_count(expected)])


def _header_count(text: str) -> int:
    if not _COUNT.fullmatch(text.strip()):
        raise Problem(400, f"The recorded count {shorten(text)!r} is not a whole number; send {EXPECTED}: 3.")
    return int(text)


def decompress(body: bytes, coding: str, limits: Limits) -> bytes:
    """Decompress a body, within the memory limit of a body.

    Args:
        body: of the request.
        coding: its Content-Encoding header: ``gzip`` or ``deflate``; ``identity`` or an empty string for none.
        limits: of the archive.

    Raises:
        Problem: 400 damaged, 413 too large once it is decompressed, 415 of another coding or of several.
    """
    coding = coding.strip().lower()
    if coding in ("", "identity"):
        return body
    if coding not in _WINDOWS:
        raise Problem(415, f"Content-Encoding {shorten(coding)!r} is not supported; send gzip, deflate or none.")
    # Some clients send deflate without zlib's header.
    bare = coding == "deflate" and (int.from_bytes(body[:1]) & 15 != 8 or int.from_bytes(body[:2]) % 31 != 0)
    content, left = bytearray(), body
    for _ in range(_MOST_MEMBERS):
        member = zlib.decompressobj(-zlib.MAX_WBITS if bare else _WINDOWS[coding])
        try:
            content += member.decompress(left, limits.max_body_bytes + 1 - len(content))
        except zlib.error as error:
            sentence = f"The body is not {coding} ({error}); compress it again, or send it as it is."
            raise Problem(400, sentence) from error
        if len(content) > limits.max_body_bytes:
            raise too_large(limits)
        left = member.unused_data
        if not left:
            break
    if left or not member.eof:
        raise Problem(400, f"The body is not one whole {coding} stream; compress it again, or send it as it is.")
    return bytes(content)


def too_large(limits: Limits) -> Problem:
    """Problem of a body with too many bytes."""
    return Problem(
        413,
        f"The body has more than {limits.max_body_bytes / 1e6:g} MB; send a smaller photo, or fewer in one request.",
    )


class _Files:
    """Callbacks of python-multipart that collect the files of a form, in order."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._header = limits, bytearray()
        self._value, self._disposition = bytearray(), b""
        self.files: list[bytearray] = []
        self.complete = False

    def on_part_begin(self) -> None:
        if len(self.files) == self._limits.max_instances:
            most = self._limits.max_instances
            raise Problem(413, f"The form has more than {most} parts; send at most {most} photos at a time.")
        self.files.append(bytearray())
        self._disposition = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        elif self._header.lower() == b"content-transfer-encoding" and self._value.lower() not in _AS_IT_IS:
            raise Problem(415, "A part of the form has a transfer encoding; send the bytes of its photo as they are.")
        self._header.clear()
        self._value.clear()

    def on_headers_finished(self) -> None:
        from python_multipart.multipart import parse_options_header

        if b"filename" not in parse_options_header(self._disposition)[1]:
            raise Problem(400, "A field of the form is not a file; send files alone, as with curl -F photo=@bin.jpg.")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.files[-1] += data[start:end]

    def on_end(self) -> None:
        self.complete = True


def _files(body: bytes, content_type: str, limits: Limits) -> list[bytes]:
    """Read the files of a form (RFC 7578), in no more memory than its body takes."""
    try:
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import MultipartParser, parse_options_header
    except ModuleNotFoundError:  # as in AWS's images
        raise Problem(415, f"Content-Type {FORM!r} is not supported here; send a photo by itself, or {JSON}.") from None
    found, problem = _Files(limits), Problem(400, "The form cannot be read; send it as curl -F photo=@bin.jpg does.")
    boundary = parse_options_header(content_type.encode("latin-1", "replace"))[1].get(b"boundary")
    if not boundary:
        raise problem
    callbacks: Any = {name: getattr(found, name) for name in dir(found) if name.startswith("on_")}
    try:
        MultipartParser(boundary, callbacks).write(body)
    except FormParserError as error:
        raise problem from error
    if not found.complete or not found.files:
        raise problem
    return [bytes(file) for file in found.files]


def _parsed(body: bytes, limits: Limits) -> Any:
    # Before parsing: a few bytes of JSON can take many times their size in memory.
    lists = body.count(b"[")
    if lists > _PARTS_OF_PHOTO:
        raise Problem(400, f"The JSON has {lists} lists, and one is enough; {_FORMS}.")
    if body.count(b"{") + body.count(b",") > _PARTS_OF_PHOTO * (limits.max_instances + 1):
        raise Problem(413, f"The JSON has more parts than {limits.max_instances} photos need; send fewer at a time.")
    try:
        return json.loads(body, object_pairs_hook=_unique)
    except RecursionError as error:
        raise Problem(400, f"The JSON is nested too deep; {_FORMS}.") from error
    except UnicodeDecodeError as error:
        raise Problem(400, "The JSON is not in UTF-8; encode it in UTF-8.") from error
    except ValueError as error:  # an integer of too many digits is one that is no JSONDecodeError
        raise Problem(400, f"The body is not JSON ({str(error)[:100]}); {_FORMS}.") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for key in content if sum(key == other for other, _ in pairs) > 1)
        raise Problem(400, f"The JSON has {_quoted(twice)} twice in one object; give each key once.")
    return content


def _asked(content: Any, limits: Limits) -> PhotoRequest:
    if not isinstance(content, dict):
        raise Problem(400, f"The JSON is not an object; {_FORMS}.")
    if "instances" not in content:
        photo, expected = _photo(content, ("image", "url", "b64", "expected", "instances"))
        return PhotoRequest([photo], several=False, expected=[expected])
    if len(content) > 1:
        other = next(key for key in content if key != "instances")
        raise Problem(400, f'{_quoted(other)} is given beside "instances"; put photos into the list, and remove it.')
    instances = content["instances"]
    if not isinstance(instances, list) or not instances:
        raise Problem(400, f'"instances" is not a list of at least one photo; {_FORMS}.')
    if len(instances) > limits.max_instances:
        raise Problem(
            413, f"There are {len(instances)} instances, and at most {limits.max_instances} are taken; send fewer."
        )
    asked = PhotoRequest([], several=True)
    photos, counts = [], []
    for number, instance in enumerate(instances):
        try:
            photo, expected = _photo(instance, ("image", "url", "b64", "expected"))
        except Problem as problem:
            raise problem.at(asked.where(number)) from None
        photos.append(photo)
        counts.append(expected)
    return PhotoRequest(photos, several=True, expected=counts)


def _photo(content: Any, known: Sequence[str]) -> tuple[Photo, int | None]:
    if not isinstance(content, dict):
        raise Problem(400, 'A photo must be an object; send {"image": BASE64} or {"url": "https://..."}.')
    for key in content:
        if key not in known:
            near = closest_match(key[:40], known)
            raise Problem(
                400, f"{_quoted(key)} is not a known key; " + (f'did you mean "{near}"?' if near else f"{_FORMS}.")
            )
    expected = content.pop("expected", None)
    if expected is not None and (type(expected) is not int or expected < 0):  # bool is a subclass of int
        raise Problem(400, '"expected" is not a whole number of items; send {"image": BASE64, "expected": 3}.')
    if len(content) != 1:
        raise Problem(400, f'A photo has {"more than one" if content else "none"} of "image" and "url"; give one.')
    [(key, value)] = content.items()
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise Problem(400, f'"{key}" is {kind} and must be a string; {_FORMS}.')
    return Url(value) if key == "url" else Base64(value), expected


def _quoted(key: str) -> str:
    return f'"{shorten(key)}"'
