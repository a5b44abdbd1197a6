"""Callables, and arguments for them, that a checkpoint may name; one from a stranger could name anything."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_object

from bincounter.errors import UserError
from bincounter.model import backbones
from bincounter.model.objectives import Objective
from bincounter.model.timm_backbones import TimmBackbone

OWN_PARTS = ("bincounter.model.backbones.", "bincounter.model.timm_backbones.", "bincounter.model.objectives.")
"""Prefixes of bincounter's own backbones and objectives."""

_OWN_BACKBONES = (backbones.resnet, backbones.cnn, backbones.ResNet, backbones.PlainCNN, TimmBackbone)
_FILE = re.compile(r"[/\\]|^~|^[\w-]+:|\.(pth?|ckpt|safetensors|bin|npz|h5|onnx)$")


def check_arguments(node: Any) -> None:
    """Check that arguments name no file and no address, and that those of bincounter's parts are named.

    Raises:
        UserError: they do not.
    """
    if isinstance(node, str) and _FILE.search(node):
        raise UserError(f"its configuration names a file or an address, {node!r}; use a checkpoint without it.")
    if isinstance(node, Mapping):
        if "_args_" in node and str(node.get("_target_")).startswith(OWN_PARTS):
            raise UserError(
                f"it gives positional arguments to {node['_target_']}; use a checkpoint that bincounter wrote."
            )
        for value in node.values():
            check_arguments(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            check_arguments(value)


def is_own(node: Any) -> bool:
    """Return True if a node names bincounter's own backbones and objectives only."""
    return all(target.startswith(OWN_PARTS) for target in targets_of(node))


def check_trusted(node: Any, trusted: Sequence[str], path: str | Path) -> None:
    """Check that the callables of a node are trusted, by their names and by where they are defined.

    Args:
        node: of a configuration, as plain containers.
        trusted: dotted prefixes of further callables to trust, such as ``my_package.``.
        path: of the checkpoint, for the message.

    Raises:
        UserError: one is not, or cannot be imported.
    """
    prefixes = [*OWN_PARTS, *(prefix.rstrip(".") + "." for prefix in trusted)]
    for target in targets_of(node):
        module, where, further = target.rpartition(".")[0] or target, "not part of bincounter", ""
        # The prefix first: looking up a name imports its module.
        if any(target.startswith(prefix) for prefix in prefixes):
            found = _look_up(target)
            if _is_trusted(found, prefixes):
                continue
            if not target.startswith(OWN_PARTS):
                module, further = _module_of(found), ", too"
                where = f"defined in {module}"
        raise UserError(
            f"it is built by {target}, which is {where}; if you trust {path}, name the module{further}: --trust "
            f"{module} for predict, trust=[{module}] for deploy, trust=['{module}'] for bincounter.load."
        )


def own_targets(plain: Mapping[str, Any]) -> list[str]:
    """Return the modules named by the user's configuration, which a checkpoint may be built from.

    Args:
        plain: of ``train``, as plain containers.
    """
    targets = [target for node in (plain["model"]["backbone"], plain["objective"]) for target in targets_of(node)]
    return [module for target in targets for module in (target.rpartition(".")[0], _module_of(_look_up(target)))]


def targets_of(node: Any) -> Iterator[str]:
    """Yield the targets of a node and its inner nodes.

    Raises:
        UserError: the node holds an interpolation, whose value is not known here.
    """
    if isinstance(node, str) and "${" in node:
        raise UserError("its configuration holds an interpolation; use a checkpoint that bincounter wrote.")
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from targets_of(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from targets_of(value)


def _look_up(target: str) -> Any:
    try:
        return get_object(target)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"it is built by {target}, which cannot be imported; install the package it is from."
        ) from error


def _module_of(found: Any) -> str:
    return str(getattr(found, "__module__", None))


def _is_trusted(found: Any, prefixes: Sequence[str]) -> bool:
    defined = f"{_module_of(found)}."
    if defined in OWN_PARTS:  # not their other functions, some of which read files
        return found in _OWN_BACKBONES or (isinstance(found, type) and issubclass(found, Objective))
    return callable(found) and any(defined.startswith(prefix) for prefix in prefixes)
