"""Reference of all commands, made from the parser whenever the site is built."""

import argparse

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from bincounter.cli.main import _parser


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    return files


def commands_page() -> str:
    """The page of all commands, from the parser."""
    parser, _ = _parser()
    (subparsers,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    lines = [
        "# Commands",
        "Write `bincounter COMMAND` or `python -m bincounter COMMAND`. In a checkout, `python train.py` and "
        "`python deploy.py` are `bincounter train` and `bincounter deploy`. `--help` explains each.",
        "| command | effect |\n|---|---|",
    ]
    helps = {each.dest: each.help or "" for each in subparsers._choices_actions}
    lines[-1] += "".join(f"\n| [`{name}`](#{name}) | {_cell(helps[name])} |" for name in subparsers.choices)
    for name, command in subparsers.choices.items():
        lines += [f"## {name}", _cell(f"{helps[name][0].upper()}{helps[name][1:]}.")]
        if name in ("train", "deploy"):
            lines.append(HYDRA_COMMANDS[name])
            continue
        command.prog = f"bincounter {name}"
        lines.append(f"```text\n{' '.join(command.format_usage().split())}\n```")
        rows = [each for each in command._actions if not isinstance(each, argparse._HelpAction)]
        if rows:
            lines.append("| argument | description |\n|---|---|" + "".join(map(_argument, rows)))
    lines += ["## Exit codes", EXIT_CODES]
    return "\n\n".join(lines) + "\n"


def _argument(action: argparse.Action) -> str:
    shape = action.metavar or ("{" + ",".join(action.choices) + "}" if action.choices else action.dest.upper())
    name = f"{', '.join(action.option_strings)} {shape if action.nargs != 0 else ''}".strip()
    return f"\n| `{_cell(name)}` | {_cell(action.help or '')} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


HYDRA_COMMANDS = {
    "train": """```text
bincounter train [-m] [--cfg job] [--config-dir DIR] [group=option ...] [key=value ...]
```

| argument | description |
|---|---|
| `group=option`, `key=value` | [settings of train](train.md) |
| `-m` | one run for each combination of listed values, or a [search](../sweeps.md) |
| `--cfg job` | print the composed configuration, and run nothing |
| `--config-dir DIR` | a folder with further options of your own, as in `conf/` |
| `--help`, `--hydra-help` | the groups and their options; all that Hydra offers |""",
    "deploy": """```text
bincounter deploy [--cfg job] [--config-dir DIR] [group=option ...] [key=value ...]
```

The arguments are those of `train`, with the [settings of deploy](deploy.md).""",
}
EXIT_CODES = """| code | meaning |
|---|---|
| 0 | done |
| 1 | failed: a fault of the machine, the network or the program |
| 2 | a setting or an input has to be changed; the message says which |
| 143 | stopped by SIGTERM, with a checkpoint to resume from |"""
