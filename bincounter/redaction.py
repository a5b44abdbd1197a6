"""Masks of passwords, tokens and keys in everything that a run saves or prints."""

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
_NAME = re.compile(
    r"(^|[._-])(password|passwd|secret|token|api_?key|access_?key(_id)?|credentials?)($|[._-])", re.IGNORECASE
)
_INNER = re.compile(r"[{,]\s*['\"]?([\w.-]+)['\"]?\s*:")
_IN_URL = re.compile(r"(?<=://)[^/\s]+(?=@)")
_IN_QUERY = re.compile(r"([?&]\w*(?:password|passwd|secret|token)=)[^&#\s'\"]+", re.IGNORECASE)


def mask_secrets(node: Any, name: str = "") -> Any:
    """Copy plain containers with the values of secret names, and logins in URLs, masked."""
    if isinstance(node, Mapping):
        # Everything below a secret name is secret, too.
        return {key: mask_secrets(value, name if _NAME.search(name) else str(key)) for key, value in node.items()}
    if isinstance(node, list):
        return [mask_secrets(value, name) for value in node]
    if node is not None and _NAME.search(name):
        return MASK
    return _masked_url(node) if isinstance(node, str) else node


def mask_argument(argument: str) -> str:
    """Mask the value of a command-line argument if its key is a secret name."""
    key, equals, value = argument.partition("=")
    secret = _NAME.search(key) or any(_NAME.search(inner) for inner in _INNER.findall(value))
    return f"{key}={MASK}" if equals and secret else _masked_url(argument)


def _masked_url(text: str) -> str:
    return _IN_QUERY.sub(rf"\1{MASK}", _IN_URL.sub(MASK, text))
