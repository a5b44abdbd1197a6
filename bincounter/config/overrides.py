"""One-line error messages for wrong overrides, and filters of overrides by key."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bincounter.errors import ConfigError, closest_match

Compose = Callable[[list[str]], DictConfig]


def explain_override_error(error: Exception, overrides: list[str], primary: Path, compose: Compose) -> str:
    """Explain in one line which override made Hydra raise ``error``.

    Args:
        error: a HydraException or an OmegaConf error.
        overrides: the command line's overrides.
        primary: the YAML file composition starts at; the folders beside it are the groups.
        compose: turns overrides into a configuration.
    """
    if isinstance(error, OverrideParseException):
        return (
            f"the override {error.override!r} cannot be parsed: write KEY=VALUE, and quote what the shell would "
            "split, as in 'data.counts=[0,1,2]'"
        )
    parser = OverridesParser.create()
    for override in parser.parse_overrides(overrides):
        reason = _unknown_option(override, primary) or _unknown_key(override, primary, overrides, compose)
        if reason:
            return reason
    return wrong_value(error)


def check_null_groups(overrides: list[str], primary: Path) -> None:
    """Reject ``group=null``, for which Hydra raises a traceback.

    Raises:
        ConfigError: naming the group's options.
        HydraException: an override cannot be parsed.
    """
    nulls = [each for each in overrides if each.endswith("=null")]
    for override in OverridesParser.create().parse_overrides(nulls):
        options = _groups(primary).get(override.key_or_group)
        if options is not None and not override.is_delete():
            raise ConfigError(
                f"{override.key_or_group}=null is not an option: choose one of {', '.join(options)}, or remove it"
            )


def unknown_setting(key: str, cfg: DictConfig) -> str | None:
    """Message for a key that a configuration does not have, with the nearest spelling; ``None`` if it has it."""
    known = _keys(cfg)
    return None if key in known else f"Unknown setting '{key}'{_suggestion(key, known, 'train.py')}"


def _groups(primary: Path) -> dict[str, list[str]]:
    """Options by group, of the groups that ``primary`` has among its defaults."""
    defaults = OmegaConf.select(OmegaConf.load(primary), "defaults")
    used = {group for entry in defaults if isinstance(entry, DictConfig) for group in entry}
    folders = [p for p in primary.parent.rglob("*") if p.is_dir() and any(p.glob("*.yaml"))]
    names = {folder.relative_to(primary.parent).as_posix(): folder for folder in folders}
    return {
        name: sorted(p.stem for p in folder.glob("*.yaml"))
        for name, folder in names.items()
        if name.partition("/")[0] in used
    }


def _unknown_option(override: Override, primary: Path) -> str | None:
    options = _groups(primary).get(override.key_or_group)
    if options is None or override.is_delete():
        return None
    value = override.value()
    for option in value if isinstance(value, list) else [value]:
        if isinstance(option, str) and option not in options and "," not in option:
            guess = closest_match(option, options)
            hint = f"; did you mean {override.key_or_group}={guess}?" if guess else ""
            return f"{override.key_or_group}={option} is not one of {', '.join(options)}{hint}"
    return None


def _unknown_key(override: Override, primary: Path, overrides: list[str], compose: Compose) -> str | None:
    key = override.key_or_group
    if override.is_add() or override.is_delete() or key in _groups(primary) or key.startswith("hydra"):
        return None
    cfg = _composed_groups(overrides, primary, compose)
    if cfg is None or OmegaConf.select(cfg, key, throw_on_missing=False) is not None or key in _keys(cfg):
        return None
    known = _keys(cfg) | set(_groups(primary))
    return f"Unknown setting '{key}'{_suggestion(key, known, f'{primary.stem}.py')}"


def _composed_groups(overrides: list[str], primary: Path, compose: Compose) -> DictConfig | None:
    """The configuration that the group choices alone compose: all settings a key can name."""
    groups = _groups(primary)
    choices = [o for o in overrides if o.lstrip("+~").split("=")[0].split("@")[0] in groups]
    try:
        return compose(choices)
    except (HydraException, OmegaConfBaseException):
        return None


def _keys(cfg: DictConfig) -> set[str]:
    """Every dotted name in a configuration, inner nodes included."""

    def walk(node: DictConfig, prefix: str) -> Iterable[str]:
        for name in map(str, node):
            yield f"{prefix}{name}"
            child = node._get_node(name)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
                yield from walk(child, f"{prefix}{name}.")

    return set(walk(cfg, ""))


def _suggestion(key: str, known: set[str], command: str) -> str:
    parent, _, name = key.rpartition(".")
    siblings = sorted(k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == parent)
    guess = closest_match(name, siblings)
    if guess:
        meant = f"{parent}.{guess}" if parent else guess
        return f"; did you mean '{meant}'? {parent or 'The top level'} has {', '.join(siblings)}"
    guess = closest_match(key, known) or next((k for k in sorted(known) if k.endswith(f".{name}")), None)
    if guess:
        return f"; did you mean '{guess}'?"
    if siblings:
        return f"; {parent or 'the top level'} has {', '.join(siblings)}"
    return f"; python {command} --cfg job prints all settings"


def wrong_value(error: Exception) -> str:
    """OmegaConf's own message, prefixed with its key."""
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__
    text = str(cause).strip() or str(error).strip()
    key = getattr(cause, "full_key", None) or _labelled(text, "full_key")
    sentence = re.sub(r"\s+", " ", text.split("\n    full_key:")[0].split("\nfull_key")[0])
    if key and "dots" not in sentence and ".." in sentence:
        sentence += "; a range is written out, as in [0,1,2,3,4,5]"
    if key and "is not a ListConfig" in sentence:
        sentence = f"this takes a list: write it in brackets, as in '{key}=[first,second]'"
    return f"{key}: {sentence}" if key and key not in sentence.split(":")[0] else sentence


def _labelled(text: str, label: str) -> str | None:
    found = re.search(rf"{label}: (\S+)", text)
    return found.group(1) if found else None


LAUNCH_KEYS = ("launcher", "dry_run", "hparams_search")
"""Keys for where and why a run is started; they do not change the run itself."""


def drop_overrides(overrides: Sequence[str], *keys: str) -> list[str]:
    """Overrides without those of ``keys`` and of the keys below them."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [
        override.input_line
        for override in parsed
        if override.input_line
        and not any(f"{override.key_or_group.replace('/', '.')}.".startswith(f"{key}.") for key in keys)
    ]
