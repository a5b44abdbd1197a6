"""Builds what a configuration node describes, as Hydra's ``instantiate`` does; images that serve have no Hydra."""

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any


def build(node: Mapping[str, Any], **arguments: Any) -> Any:
    """Call a node's ``_target_`` with its other keys; nodes inside of it are built first.

    Args:
        node: plain containers; ``_args_``, ``_partial_`` and ``_recursive_`` mean what they mean to Hydra.
        arguments: take the place of the node's keys.
    """
    options = {key: value for key, value in {**node, **arguments}.items() if not _is_special(key)}
    positional = node.get("_args_", [])
    if node.get("_recursive_", True):
        options = {key: _built(value) for key, value in options.items()}
        positional = _built(positional)
    target = named(node["_target_"])
    return partial(target, *positional, **options) if node.get("_partial_") else target(*positional, **options)


def named(path: str) -> Any:
    """The object with a dotted name, such as ``torchvision.models.ResNet`` or ``package.module.Class.method``.

    Raises:
        ImportError: there is none.
    """
    parts = path.split(".")
    found: Any = import_module(parts[0])
    for number, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part):
            import_module(".".join(parts[:number]))
        found = getattr(found, part)
    return found


def _is_special(key: str) -> bool:
    return key.startswith("_") and key.endswith("_")


def _built(value: Any) -> Any:
    if isinstance(value, Mapping):
        return build(value) if "_target_" in value else {key: _built(inner) for key, inner in value.items()}
    return [_built(inner) for inner in value] if isinstance(value, list) else value
