"""``python -m bincounter rules RUN``: what rules find in a run's records, by its own settings or by others."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bincounter.config.debugger import MEASURED, check_debugger
from bincounter.errors import UserError
from bincounter.inspect.rules.states import verdict_of
from bincounter.inspect.rules.verdicts import Verdicts
from bincounter.inspect.tensors.record import FOLDER, read_records

_KEY = "debugger.rules."


def overrides_of(run: Path, given: Sequence[str]) -> list[str]:
    """The overrides that make a configuration with a run's rules, changed as given.

    Args:
        run: the run's folder.
        given: overrides of the command line.

    Raises:
        UserError: the run has no rules, or something else than rules is to be changed.
    """
    for override in given:
        name, _, setting = override.partition("=")[0].removeprefix(_KEY).partition(".")
        if not override.startswith(_KEY):
            raise UserError(f"{override} is not about the rules: only {_KEY}RULE.SETTING=VALUE changes a verdict")
        if setting in MEASURED.get(name, ()):
            raise UserError(
                f"{_KEY}{name}.{setting} is a bound of what was counted while the run was recorded: it takes another "
                "run to change it"
            )
    return ["debugger=tensors", *_own(run), *given]


def _own(run: Path) -> list[str]:
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run} is no run folder (it holds no config.yaml): name the folder that train.py printed")
    stored = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("debugger") or {}
    if not (run / FOLDER / "losses.csv").is_file():
        raise UserError(f"{run} has no records: train with debugger=tensors to have some")
    rules: Mapping[str, Mapping[str, Any]] = stored.get("rules") or {}  # none where recording began in mid-run
    return [
        f"{_KEY}{name}.{setting}={json.dumps(value)}" for name, rule in rules.items() for setting, value in rule.items()
    ]


def judged(run: Path, debugger: Mapping[str, Any]) -> Verdicts:
    """What rules find in a run's records.

    Args:
        run: the run's folder.
        debugger: of a configuration, as plain containers.

    Raises:
        ConfigError: a setting is out of range.
        UserError: there are no records, or they are damaged.
    """
    check_debugger(debugger)
    verdicts = Verdicts(debugger["rules"])
    verdicts.judge_all(read_records(run / FOLDER))
    return verdicts


def render(verdicts: Verdicts) -> RenderableType:
    """One row per rule, and beneath a paragraph for each that found something."""
    rows = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in ("rule", "action", "verdict"):
        rows.add_column(column, no_wrap=True)
    rows.add_column("step", justify="right")
    for name, state in verdicts.states().items():
        found = state["state"] == "found"
        verdict = "found something" if found else verdict_of(state)
        style = "bold" if found else ""
        rows.add_row(Text(name, style), state["action"], Text(verdict, style), f"{state['step']:,}" if found else "")
    return Group(rows, *(Text(f"\n{verdict.sentence()}") for verdict in verdicts.found.values()))
