"""Quoting of overrides for Hydra's grammar and the shell; text settings keep the typed text."""

import random
import re
import shlex
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial, reduce
from os import PathLike
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from bincounter.config.checks import target_hint

# A word that Hydra reads as a string.
_WORD = re.compile(r"(?!(?:true|false|null|nan|inf)$)/?[A-Za-z_][A-Za-z0-9_./:-]*", re.IGNORECASE)
_FUNCTION = re.compile(r"(choice|shuffle|sort|tag)\s*\((.*)\)", re.DOTALL)
_NAMED = re.compile(r"(?:(list|sweep|reverse)\s*=)?\s*(.*)", re.DOTALL)
# A number as one writes it; 007, 1_0 and 1:30 are texts where a setting takes both.
_NUMBER = re.compile(r"[+-]?(?!0\d)(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?\.?(inf|nan)|true|false", re.IGNORECASE)
_BRACKETS = {"[": "]", "{": "}"}
_KEY = re.compile(r"(\+{0,2})([\w$][\w$.-]*)")

Hints = Callable[[str], Any]
"""Type of the setting of a dotted key; ``None`` if there is none."""


def override_of(key: str, value: Any) -> str:
    """Write one value as an override, quoted for Hydra's grammar.

    Args:
        key: with its prefix and package, if any: ``model.optimizer.lr``, ``+trainer.profiler``.
        value: what Hydra reads from an override: numbers, truth values, texts, ``None``, paths, lists or mappings of
            them.
    """
    return f"{key}={hydra_source(json_ready(value))}"


def shell_command(*words: str | PathLike[str], settings: Mapping[str, Any] | None = None) -> str:
    """Write a command that can be pasted into a shell.

    Args:
        words: the program and arguments, overrides among them as they were given.
        settings: overrides to add, by key; quoted for Hydra's grammar, too.
    """
    overrides = [override_of(key, value) for key, value in (settings or {}).items()]
    return " ".join(_shell_word(str(word)) for word in (*words, *overrides))


def search_path(hydra: Any) -> list[str]:
    """Return the options of the command line that name folders of configuration files; ``hydra`` is Hydra's part."""
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    overrides = [override for override in hydra.overrides.hydra if override.startswith("hydra.searchpath=")]
    return [*(f"--config-dir={folder}" for folder in folders), *overrides]


def _shell_word(word: str) -> str:
    quoted = shlex.quote(word)
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else quoted


def hydra_source(value: Any) -> str:
    """Write a value of :func:`json_ready` in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return value if _WORD.fullmatch(value) else QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, list):
        return f"[{','.join(map(hydra_source, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{hydra_source(item)}" for key, item in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def json_ready(value: Any) -> Any:
    """Turn the keys of mappings into their source text: JSON has string keys only, and Hydra does not quote keys."""
    if isinstance(value, dict):
        return {_key_source(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list):
        return [json_ready(item) for item in value]
    return str(value) if isinstance(value, PathLike) else value


def _key_source(key: Any) -> str:
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", key) if isinstance(key, str) else hydra_source(key)


def keep_text(overrides: Iterable[str], hints: Hints, *, sweep: bool) -> list[str]:
    """Quote the values of text settings that Hydra would read as something else, or not at all.

    Args:
        overrides: as on a command line.
        hints: types of the settings.
        sweep: commas separate values to try.

    Returns:
        The overrides; ``task_name=2024_01`` becomes ``task_name='2024_01'``.
    """
    return [_kept(override, hints, sweep=sweep) for override in overrides]


def _kept(override: str, hints: Hints, *, sweep: bool) -> str:
    key, equals, text = override.partition("=")
    named = _KEY.fullmatch(key)
    if not equals or named is None:
        return override
    # Looking at the value first spares the types of open nodes, which need an import.
    inner = _inside(text, "{")
    if inner is None and all(_converted(text, way, sweep=sweep) == text for way in (_text, _list, _dict)):
        return override
    convert = _way(hints(named[2]))
    if convert is not None:
        return f"{key}={_converted(text, convert, sweep=sweep)}"
    return override if inner is None else f"{key}={{{','.join(_members(key, inner, hints))}}}"


def _converted(text: str, convert: Callable[[str], str], *, sweep: bool) -> str:
    return ",".join(_each(each.strip(), convert) for each in split(text)) if sweep else convert(text)


def _members(key: str, inner: str, hints: Hints) -> Iterator[str]:
    """Convert the settings of a mapping, each by its own type."""
    for name, *value in (split(each, at=":") for each in split(inner)):
        text = ":".join(value).strip()
        yield f"{name}:{_kept(f'{key}.{name.strip()}={text}', hints, sweep=False).partition('=')[2]}" if value else name


def _each(text: str, convert: Callable[[str], str]) -> str:
    """Convert one value of a sweep, or those of ``choice(...)`` and its like, whose quotes Hydra would drop."""
    values = _values(text, convert)
    return text if _FUNCTION.fullmatch(text) and all(map(_WORD.fullmatch, values)) else ",".join(values)


def _values(text: str, convert: Callable[[str], str]) -> list[str]:
    called = _FUNCTION.fullmatch(text)
    if called is None:
        return [convert(text)]
    function, inside = called.groups()
    if not inside.strip():
        return [text]
    given = [_NAMED.fullmatch(each.strip()) for each in split(inside)]
    named = [(each[1], each[2]) for each in given if each is not None]
    tried = [value for name, value in named if name != "reverse"]
    if function == "tag":
        tried = tried[-1:]
        if _FUNCTION.fullmatch(tried[0]) is None:  # an interval or a range
            return [text]
    found = [each for value in tried for each in _values(value, convert)]
    one_list = _inside(found[0], "[") if function in ("shuffle", "sort") and len(found) == 1 else None
    if one_list is not None:
        found = [each.strip() for each in split(one_list)]
    if function == "sort":
        found.sort(key=lambda source: str(parse(f"x={source}").value()), reverse=("reverse", "true") in named)
    elif function == "shuffle":
        random.shuffle(found)
    return found if one_list is None else [f"[{','.join(found)}]"]


def _text(text: str, numbers: Sequence[type] = ()) -> str:
    """Quote one text if Hydra cannot parse it, or reads it as a truth value or as a number that is not accepted."""
    try:
        override = parse(f"x={text}")
    except HydraException:
        return hydra_source(text)
    return hydra_source(text) if _is_misread(override.value(), text.strip(), numbers) else text


def _is_misread(value: Any, text: str, numbers: Sequence[type]) -> bool:
    """Return True if a text was read as a number or a truth value; ``numbers`` are accepted types."""
    accepted = type(value) in numbers or (type(value) is int and float in numbers)
    return isinstance(value, (int, float)) and not (accepted and _NUMBER.fullmatch(text))


def _item(text: str) -> str:
    """Quote one text of a list or a mapping, where nothing can be tried."""
    kept = _text(text.strip())
    return hydra_source(kept) if kept.endswith(")") and parse(f"x={kept}").is_sweep_override() else kept


def _list(text: str) -> str:
    inner = _inside(text, "[")
    return text if inner is None else f"[{','.join(_item(each) for each in split(inner))}]"


def _dict(text: str) -> str:
    inner = _inside(text, "{")
    if inner is None:
        return text
    pairs = [split(each, at=":") for each in split(inner)]
    written = [f"{name}:{_item(':'.join(value))}" if value else name for name, *value in pairs]
    return "{" + ",".join(written) + "}"


def _inside(text: str, bracket: str) -> str | None:
    text = text.strip()
    inner = text[1:-1] if len(text) > 1 and text[0] == bracket and text[-1] == _BRACKETS[bracket] else None
    return inner if inner and inner.strip() else None


def parse(override: str) -> Override:
    """Parse one override.

    Raises:
        HydraException: it cannot be parsed.
    """
    return OverridesParser.create().parse_overrides([override])[0]


def split(text: str, at: str = ",") -> list[str]:
    """Split at each separator outside of quotes and brackets."""
    parts, depth, quote, escaped = [""], 0, "", False
    for character in text:
        if not quote and not escaped and depth == 0 and character == at:
            parts.append("")
            continue
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and (not parts[-1].strip() or parts[-1].rstrip()[-1] in "([{,:"):
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth = max(depth - 1, 0)
        parts[-1] += character
    return parts


def _way(hint: Any) -> Callable[[str], str] | None:
    """Return the function that quotes the texts of a setting of this type; ``None`` for one without texts."""
    ways: list[Callable[[str], str]] = []
    if any(_numbers(each) is not None for each in _inner(hint, (dict, Mapping), -1)):
        ways.append(_dict)
    if any(_numbers(each) is not None for each in _inner(hint, (list, Sequence, tuple), 0)):
        ways.append(_list)
    numbers = _numbers(hint)
    if numbers is not None:
        ways.append(partial(_text, numbers=numbers))
    return partial(reduce, lambda text, way: way(text), ways) if ways else None


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _numbers(hint: Any) -> tuple[type, ...] | None:
    """Types of numbers that a setting accepts besides texts; ``None`` for a setting that accepts no text."""
    each = _alternatives(hint)
    is_text = any(one in (str, Path, PathLike) or typing.get_origin(one) is PathLike for one in each)
    return tuple(one for one in each if one in (int, float, bool)) if is_text else None


def _inner(hint: Any, kinds: tuple[Any, ...], place: int) -> list[Any]:
    """Return the types in the lists or mappings that a type accepts."""
    found = [typing.get_args(each) for each in _alternatives(hint) if typing.get_origin(each) in kinds]
    return [each[place] for each in found if each]


def schema_hint(key: str, root: type) -> Any:
    """Type of a setting by the schemas.

    Args:
        key: dotted.
        root: dataclass of the whole configuration.

    Returns:
        A type hint; ``Any`` for an open node and what is in it; ``None`` if there is no such setting.
    """
    hints: list[Any] = [root]
    names = key.split(".")
    for number, name in enumerate(names):
        inner = [each for hint in hints for each in _member(hint, name)]
        if inner == [Any]:
            inner = _group_schemas("/".join(names[: number + 1])) or inner
        hints = inner
    return hints[0] if hints and all(hint == hints[0] for hint in hints) else None


def _member(hint: Any, name: str) -> list[Any]:
    if is_dataclass(hint):
        known = {each.name for each in fields(hint)}
        return [typing.get_type_hints(hint)[name]] if name in known else []
    if hint is Any:
        return [Any]
    if hint is str:  # names in a mapping of texts may have dots
        return [str]
    return [typing.get_args(hint)[1]] if typing.get_origin(hint) is dict else []


def keep_yaml_text(config: Any, written: yaml.Node | None, hints: Hints, key: str = "") -> None:
    """Restore the text settings of a loaded file to the typed text, in place.

    Args:
        config: the file as OmegaConf loads it, with numbers and truth values for unquoted texts.
        written: its root node.
        hints: types of the settings.
        key: dotted name of the root node.
    """
    if isinstance(written, yaml.MappingNode) and isinstance(config, DictConfig):
        inner = [(name.value, node, f"{key}.{name.value}".lstrip(".")) for name, node in written.value]
    elif isinstance(written, yaml.SequenceNode) and isinstance(config, ListConfig):
        inner = [(number, node, key) for number, node in enumerate(written.value)]
    else:
        return
    for name, node, full_key in inner:
        missing = isinstance(config, DictConfig) and name not in config
        if missing or OmegaConf.is_missing(config, name) or OmegaConf.is_interpolation(config, name):
            continue
        if not isinstance(node, yaml.ScalarNode):
            keep_yaml_text(config[name], node, hints, full_key)
        elif isinstance(config[name], (int, float)):
            kind = hints(full_key)
            if kind is Any and isinstance(config, DictConfig) and not _NUMBER.fullmatch(node.value):  # spares an import
                kind = target_hint(key, config, name)
            kinds = [kind] if isinstance(config, DictConfig) else _inner(kind, (list, Sequence, tuple), 0)
            accepted = [numbers for numbers in map(_numbers, kinds) if numbers is not None]
            if accepted and _is_misread(config[name], node.value, accepted[0]):
                config[name] = node.value


def _group_schemas(group: str) -> list[Any]:
    """Return the dataclasses that a group's options have, for a group whose node is typed by them."""
    store = ConfigStore.instance()
    try:
        names = store.list(group)
    except OSError:
        return []
    found = [OmegaConf.get_type(store.load(f"{group}/{name}").node) for name in names if name.endswith(".yaml")]
    return [each for each in found if is_dataclass(each)]
