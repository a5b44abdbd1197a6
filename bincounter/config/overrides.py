"""One-line error messages for wrong overrides, filters of overrides by key, and the recipe of a data set."""

import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, ValueType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bincounter.config.checks import argument_hint, argument_names
from bincounter.config.quoting import Hints, override_of, parse, schema_hint, shell_command
from bincounter.errors import ConfigError, closest_match
from bincounter.redaction import MASK, mask_argument

_OPTIONAL = {"experiment", "hparams_search", "debug"}
"""Groups that a command can be without, and those in them."""

Compose = Callable[[list[str]], DictConfig]
Groups = Mapping[str, Sequence[str]]
"""Options by group."""
INTERNAL = {("launcher", "container")}
"""Options that bincounter itself chooses; so are all that are named after a schema."""


_RECIPES = {"abid": "abid_small_moderate"}
_CHOICES = {"experiment", "model", "model/optimizer", "objective", "callbacks", "hparams_search"}
"""Groups of a recipe: an own choice of one turns the recipe of a data set off."""


def with_recipe(overrides: list[str]) -> list[str]:
    """Add the experiment that counts best on a data set, if overrides name the data set, its source, and no recipe.

    Args:
        overrides: of ``bincounter train``. A sweep over data sets has no recipe, and a run that is resumed or scored
            keeps its own.

    Returns:
        All overrides.
    """
    recipe = _recipe(overrides)
    if recipe is None:
        return overrides
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{recipe[0]}: trained as {recipe[1]}; add model=resnet50 for the default", file=sys.stderr)
    return [recipe[1], *overrides]


def without_recipe(overrides: list[str]) -> list[str]:
    """Overrides of a part of a search, which has no recipe: as they are, also without the search."""
    return overrides if _recipe(overrides) is None else ["~experiment", *overrides]


def _recipe(overrides: list[str]) -> tuple[str, str] | None:
    """Return the choice of a data set, and that of its recipe."""
    given = {each.key_or_group: each for each in OverridesParser.create().parse_overrides(overrides)}
    chosen = given["data"].value() if "data" in given and not given["data"].is_sweep_override() else None
    recipe = _RECIPES.get(str(chosen))
    if recipe is None or "data.source" not in given or given.keys() & _CHOICES or _is_a_run(given):
        return None
    return f"data={chosen}", f"experiment={recipe}"


def _is_a_run(given: Mapping[str, Override]) -> bool:
    """Return False for a start that ``ckpt_path=last`` makes restartable."""
    if "ckpt_path" not in given:
        return False
    folder = given["paths.output_dir"].value() if "paths.output_dir" in given else None
    return given["ckpt_path"].value() != "last" or folder is None or (Path(str(folder)) / "overrides.txt").exists()


def explain_override_error(
    error: Exception, overrides: list[str], groups: Groups, compose: Compose, command: str
) -> str:
    """Explain in one line which override made Hydra raise ``error``.

    Args:
        error: a HydraException or an OmegaConf error; its ``composed``, if any, is the configuration before overrides.
        overrides: the command line's overrides.
        groups: of the configuration.
        compose: turns overrides into a configuration.
        command: that was started, such as ``train``.
    """
    if isinstance(error, OverrideParseException):
        return _unparsable(error.override)

    @functools.cache
    def settings() -> DictConfig | None:
        return getattr(error, "composed", None) or compose_groups(choices_of(overrides, groups), compose)

    for override in OverridesParser.create().parse_overrides(overrides):
        reason = (
            _misplaced(override, groups, error, command)
            or _unknown_option(override, groups)
            or _unknown_key(override, groups, settings, command)
        )
        if reason:
            return reason
    return wrong_value(error)


def check_overrides(overrides: list[str], groups: Groups, *, internal: bool = False) -> None:
    """Reject overrides for which Hydra raises a traceback, or that it accepts though they are not for users.

    Args:
        overrides: of the command line.
        groups: of the configuration.
        internal: accept internal options.

    Raises:
        ConfigError: with the next step.
        HydraException: an override cannot be parsed.
    """
    for override in OverridesParser.create().parse_overrides(overrides):
        group, options = override.key_or_group, groups.get(override.key_or_group)
        if not group:
            raise ConfigError(f"the override {override.input_line!r} has no key: write KEY=VALUE, as in seed=3")
        if options is None:
            continue
        if override.is_delete() and group.partition("/")[0] not in _OPTIONAL:
            instead = f"write {group}=none" if "none" in options else f"choose one of {', '.join(options)}"
            raise ConfigError(f"{override.input_line}: {group} cannot be left out: {instead}")
        if override.is_delete():
            continue
        text = override.get_value_string().strip("'\"")
        if text == "null":
            raise ConfigError(f"{group}=null is not an option: choose one of {', '.join(options)}, or remove it")
        for option in re.findall(r"[\w-]+", text):
            if not internal and option not in options and is_internal(group, option):
                raise ConfigError(f"{group}={option} is not one of {', '.join(options)}")


def list_options(override: str, groups: Groups) -> str:
    """Replace ``glob(...)`` by the options that it matches, if any; Hydra overlooks those of ``hydra.searchpath``."""
    parsed = parse(override)
    pattern = parsed.value()
    matching: list[str] = pattern.filter(groups.get(parsed.key_or_group, [])) if isinstance(pattern, Glob) else []
    return f"{parsed.get_key_element()}={','.join(matching)}" if matching else override


def is_internal(group: str, option: str) -> bool:
    """Return True if an option is not for users."""
    return (group, option) in INTERNAL or option == "schema" or option.endswith("_schema")


def read_groups(folders: Sequence[Path], primary: DictConfig) -> Groups:
    """Read the groups that a configuration has among its defaults, with their options.

    Args:
        folders: of configuration files.
        primary: the primary file.
    """
    defaults = OmegaConf.select(primary, "defaults") or []
    used = {group for entry in defaults if isinstance(entry, DictConfig) for group in entry}
    found: dict[str, set[str]] = {}
    for folder in folders:
        for path in folder.rglob("*.yaml"):
            group = path.parent.relative_to(folder).as_posix()
            if group.partition("/")[0] in used and not is_internal(group, path.stem):
                found.setdefault(group, set()).add(path.stem)
    return {group: sorted(options) for group, options in sorted(found.items())}


def _unparsable(override: str) -> str:
    key, equals, text = override.partition("=")
    if mask_argument(override) != override:
        return f"the override {key}={MASK} cannot be parsed: put its value in single quotes, inside the shell's"
    if not equals or not re.fullmatch(r"\+{0,2}[\w./@-]+", key):
        return f"the override {override!r} cannot be parsed: write KEY=VALUE, as in data.batch_size=64"
    if text.strip()[:1] in ("[", "{"):
        return f"the override {override!r} cannot be parsed: check its brackets and quotes, as in 'data.counts=[0,1,2]'"
    try:
        parse(override_of(key, text))
    except HydraException:
        return f"the override {override!r} cannot be parsed: names in its key begin with a letter or _"
    one = shell_command(settings={key: text})
    return f"the override {override!r} cannot be parsed: check its brackets and quotes, or write one text as {one}"


def _misplaced(override: Override, groups: Groups, error: Exception, command: str) -> str | None:
    """Message for an override that works in another form."""
    key, text = override.key_or_group, override.input_line or ""
    if override.is_add() and (key in groups or f"An item is already at '{key}'" in str(error)):
        return f"{text}: {key} is there already: write {shell_command(text.lstrip('+'))}, without +"
    group = {"hydra/sweeper": "hparams_search", "hydra/launcher": "launcher"}.get(key, "")
    if group in groups and isinstance(error, MissingConfigException):
        options = [f"{group}={option}" for option in groups[group]]
        named = f"{group}={override.value()}"
        return f"{text} is chosen by {group} here: write {named if named in options else ' or '.join(options)}"
    if override.value_type == ValueType.SIMPLE_CHOICE_SWEEP and f"Ambiguous value for argument '{text}'" in str(error):
        one = shell_command(settings={override.get_key_element(): override.get_value_string()})
        sweep = "add -m to try each, or " if command == "train" else ""
        return f"{text} lists several values: {sweep}write {one} for one text"
    return None


def unknown_setting(key: str, cfg: DictConfig) -> str | None:
    """Message for a key that a configuration does not have, with the nearest spelling; ``None`` if it has it."""
    known = _keys(cfg)
    return None if key in known else f"Unknown setting '{key}'{_suggestion(key, known, 'train')}"


def _unknown_option(override: Override, groups: Groups) -> str | None:
    options = groups.get(override.key_or_group)
    if options is None or override.is_delete():
        return None
    value = override.value()
    for option in value if isinstance(value, list) else [value]:
        if isinstance(option, str) and option not in options and "," not in option:
            guess = closest_match(option, options)
            hint = f"; did you mean {override.key_or_group}={guess}?" if guess else ""
            return f"{override.key_or_group}={option} is not one of {', '.join(options)}{hint}"
    return None


def _unknown_key(
    override: Override, groups: Groups, settings: Callable[[], DictConfig | None], command: str
) -> str | None:
    key = override.key_or_group
    if override.is_add() or override.is_delete() or key in groups or key.startswith("hydra"):
        return None
    cfg = settings()
    if cfg is None or OmegaConf.select(cfg, key, throw_on_missing=False) is not None or key in _keys(cfg):
        return None
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent, throw_on_missing=False) if parent else None
    if isinstance(node, DictConfig) and name in argument_names(parent, node):
        return (
            f"{key} is not among the settings of {parent}, and an argument of {node['_target_']}: add it with "
            f"{shell_command(f'+{override.input_line}')}"
        )
    known = _keys(cfg) | set(groups)
    return f"Unknown setting '{key}'{_suggestion(key, known, command)}"


def setting_hints(root: type, compose: Callable[[], DictConfig | None]) -> Hints:
    """Return a function for the type of a setting: by the schemas, in open nodes by the signature of ``_target_``.

    Args:
        root: dataclass of the whole configuration.
        compose: returns one with the nodes of the settings, for those in open nodes; ``None`` if there is none.
    """

    def hint(key: str) -> Any:
        known = schema_hint(key, root)
        if known is not Any:
            return known
        cfg = compose()
        return None if cfg is None else argument_hint(key, cfg)

    return hint


def compose_groups(overrides: list[str], compose: Compose) -> DictConfig | None:
    """Compose choices of groups, of a sweep the first one: all settings that a key can name."""
    choices = []
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.value_type in (ValueType.CHOICE_SWEEP, ValueType.SIMPLE_CHOICE_SWEEP):
            first = next(override.sweep_string_iterator())
            choices.append(f"{override.get_key_element()}={first}")
        elif not override.is_sweep_override() and override.input_line:
            choices.append(override.input_line)
    try:
        return compose(choices)
    except (HydraException, OmegaConfBaseException):
        return None


def choices_of(overrides: Iterable[str], groups: Groups) -> list[str]:
    """Return the overrides that decide which settings there are: options of groups, folders of them, classes."""

    def chooses(override: str) -> bool:
        key = override.lstrip("+~").split("=")[0]
        return key.split("@")[0] in groups or key == "hydra.searchpath" or key.endswith("._target_")

    return list(filter(chooses, overrides))


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
    return f"; bincounter {command} --cfg job prints all settings"


def wrong_value(error: Exception) -> str:
    """OmegaConf's own message, prefixed with its key."""
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__
    text = str(cause).strip() or str(error).strip()
    key = getattr(cause, "full_key", None) or _labelled(text, "full_key")
    sentence = re.sub(r"\s+", " ", text.split("\n    full_key:")[0].split("\nfull_key")[0])
    optional = re.fullmatch(r"field '(.+)' is not Optional", sentence)
    if optional:
        key = optional[1]
        sentence = f"{key}=null: this setting cannot be null: write a value, or remove it to keep the default"
    if key and "dots" not in sentence and ".." in sentence:
        sentence += "; a range is written out, as in [0,1,2,3,4,5]"
    if key and "is not a ListConfig" in sentence:
        sentence = f"this takes a list: write it in brackets, as in '{key}=[first,second]'"
    return f"{key}: {sentence}" if key and key not in sentence.split(":")[0] else sentence


def _labelled(text: str, label: str) -> str | None:
    found = re.search(rf"{label}: (\S+)", text)
    return found.group(1) if found else None


LAUNCH_KEYS = ("launcher", "dry_run", "hparams_search")
"""Keys that control the launch of a run; they do not change the run itself."""


def drop_overrides(overrides: Sequence[str], *keys: str) -> list[str]:
    """Overrides without those of ``keys`` and of the keys below them."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [
        override.input_line
        for override in parsed
        if override.input_line
        and not any(f"{override.key_or_group.replace('/', '.')}.".startswith(f"{key}.") for key in keys)
    ]
