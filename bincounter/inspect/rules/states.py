"""What a run's rules found, read back from ``RUN/debugger/rules.json``."""

import json
from pathlib import Path
from typing import Any

from bincounter.errors import UserError

_SAID = {"off": "off", "waiting": "nothing to judge by", "passed": "nothing found"}
_DONE = {"warn": "warned", "stop": "stopped the run", "fail": "failed the run"}


def read_states(run: Path) -> list[dict[str, Any]]:
    """One row per rule, with ``rule, verdict, epoch, step, reason, advice``; none where nothing was recorded.

    Args:
        run: the run's folder.

    Raises:
        UserError: ``rules.json`` is damaged.
    """
    path = run / "debugger" / "rules.json"
    if not path.is_file():
        return []
    absent = {"reason": "", "advice": "", "step": None, "epoch": None}
    try:
        states = json.loads(path.read_text(encoding="utf-8"))
        return [{**absent, "rule": name, "verdict": verdict_of(state), **state} for name, state in states.items()]
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        answer = f"{path} is damaged ({type(error).__name__}): delete it; python -m bincounter rules reads the records"
        raise UserError(answer) from error


def verdict_of(state: dict[str, Any]) -> str:
    """A rule's state in words."""
    return _DONE[state["action"]] if state["state"] == "found" else _SAID[state["state"]]
