"""Extra parameters of requests: merged, and checked against botocore's service model."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

from bincounter.errors import ConfigError, closest_match

Path = tuple[str | int, ...]


class Violation(NamedTuple):
    """Value that the service model does not allow.

    Attributes:
        path: names of members and keys, and positions in lists, that lead to the value.
        value: the value, or, where ``of_key``, the key of a mapping.
        rule: ``max``, ``min``, ``enum`` or ``pattern``.
        limit: the bound, the allowed values or the pattern.
        sized: whether ``max`` and ``min`` apply to its length.
        of_key: whether the value is a mapping's key.
    """

    path: Path
    value: Any
    rule: str
    limit: Any
    sized: bool
    of_key: bool = False


def violations(shape: Any, value: Any, path: Path = ()) -> Iterator[Violation]:
    """Yield the violations of a value whose names and types botocore's ``ParamValidator`` has accepted.

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
    except re.error:  # Java's patterns; Python does not know some, such as \p{L}, and the server decides
        return True


def merge(request: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``extra`` into a copy of ``request``: mappings are merged, other values replaced."""
    result = dict(request)
    for key, value in extra.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


@cache
def service_model(service: str = "sagemaker") -> Any:
    """Load botocore's service model."""
    import botocore.session

    return botocore.session.get_session().get_service_model(service)


def check_request(
    request: Mapping[str, Any],
    operation: str,
    setting: str = "launcher.request",
    settings: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Check a request against SageMaker's service model.

    Args:
        request: the operation's parameters.
        operation: its name, such as ``CreateTrainingJob``.
        setting: that extra parameters come from, for messages.
        settings: see :func:`check_shape`.

    Raises:
        ConfigError: an unknown, missing or mistyped parameter, or a value that is none of those allowed.
    """
    check_shape(request, service_model().operation_model(operation).input_shape, operation, setting, settings)


def check_shape(value: Mapping[str, Any], shape: Any, what: str, setting: str, settings: Mapping[str, str]) -> None:
    """Check parameters against a shape of a service model.

    Args:
        value: the parameters.
        shape: of the model.
        what: name of the operation or object, for messages.
        setting: that extra parameters come from.
        settings: the setting that a parameter comes from, by its path; other parameters come from ``setting``.

    Raises:
        ConfigError: an unknown, missing or mistyped parameter, or a value that is none of those allowed.
    """
    from botocore.validate import ParamValidator

    report = ParamValidator().validate(value, shape).generate_report()
    if report:
        # A misspelt name first: it explains a missing parameter.
        lines = sorted(report.splitlines(), key=lambda line: not line.startswith("Unknown parameter"))
        raise ConfigError(_mistake(lines[0], what, setting))
    for violation in violations(shape, value):
        raise ConfigError(_forbidden(violation, setting, settings))


def _mistake(line: str, operation: str, setting: str) -> str:
    unknown = re.match(r'Unknown parameter in (\S+): "([^"]+)", must be one of: (.*)', line)
    if not unknown:
        return f"{setting} does not give a valid {operation} request: {line}"
    where = "" if unknown[1] == "input" else f"{unknown[1]}."
    known = unknown[3].split(", ")
    hint = closest_match(unknown[2], known)
    return f"{setting}.{where}{unknown[2]} is not a parameter of {operation}" + (
        f": did you mean {hint}?" if hint else f": it has {', '.join(known)}"
    )


def _forbidden(violation: Violation, setting: str, settings: Mapping[str, str]) -> str:
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in violation.path).lstrip(".")
    name, value, limit = settings.get(path, f"{setting}.{path}"), violation.value, violation.limit
    what = f"the key {value} of {name}" if violation.of_key else f"{name}={value}"
    if violation.rule == "enum":
        hint = closest_match(str(value), limit)
        return f"{what} is not a value that SageMaker knows: " + (
            f"did you mean {hint}?" if hint else f"use one of {', '.join(limit)}"
        )
    if violation.rule == "pattern":
        return f"{what} does not have the form that SageMaker accepts ({limit})"
    bound = "at most" if violation.rule == "max" else "at least"
    unit = (" characters" if isinstance(value, str) else " entries") if violation.sized else ""
    return f"{what} is out of range: {bound} {limit}{unit}"
