"""``bounded()`` fields and the one walker that checks them; ``_target_`` signatures; metric names and directions."""

import inspect
import pydoc
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from bincounter.errors import ConfigError, nearest, one_of

# What Hydra itself reads from such a node.
_HYDRA_KEYS = {"_target_", "_partial_", "_args_", "_recursive_", "_convert_"}


def check_target(key: str, node: Any, *, given: tuple[str, ...] = ()) -> None:
    """Refuse an open node whose target cannot be called with the node's arguments.

    Args:
        key: the node's dotted name, for the message.
        node: a mapping with ``_target_`` and keyword arguments.
        given: arguments that the program adds by itself.

    Raises:
        ConfigError: naming the key, what is allowed and the nearest spelling.
    """
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise ConfigError(
            f"{key} needs a _target_: the dotted name of a class or function, as in conf/{key.replace('.', '/')}"
        )
    target = imported(key, node["_target_"])
    try:
        signature = inspect.signature(target)
    except ValueError:  # some built-in callables have none
        return
    names = [
        p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD and p.kind is not p.VAR_POSITIONAL
    ]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    hints = _hints(target)
    for name, value in node.items():
        if name in _HYDRA_KEYS:
            continue
        if name not in names and not takes_any:
            guess = nearest(str(name), names)
            hint = f"; did you mean {key}.{guess}?" if guess else f"; it takes {', '.join(names)}"
            raise ConfigError(f"{key}.{name} is no argument of {node['_target_']}{hint}")
        if name in hints and not _fits(value, hints[name]):
            raise ConfigError(
                f"{key}.{name}={value} is not what {node['_target_']} takes there: {_readable(hints[name])}"
            )
    missing = [
        p.name
        for p in signature.parameters.values()
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name not in {*node, *given}
    ]
    if missing and not node.get("_partial_") and not node.get("_args_"):
        raise ConfigError(
            f"{key} lacks {', '.join(f'{key}.{name}' for name in missing)}, which {node['_target_']} needs"
        )


def imported(key: str, dotted: str) -> Any:
    """The callable a ``_target_`` names.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        found = pydoc.locate(dotted)  # Hydra's own look-up logs an error before it raises one
    except pydoc.ErrorDuringImport as error:
        raise ConfigError(f"{key}._target_={dotted} cannot be imported: {error.value}") from None
    if not callable(found):
        raise ConfigError(
            f"{key}._target_={dotted} names nothing that can be called: correct the spelling, or install its package"
        )
    return found


RENAMED_TARGETS = {
    "bincounter.cloud.container.cluster.SageMakerEnvironment": "bincounter.cloud.container.SageMakerEnvironment",
}
"""Targets that have moved, by the names in configurations of earlier versions.

Checkpoints name backbones and objectives only, whose names stay.
"""


def renamed_targets(node: Any) -> Any:
    """Copy a stored configuration, with the present names of :data:`RENAMED_TARGETS`."""
    if isinstance(node, Mapping):
        return {key: renamed_targets(value) for key, value in node.items()}
    if isinstance(node, list):
        return [renamed_targets(value) for value in node]
    return RENAMED_TARGETS.get(node, node) if isinstance(node, str) else node


def _hints(target: Any) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function)
    except Exception:  # annotations that name what only a type checker imports
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a YAML scalar can be what ``hint`` asks for; whatever is no plain scalar passes."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if origin is typing.Literal:
        return not isinstance(value, (str, int)) or value in typing.get_args(hint)
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    if hint is bool:
        return isinstance(value, bool)
    if value is None:
        return True
    # A class, a mapping, a list: instances come from nested nodes, which are checked when they are built.
    return not isinstance(value, (str, int, float)) or hint is typing.Any or not inspect.isclass(hint)


def _readable(hint: Any) -> str:
    return str(hint).replace("typing.", "").replace("<class '", "").replace("'>", "")


def check_kind(group: str, settings: Mapping[str, Any], schemas: Mapping[str, type]) -> None:
    """Refuse a ``kind`` that was set apart from what it stands for.

    Args:
        group: of the settings, such as ``debugger``.
        settings: as plain containers.
        schemas: of the group's options, by their names.

    Raises:
        ConfigError: another option's settings are there.
    """
    kind = settings["kind"]
    one_of(f"{group}.kind", kind, schemas)
    if set(settings) != {each.name for each in fields(schemas[kind])}:
        raise ConfigError(f"{group}.kind={kind} follows from {group}={kind}: write that instead")


METRICS = {
    "accuracy": "max",
    "rmse": "min",
    "mae": "min",
    "within_one": "max",
    "macro_f1": "max",
    "ece": "min",
    "cross_entropy": "min",
}


def mode_of(metric: str, key: str = "optimized_metric") -> str:
    """``max`` or ``min``: the better direction of a logged metric such as ``val/accuracy``.

    Raises:
        ConfigError: when no run logs a metric of that name.
    """
    one_of(key, metric, [f"val/{name}" for name in METRICS])
    return METRICS[metric.removeprefix("val/")]
