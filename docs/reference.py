"""Reference pages, made from the schemas, the files in conf/ and the parser of commands whenever the site is built."""

import argparse
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
from mkdocs.structure.pages import Page
from omegaconf import OmegaConf

from bincounter import errors
from bincounter.cli import main as commands
from bincounter.config import deploy_schema, train_schema
from bincounter.config.checks import Bound, _hints, import_target

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
# Pages of the site that are files at the root, by their names there. Links to them are rewritten.
ROOT_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "LICENSE": "licence.txt",
}
OPEN_GROUPS = ("objective", "callbacks", "logger", "trainer")
RECIPES = ("experiment", "debug")
INTERNAL = {"container"}  # written by the program alone


@dataclass(frozen=True)
class Setting:
    """One row of the reference."""

    key: str
    type: str
    default: str
    allowed: str
    description: str


# What mkdocs calls.


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    made = {"reference/train.md": train_page(), "reference/deploy.md": deploy_page(), "reference/commands.md": commands_page()}
    for name, page in ROOT_PAGES.items():
        if (ROOT / name).exists():
            made[page] = _at_home((ROOT / name).read_text(encoding="utf-8"))
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put drawings into the page itself, where they follow its light and dark colours."""
    return re.sub(
        r'<img alt="[^"]*" src="[./]*images/(\w+)\.svg" ?/?>',
        lambda image: (ROOT / "docs/images" / f"{image[1]}.svg").read_text(encoding="utf-8"),
        html,
    )


def _at_home(text: str) -> str:
    for name, page in ROOT_PAGES.items():
        text = text.replace(f"]({name}", f"]({page}")
    return re.sub(r"\]\(docs/", "](", text)


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


def dataclass_settings(schema: type, prefix: str, *, own: bool = False, values: Mapping[str, Any] | None = None) -> list[Setting]:
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
        return " or ".join(map(repr, arguments))
    named = {dict: "mapping", type(None): "null", str: "text", typing.Any: "open"}
    return named.get(origin, getattr(origin, "__name__", str(origin)))


def value_text(value: Any) -> str:
    """A default as it is written on the command line."""
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=1e9).removesuffix("...\n").strip()


def bounds_text(bound: Bound | None) -> str:
    """What a bound allows."""
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
    """The comment at the top of an option's file."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.lstrip("# ") for line in lines[:end])


def yaml_settings(file: Path, prefix: str) -> list[Setting]:
    """Rows of an open node: the arguments of its target, with the comments behind them."""
    content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    notes = dict(re.findall(r"^\s*(\w+):.*?\s# ?(.*)$", file.read_text(encoding="utf-8"), re.MULTILINE))

    def rows(node: Mapping[str, Any], key: str) -> Iterator[Setting]:
        hints = _hints(import_target(key, node["_target_"])) if "_target_" in node else {}
        for name, value in node.items():
            if isinstance(value, dict):
                yield from rows(value, f"{key}{name}.")
            elif name not in ("_target_", "defaults"):
                kind = type_name(hints[name]) if name in hints else type_name(type(value))
                yield Setting(f"{key}{name}", kind, value_text(value), "", notes.get(name, ""))

    return list(rows(content, prefix))


def options(group: str) -> dict[str, Path]:
    """Files of a group's options, by name."""
    return {file.stem: file for file in sorted((CONF / group).glob("*.yaml")) if file.stem not in INTERNAL}


def option_schema(group: str, option: str) -> type | None:
    """The dataclass behind an option, by the defaults list of its file."""
    text = options(group)[option].read_text(encoding="utf-8") if option in options(group) else ""
    stored = ConfigStore.instance().repo.get(group, {})
    for name in re.findall(r"\w+", " ".join(re.findall(r"^defaults:.*(?:\n +- .*)*", text, re.MULTILINE))):
        if f"{name}.yaml" in stored:
            return OmegaConf.get_type(stored[f"{name}.yaml"].node)
        if name != option and name in options(group) and (found := option_schema(group, name)):
            return found
    return None


# Pages.


def table(rows: list[Setting]) -> str:
    """A table of settings."""
    if not rows:
        return ""
    lines = ["| setting | type | default | allowed | |", "|---|---|---|---|---|"]
    for row in rows:
        default = f"`{row.default}`" if row.default else ""
        cells = [f"`{row.key}`", row.type, default, row.allowed, row.description]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def options_table(group: str) -> str:
    """A table of a group's options."""
    rows = [f"| `{group}={name}` | {header(file)} |" for name, file in options(group).items()]
    return "\n".join(["| option | |", "|---|---|", *rows])


def nested(schema: type, prefix: str) -> Iterator[tuple[str, type]]:
    """The dataclasses inside a dataclass, with their keys."""
    for each in fields(schema):
        if is_dataclass(each.type):
            yield prefix + each.name, each.type  # type: ignore[misc]
            yield from nested(each.type, f"{prefix}{each.name}.")  # type: ignore[arg-type]


def sections(group: str) -> Iterator[tuple[str, str, list[Setting]]]:
    """Title, sentence and rows of each part of a typed group."""
    classes = {name: schema for name in options(group) if (schema := option_schema(group, name))}
    values = yaml.safe_load((CONF / group / "default.yaml").read_text()) if (CONF / group / "default.yaml").exists() else {}
    seen: list[type] = []
    for schema in classes.values():
        seen += [each for each in reversed(schema.__mro__) if is_dataclass(each) and each not in seen]
    for schema in seen:
        of = [f"`{group}={name}`" for name, each in classes.items() if issubclass(each, schema)]
        title = ", ".join(of) if len(of) < len(classes) else f"`{group}`"
        if rows := dataclass_settings(schema, f"{group}.", own=True, values=values):
            yield title, inspect.getdoc(schema) or "", rows
        for key, inner in nested(schema, f"{group}."):
            yield f"`{key}`", inspect.getdoc(inner) or "", dataclass_settings(inner, f"{key}.")
