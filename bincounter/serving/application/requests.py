"""The body of a request -> bytes of photos, or addresses of them."""

import base64
import binascii
import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bincounter.serving.application.limits import Limits
from bincounter.serving.application.problems import Problem

JSON = "application/json"
# Whatever the name says, the content decides: clients call photos many things, boto3 and curl among them.
PHOTO_TYPES = (
    "image/jpeg",
    "image/jpg",
    "image/png",
    "image/webp",
    "application/x-image",
    "application/octet-stream",
    "application/x-www-form-urlencoded",
)
_FORMS = 'send {"image": BASE64}, {"url": "https://..."} or {"instances": [...]} of these'
_ENCODED = re.compile(r"data:[\w.+-]+/[\w.+-]+(;[\w=.+-]+)*;base64,")


@dataclass(frozen=True)
class Url:
    """Where a photo lies."""

    text: str


@dataclass(frozen=True)
class Asked:
    """What a request asks for.

    Attributes:
        photos: bytes, or where they lie.
        several: whether a list of answers is expected, of one photo too.
    """

    photos: Sequence[bytes | Url]
    several: bool


def read(body: bytes, content_type: str | None, limits: Limits) -> Asked:
    """Read a request.

    Args:
        body: of the request.
        content_type: its header; without one the body's first bytes decide.
        limits: what is taken at most.

    Raises:
        Problem: 400 it has no form that is known, 413 it is too large, 415 its type is not known.
    """
    if len(body) > limits.max_body_bytes:
        raise too_large(limits)
    if not body:
        raise Problem(400, "The body is empty; send a photo, or JSON.")
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind == JSON or (not kind and body[:1] == b"{"):
        return _asked(_parsed(body), limits)
    if kind and kind not in PHOTO_TYPES:
        known = ", ".join(("image/jpeg", "image/png", JSON))
        raise Problem(415, f"Content-Type: {kind[:100]} is nothing that is read here; send {known}.")
    return Asked([body], several=False)


def too_large(limits: Limits) -> Problem:
    """Of a body that has too many bytes."""
    size = f"{limits.max_body_bytes / 1e6:g} MB"
    return Problem(413, f"The body has more than {size}; send a smaller photo, or fewer in one request.")


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError as error:
        raise Problem(400, f"The JSON is nested too deeply; {_FORMS}.") from error
    except ValueError as error:  # UnicodeDecodeError, and an integer of too many digits, are some too
        raise Problem(400, f"The body is no JSON ({_clause(error)}); {_FORMS}.") from error


def _clause(error: ValueError) -> str:
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)[:100]


def _asked(content: Any, limits: Limits) -> Asked:
    if not isinstance(content, dict):
        raise Problem(400, f"The JSON is no object; {_FORMS}.")
    if "instances" not in content:
        return Asked([_photo(content, "", ("image", "url", "instances"))], several=False)
    if len(content) > 1:
        other = next(key for key in content if key != "instances")
        raise Problem(400, f'"instances" stands beside "{other[:50]}"; put everything into the instances.')
    instances = content["instances"]
    if not isinstance(instances, list) or not instances:
        raise Problem(400, f'"instances" must be a list with at least one photo; {_FORMS}.')
    if len(instances) > limits.max_instances:
        raise Problem(
            413,
            f"There are {len(instances)} instances, at most {limits.max_instances} are taken; send fewer at a time.",
        )
    return Asked(
        [_photo(one, f"instances[{number}]: ", ("image", "url")) for number, one in enumerate(instances)], True
    )


def _photo(content: Any, where: str, known: Sequence[str]) -> bytes | Url:
    if not isinstance(content, dict):
        raise Problem(400, f'{where}a photo must be an object; send {{"image": BASE64}} or {{"url": "https://..."}}.')
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(key[:50].lower(), known, n=1)
            step = f'did you mean "{near[0]}"?' if near else f"{_FORMS}."
            raise Problem(400, f'{where}"{key[:50]}" is no key that is known; {step}')
    if len(content) != 1:
        raise Problem(400, f'{where}give exactly one of "image" and "url".')
    [(key, value)] = content.items()
    if not isinstance(value, str):
        raise Problem(400, f'{where}"{key}" must be a text; {_FORMS}.')
    return Url(value) if key == "url" else _decoded(value, where)


def _decoded(text: str, where: str) -> bytes:
    prefix = _ENCODED.match(text[:200])  # what browsers put before it
    lines = text[prefix.end() if prefix else 0 :].split()  # the base64 command wraps them
    try:
        content = base64.b64decode("".join(lines).encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise Problem(400, f'{where}"image" is no base64; send the bytes of a JPEG or PNG, base64-encoded.') from error
    if not content:
        raise Problem(400, f'{where}"image" is empty; send the bytes of a JPEG or PNG, base64-encoded.')
    return content
