"""Reference of all settings, made from the schemas and the files in conf/ whenever the site is built."""

import ast
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from omegaconf import OmegaConf

from bincounter.config import deploy_schema, train_schema
from bincounter.config.checks import Bound, _hints, import_target

CONF = Path(__file__).resolve().parents[2] / "conf"
INTERNAL = {"container"}  # written by the program alone


@dataclass(frozen=True)
class Setting:
    """One row of the reference."""

    key: str
    type: str
    default: str
    allowed: str
    description: str


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each of ``train`` and ``deploy``."""
    for app in ("train", "deploy"):
        files.append(File.generated(config, f"reference/{app}.md", content=settings_page(app)))
    return files


# Settings: dataclasses.


@cache
def comments(schema: type) -> dict[str, str]:
    """Comments of a dataclass' own fields: behind each field, or in the lines above it."""
    source = textwrap.dedent(inspect.getsource(schema))
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        above = node.lineno - 1
        while lines[above - 1].lstrip().startswith("#"):
            above -= 1
        texts = [line.strip().lstrip("# ") for line in lines[above : node.lineno - 1]]
        behind = lines[node.end_lineno - 1][node.end_col_offset :].strip()  # type: ignore[operator]
        found[node.target.id] = " ".join([*texts, behind.lstrip("# ")]).strip()
    return found


def described(schema: type, name: str) -> str:
    """Comment of a field, which may be inherited."""
    return next((comments(each)[name] for each in schema.__mro__ if is_dataclass(each) and name in comments(each)), "")


def dataclass_settings(
    schema: type, prefix: str, *, own: bool = False, values: Mapping[str, Any] | None = None
) -> list[Setting]:
    """Rows of a dataclass without its nested ones.

    Args:
        schema: the dataclass.
        prefix: key of the node, with a dot at its end.
        own: leave inherited fields out.
        values: defaults from a YAML file, for fields that have none.
    """
    rows = []
    for each in fields(schema):
        if each.name == "kind" or is_dataclass(each.type) or (own and each.name not in comments(schema)):
            continue
        default = _default(each)
        if default is MISSING or default == "???":
            default = (values or {}).get(each.name, MISSING)
        rows.append(
            Setting(
                prefix + each.name,
                type_name(each.type),
                "" if default is MISSING else value_text(default),
                bounds_text(each.metadata.get("bound")),
                described(schema, each.name),
            )
        )
    return rows


def _default(each: "Field[Any]") -> Any:
    if each.default_factory is not MISSING:
        made = each.default_factory()
        return OmegaConf.to_container(made) if OmegaConf.is_config(made) else made
    return each.default


def type_name(hint: Any) -> str:
    """Name of a type, in the words of the pages."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_name(part) for part in typing.get_args(hint)))
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is list:
        return f"list of {type_name(arguments[0])}" if arguments else "list"
    if origin is typing.Literal:
        return " or ".join(dict.fromkeys(type_name(type(each)) for each in arguments))
    named = {dict: "mapping", type(None): "null", str: "text", typing.Any: "open"}
    return named.get(origin, getattr(origin, "__name__", str(origin)))


def value_text(value: Any) -> str:
    """A default as it is written on the command line."""
    return (
        value
        if isinstance(value, str)
        else yaml.safe_dump(value, default_flow_style=True, width=1e9).removesuffix("...\n").strip()
    )


def bounds_text(bound: Bound | None) -> str:
    """Allowed values of a bound, as text."""
    if bound is None:
        return ""
    if bound.choices:
        return ", ".join(f"`{choice}`" for choice in bound.choices)
    if bound.pattern:
        return bound.hint.partition(": ")[2]
    signs = {"≥": bound.ge, ">": bound.gt, "≤": bound.le}
    return ", ".join(f"{sign} {limit:,}" for sign, limit in signs.items() if limit is not None)


# Settings: YAML files.


def header(file: Path) -> str:
    """The comment at the top of an option's file, to its first empty line."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
    end = next((number for number, line in enumerate(lines) if not line.startswith("# ")), len(lines))
    return " ".join(line.lstrip("# ") for line in lines[:end])


def read(file: Path) -> dict[str, Any]:
    """Content of a YAML file."""
    return yaml.safe_load(file.read_text(encoding="utf-8")) or {}


def yaml_comments(file: Path) -> dict[str, str]:
    """Comments behind the keys of a YAML file, by dotted key."""
    found: dict[str, str] = {}
    path: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if entry := re.match(r"( *)(\w+):.*?(?:\s# ?(.*))?$", line):
            path[len(entry[1]) // 2 :] = [entry[2]]
            found[".".join(path)] = entry[3] or ""
    return found


def yaml_settings(file: Path, group: str, node: Mapping[str, Any], inner: str = "") -> list[Setting]:
    """Rows of an open node: the arguments of its targets, with the comments behind them.

    Args:
        file: which holds the node.
        group: of the file, as a key.
        node: as plain containers.
        inner: key of the node within the file, with a dot at its end.
    """
    notes = yaml_comments(file)
    hints = _hints(import_target(group, node["_target_"])) if "_target_" in node else {}
    rows = []
    for name, value in node.items():
        if isinstance(value, dict):
            rows += yaml_settings(file, group, value, f"{inner}{name}.")
        elif name not in ("_target_", "defaults"):
            kind = type_name(hints.get(name, type(value)))
            rows.append(Setting(f"{group}.{inner}{name}", kind, value_text(value), "", notes.get(inner + name, "")))
    return rows


def options(group: str) -> dict[str, Path]:
    """Files of a group's options, by name; first those that others build on."""
    files = [file for file in (CONF / group).glob("*.yaml") if file.stem not in INTERNAL]
    return {file.stem: file for file in sorted(files, key=lambda file: (len(_parents(group, file)), file.stem))}


def _parents(group: str, file: Path) -> list[Path]:
    """The options of the same group that an option starts from."""
    near = [CONF / group / f"{each}.yaml" for each in read(file).get("defaults", ()) if isinstance(each, str)]
    return [each for parent in near if parent.exists() for each in (*_parents(group, parent), parent)]


def option_schema(group: str, file: Path) -> type | None:
    """The dataclass behind an option, by the defaults lists of its file and of those that it starts from."""
    stored = ConfigStore.instance().repo.get(group, {})
    for each in (file, *_parents(group, file)):
        for name in read(each).get("defaults", ()):
            key = f"{name.partition('@')[0]}.yaml" if isinstance(name, str) else ""
            if key in stored:
                return OmegaConf.get_type(stored[key].node)
    return None


# Pages.


def table(rows: list[Setting]) -> str:
    """A table of settings."""
    lines = ["| setting | description | type | default | allowed |", "|---|---|---|---|---|"]
    for row in rows:
        default = f"`{row.default}`" if row.default else ""
        lines.append(f"| `{row.key}` | {cell(row.description)} | {row.type} | {default} | {cell(row.allowed)} |")
    return "\n".join(lines) if rows else ""


def cell(text: str) -> str:
    """A text in a table, with links to the pages that it names."""
    text = text.replace("|", "\\|").replace("<", "&lt;")
    return re.sub(r"docs/(\w+)\.md", r"[\1.md](../\1.md)", text)


def options_table(group: str, parts: "list[Part]") -> str:
    """A table of a group's options, with the values that each sets in the place of defaults."""
    described = [row for _, _, rows in parts for row in rows]
    keys = [row.key for row in described]
    defaults = {row.key: row.default for row in described if keys.count(row.key) == 1}
    key = group.replace("/", ".")
    rows = []
    for name, file in options(group).items():
        content = read(file)
        values = yaml_settings(file, key, content.get(group, content))
        changed = [f"`{row.key}={row.default}`" for row in values if defaults.get(row.key, row.default) != row.default]
        sets = f" Sets {', '.join(changed)}." if changed else ""
        rows.append(f"| `{group}={name}` | {cell(header(file).rstrip('.') + '.' + sets)} |")
    return "\n".join(["| option | description |", "|---|---|", *rows]) if rows else ""


Part = tuple[str, str, list[Setting]]
"""Title, sentence and rows of a table."""


def typed(
    schema: type, key: str, title: str, *, own: bool = False, values: Mapping[str, Any] | None = None
) -> Iterator[Part]:
    """The tables of a dataclass and those inside it."""
    yield title, inspect.getdoc(schema) or "", dataclass_settings(schema, f"{key}.".lstrip("."), own=own, values=values)
    for each in fields(schema):
        if is_dataclass(each.type) and (not own or each.name in comments(schema)):
            inner = f"{key}.{each.name}".lstrip(".")
            yield from typed(each.type, inner, f"`{inner}`")  # type: ignore[arg-type]


def group_parts(group: str, schema: type | None = None) -> Iterator[Part]:
    """The tables of a group.

    Args:
        group: its folder in conf/.
        schema: the dataclass of all its options; ``None`` where each option has its own, or none.
    """
    key = group.replace("/", ".")
    schemas = {name: schema or option_schema(group, file) for name, file in options(group).items()}
    default = CONF / group / "default.yaml"
    seen: list[type] = []
    for each in filter(None, schemas.values()):
        seen += [base for base in reversed(each.__mro__) if is_dataclass(base) and base not in seen]
    for each in seen:
        named = [f"`{group}={name}`" for name, found in schemas.items() if found and issubclass(found, each)]
        title = ", ".join(named) if len(named) < len(schemas) else f"`{key}`"
        yield from typed(each, key, title, own=True, values=read(default) if default.exists() else None)
    for name, file in options(group).items():
        content = read(file)
        if schemas[name]:  # open nodes inside a typed group
            content = {inner: node for inner, node in content.items() if isinstance(node, dict) and "_target_" in node}
        above = {row.key for parent in _parents(group, file) for row in yaml_settings(parent, key, read(parent))}
        rows = [row for row in yaml_settings(file, key, content) if row.key not in above]
        yield f"`{group}={name}`", "", rows


def group_sections(group: str, schema: type | None = None) -> Iterator[tuple[str, list[Part]]]:
    """A group's name and tables, then those of the groups inside it."""
    recipe = group in ("experiment", "debug", "hparams_search/space")  # they set what is described elsewhere
    yield group, [] if recipe else list(group_parts(group, schema))
    for inner in sorted(each for each in (CONF / group).iterdir() if each.is_dir()):
        yield from group_sections(f"{group}/{inner.name}")


def default_options(app: str) -> dict[str, Any]:
    """The groups of ``train`` or ``deploy``, and the option that each has by default."""
    listed = [each for each in read(CONF / f"{app}.yaml")["defaults"] if isinstance(each, dict)]
    return {name: option for each in listed for name, option in each.items()}


@cache
def reference(app: str) -> list[tuple[str, list[Part]]]:
    """All settings of ``train`` or ``deploy``: groups, and their tables."""
    module = {"train": train_schema, "deploy": deploy_schema}[app]
    module.register()
    schema = {"train": train_schema.TrainConfig, "deploy": deploy_schema.DeployConfig}[app]
    groups = list(default_options(app))
    kinds = {each.name: each.type for each in fields(schema) if is_dataclass(each.type)}
    top = [
        (title, sentence, [row for row in rows if row.key not in groups])
        for title, sentence, rows in typed(schema, "", "`General`")
        if title.strip("`").partition(".")[0] not in groups
    ]
    found = [("General", top)]
    for group in groups:
        if group != "hydra":
            found += group_sections(group, kinds.get(group))  # type: ignore[arg-type]
    return found


def settings(app: str) -> list[Setting]:
    """All rows of a page."""
    return [row for _, parts in reference(app) for _, _, rows in parts for row in rows]


def settings_page(app: str) -> str:
    """The page of all settings of ``train`` or ``deploy``."""
    lines = [
        f"# Settings of {app}",
        f"Write a setting as `bincounter {app} key=value`, or, in a checkout, `python {app}.py key=value`, and the "
        f"option of a group as `group=option`. `bincounter {app} --cfg job` prints the composed configuration with "
        "every value. Descriptions of quantities begin with their unit. `null` is no value; an *open* setting takes "
        "whatever fits its description.",
    ]
    chosen = default_options(app)
    for group, parts in reference(app):
        lines += [f"## {group}", f"Default: `{group}={value_text(chosen[group])}`." if chosen.get(group) else ""]
        lines.append("" if group == "General" else options_table(group, parts))
        for title, sentence, rows in parts:
            lines += [f"### {title}" if title != f"`{group}`" else "", sentence, table(rows)] if rows else []
    return "\n\n".join(filter(None, lines)) + "\n"
