"""What botocore's service model says about values, and botocore's own validation leaves to the server."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

Path = tuple[str | int, ...]


class Violation(NamedTuple):
    """A value that the model does not allow.

    Attributes:
        path: names of members and keys, and positions in lists, that lead to the value.
        value: the value, or, where ``of_key``, the key of a mapping.
        rule: ``max``, ``min``, ``enum`` or ``pattern``.
        limit: what the model has for it.
        sized: whether ``max`` and ``min`` are of its length.
        of_key: whether it is a mapping's key.
    """

    path: Path
    value: Any
    rule: str
    limit: Any
    sized: bool
    of_key: bool = False


def violations(shape: Any, value: Any, path: Path = ()) -> Iterator[Violation]:
    """All that is wrong with a value whose names and types botocore's ``ParamValidator`` has let through.

    Args:
        shape: of the value, such as an operation's ``input_shape``.
        value: parameters in plain containers.
        path: of the value.
    """
    for rule, limit, sized in _broken(shape, value):
        yield Violation(path, value, rule, limit, sized)
    if shape.type_name == "structure":
        for name, member in value.items():
            yield from violations(shape.members[name], member, (*path, name))
    elif shape.type_name == "list":
        for number, member in enumerate(value):
            yield from violations(shape.member, member, (*path, number))
    elif shape.type_name == "map":
        for key, member in value.items():
            for rule, limit, sized in _broken(shape.key, key):
                yield Violation(path, key, rule, limit, sized, of_key=True)
            yield from violations(shape.value, member, (*path, key))


def _broken(shape: Any, value: Any) -> Iterator[tuple[str, Any, bool]]:
    limits = shape.metadata
    sized = shape.type_name in ("string", "list", "map", "blob")
    size = len(value) if sized else value
    if "max" in limits and size > limits["max"]:
        yield "max", limits["max"], sized
    if "min" in limits and size < limits["min"]:
        yield "min", limits["min"], sized
    if shape.type_name == "string":
        if limits.get("enum") and value not in limits["enum"]:
            yield "enum", limits["enum"], sized
        if "pattern" in limits and not _matches(limits["pattern"], value):
            yield "pattern", limits["pattern"], sized


def _matches(pattern: str, value: str) -> bool:
    try:
        return re.fullmatch(pattern, value) is not None
    except re.error:  # patterns are Java's; some, such as \p{L}, Python does not know, and the server decides
        return True
