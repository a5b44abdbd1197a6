"""``bounded()`` fields and the one walker that checks them; ``_target_`` signatures; metric names and directions."""

import inspect
import math
import pydoc
import re
import types
import typing
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bincounter.errors import ConfigError, check_choice, closest_match, first_line
from bincounter.files import expand_user

_HYDRA_KEYS = {"_target_", "_partial_", "_args_", "_recursive_", "_convert_"}  # read by Hydra itself


@dataclass(frozen=True)
class Bound:
    """Allowed values of a setting, stored in its dataclass field's metadata by :func:`bounded`."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    finite: bool = True
    choices: tuple[str, ...] = ()
    pattern: str = ""
    hint: str = ""

    def check(self, key: str, value: Any) -> None:
        """Check one value.

        Raises:
            ConfigError: it is out of bounds.
        """
        if self.choices:
            check_choice(key, value, self.choices)
        elif self.pattern:
            if not re.fullmatch(self.pattern, value):
                raise ConfigError(f"{key}={value} {self.hint}")
        elif not self._holds(value):
            low = f"above {_number(self.gt)}" if self.gt is not None else f"at least {_number(self.ge)}"
            high = f" and at most {_number(self.le)}" if self.le is not None else ""
            raise ConfigError(f"{key}={_number(value)} is out of range: it must be {low}{high}")

    def _holds(self, value: float | None) -> bool:
        return (
            value is not None
            and not math.isnan(value)
            and (math.isfinite(value) or not self.finite)
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
        )


def _number(value: float | None) -> str:
    return f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)


def bounded(default: Any, **bounds: Any) -> Any:
    """A dataclass field that :func:`check_bounds` checks.

    Args:
        default: the field's default; a list is copied for each instance. Each value of a list is checked.
        bounds: those of :class:`Bound`. A number has ``ge`` or ``gt``, and ``le``; a string has ``choices``, or a
            ``pattern`` and a ``hint``: the end of the sentence that begins with ``key=value``.
    """
    given: dict[str, Any] = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    return field(**given, metadata={"bound": Bound(**bounds)})


def plain_of(node: DictConfig) -> dict[str, Any]:
    """Resolve a node as plain containers.

    Raises:
        ConfigError: an interpolation cannot be resolved.
    """
    try:
        return OmegaConf.to_container(node, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error)) from None


def check_bounds(node: DictConfig, key: str = "") -> None:
    """Check all :func:`bounded` fields of a typed configuration, its typed nodes included.

    Args:
        node: a configuration whose types are dataclasses; untyped nodes are not checked.
        key: the node's dotted name.

    Raises:
        ConfigError: names the first setting that is out of bounds or missing, and the allowed values.
    """
    schema = OmegaConf.get_type(node)
    if is_dataclass(schema):
        _refuse_additions(node, key, [each.name for each in fields(schema)])
    for each in fields(schema) if is_dataclass(schema) else ():
        if OmegaConf.is_missing(node, each.name):
            continue
        name = f"{key}.{each.name}" if key else each.name
        value, bound = node[each.name], each.metadata.get("bound")
        if isinstance(value, DictConfig):
            check_bounds(value, name)
        elif bound and value is not None:
            for one in value if OmegaConf.is_list(value) else [value]:
                bound.check(name, one)


def _refuse_additions(node: DictConfig, key: str, known: list[str]) -> None:
    """Reject settings that were added with ``+`` and that nothing reads, not even another setting."""
    for name in map(str, node):
        if name in known or name == "hydra":
            continue
        if re.search(rf"\$\{{[^}}]*\b{re.escape(name)}\b", OmegaConf.to_yaml(node._get_root())):
            continue
        guess = closest_match(name, known)
        place = f"{key}.{name}" if key else name
        meant = f"{key}.{guess}" if key else guess
        hint = f"did you mean {meant}, without +?" if guess else "remove it"
        raise ConfigError(f"+{place} is read by nothing: {hint}")


# An empty shell variable, which pathlib takes for the current folder.
PATH = Bound(pattern="(?s).+", hint="is empty; name a file or a folder, or remove it")


def path_setting(default: Any = MISSING) -> Any:
    """A dataclass field for a path, or a list of them, in which :func:`expand_home` expands ``~``."""
    return bounded(default, **vars(PATH))


def expand_home(node: DictConfig | ListConfig, *, all_paths: bool = False) -> None:
    """Expand ``~`` and ``~user`` in a composed configuration, in place.

    Args:
        node: with :func:`path_setting` fields; in open nodes each text that begins with ``~`` is a path.
        all_paths: treat all texts of this node as paths.
    """
    schema = OmegaConf.get_type(node)
    typed = {each.name: each for each in fields(schema)} if is_dataclass(schema) else None
    names: Iterable[Any] = node if isinstance(node, DictConfig) else range(len(node))
    for name in names:
        described = typed.get(str(name)) if typed else None
        is_path = all_paths or (described is not None and described.metadata.get("bound") == PATH)
        if not is_path and OmegaConf.is_interpolation(node, name):
            continue
        try:
            value = node[name]
        except OmegaConfBaseException:  # missing, or an interpolation that the checks refuse
            continue
        if isinstance(value, (DictConfig, ListConfig)):
            has_schema = is_dataclass(OmegaConf.get_type(value))
            is_open = described is not None and described.type is Any and not has_schema
            if is_path or is_open or (has_schema and name != "hydra"):
                expand_home(value, all_paths=is_path or is_open)
        elif is_path and isinstance(value, str) and "~" in value:
            node[name] = expand_user(value)


def open_mapping() -> Any:
    """A dataclass field for a mapping that accepts new keys without Hydra's ``+``."""
    return field(default_factory=lambda: DictConfig({}, flags={"struct": False}))


def check_target(key: str, node: Any, *, given: tuple[str, ...] = ()) -> None:
    """Check that an open node's target can be called with the node's arguments.

    Args:
        key: the node's dotted name, for the message.
        node: a mapping with ``_target_`` and keyword arguments.
        given: arguments that bincounter adds.

    Raises:
        ConfigError: names the key, the allowed values and the nearest spelling.
    """
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise ConfigError(
            f"{key} needs a _target_: the dotted name of a class or function, as in conf/{key.replace('.', '/')}"
        )
    target = import_target(key, node["_target_"])
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
            guess = closest_match(str(name), names)
            hint = f"; did you mean {key}.{guess}?" if guess else f"; it takes {', '.join(names) or 'none'}"
            raise ConfigError(f"{key}.{name} is not an argument of {node['_target_']}{hint}")
        if name in hints and not _fits(value, hints[name]):
            raise ConfigError(
                f"{key}.{name}={value} has the wrong type for {node['_target_']}: {_readable(hints[name])}"
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
            f"{key} is missing {', '.join(f'{key}.{name}' for name in missing)}, which {node['_target_']} needs"
        )


def import_target(key: str, dotted: str) -> Any:
    """Import the callable of a ``_target_``.

    Raises:
        ConfigError: it cannot be imported or called.
    """
    try:
        found = pydoc.locate(dotted)  # Hydra's own look-up logs an error before it raises one
    except pydoc.ErrorDuringImport as error:
        raise ConfigError(f"{key}._target_={dotted} cannot be imported: {error.value}") from None
    if not callable(found):
        raise ConfigError(f"{key}._target_={dotted} is not callable: correct the spelling, or install its package")
    return found


def argument_names(key: str, node: DictConfig) -> list[str]:
    """Names of the arguments that an open node's target takes; none if it has no target."""
    if not isinstance(node.get("_target_"), str):
        return []
    try:
        return list(inspect.signature(import_target(key, node["_target_"])).parameters)
    except (ConfigError, ValueError):
        return []


def argument_hint(key: str, cfg: DictConfig) -> Any:
    """Type of an argument of a ``_target_``, by the signature; ``None`` if there is none, or its value is a number."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent, throw_on_missing=False)
    if not isinstance(node, DictConfig) or isinstance(OmegaConf.select(node, name), (int, float)):  # spares an import
        return None
    return target_hint(parent, node, name)


def target_hint(key: str, node: DictConfig, name: str) -> Any:
    """Type of an argument of an open node's target: its annotation, ``str`` for a default text, or ``None``."""
    dotted = OmegaConf.select(node, "_target_", throw_on_missing=False, throw_on_resolution_failure=False)
    if name in _HYDRA_KEYS or not isinstance(dotted, str):
        return None
    try:
        target = import_target(key, dotted)
    except ConfigError:
        return None
    hint = _hints(target).get(name)
    if hint is None:
        with suppress(KeyError, ValueError):  # it has no such parameter, or no signature
            hint = str if isinstance(inspect.signature(target).parameters[name].default, str) else None
    return hint


def _hints(target: Any) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    hints: dict[str, Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        one = types.SimpleNamespace(__annotations__={name: annotation})
        with suppress(Exception):  # annotations may name types that only a type checker imports
            hints |= typing.get_type_hints(one, getattr(function, "__globals__", {}))
    return hints


def _fits(value: Any, hint: Any) -> bool:
    """Return True if a YAML scalar fits a type hint; values that are not scalars always fit."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if origin is typing.Literal:
        return not isinstance(value, (str, int)) or value in typing.get_args(hint)
    if hint is type(None):
        return value is None
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if hint in (str, bool):
        return isinstance(value, hint)
    if value is None:
        return True
    # A class, a mapping, a list: instances come from nested nodes, which are checked when they are built.
    return not isinstance(value, (str, int, float)) or hint is typing.Any or not inspect.isclass(hint)


def _readable(hint: Any) -> str:
    return str(hint).replace("typing.", "").replace("<class '", "").replace("'>", "")


def check_kind(group: str, settings: Mapping[str, Any], schemas: Mapping[str, type]) -> None:
    """Check that a group's ``kind`` matches the chosen option.

    Args:
        group: name of the group, such as ``debugger``.
        settings: the group as plain containers.
        schemas: dataclasses of the group's options, by name.

    Raises:
        ConfigError: ``kind`` was set without choosing the option.
    """
    kind = settings["kind"]
    check_choice(f"{group}.kind", kind, schemas)
    if set(settings) != {each.name for each in fields(schemas[kind])}:
        raise ConfigError(f"{group}.kind={kind} is set by choosing the option: write {group}={kind} instead")


SHORT_PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
"""Short names of ``trainer.precision``, and Lightning's long ones."""

METRICS = {
    "accuracy": "max",
    "rmse": "min",
    "mae": "min",
    "within_one": "max",
    "macro_f1": "max",
    "ece": "min",
    "cross_entropy": "min",
}


def mode_of(monitored: str) -> str:
    """Better direction of what a callback may monitor, losses included; of unknown names ``min``."""
    return METRICS.get(monitored.removeprefix("val/"), "min")


def metric_mode(metric: str, key: str = "optimized_metric") -> str:
    """Better direction of a logged metric such as ``val/accuracy``: ``max`` or ``min``.

    Raises:
        ConfigError: no run logs a metric of that name.
    """
    check_choice(key, metric, [f"val/{name}" for name in METRICS])
    return METRICS[metric.removeprefix("val/")]
