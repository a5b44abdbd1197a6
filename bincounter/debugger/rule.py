"""What a rule is (``Rule``, ``Finding``); rules.json read back."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bincounter.debugger.tensor_records import EpochRecord, Record, StepRecord
from bincounter.errors import UserError

_NAMED = 3  # tensors in a sentence


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found.

    Attributes:
        reason: a sentence with the numbers.
        advice: what to do about it, a sentence.
        diverged: the model holds or makes numbers that are none, so that its present weights are worth no score.
    """

    reason: str
    advice: str
    diverged: bool = False


class Rule:
    """One rule over one run. It depends on nothing but the records, so that it can be asked again later.

    Args:
        settings: ``debugger.rules.<name>``.

    Attributes:
        judged: whether there was enough to judge by yet.
    """

    name: ClassVar[str]

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self.judged = False

    def judge(self, record: Record) -> Finding | None:
        """Take a record, and say what is wrong, if anything is."""
        return self.step(record) if isinstance(record, StepRecord) else self.epoch(record)

    def step(self, record: StepRecord) -> Finding | None:
        """Take a recorded step."""

    def epoch(self, record: EpochRecord) -> Finding | None:
        """Take the end of an epoch."""


class Streaks:
    """How many recorded steps in a row something was true of each tensor.

    Args:
        patience: of them that are enough.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._lengths: Counter[str] = Counter()

    def longest(self, true: Iterable[str]) -> list[str]:
        """Take the names of which it is true in this step; those of which it was often enough."""
        self._lengths = Counter({name: self._lengths[name] + 1 for name in true})
        return [name for name, length in self._lengths.items() if length >= self._patience]


def named(values: Mapping[str, str]) -> str:
    """Tensors with a number each, the first few of them: ``a (1e-8), b (0) and 5 more``."""
    shown = [f"{name} ({value})" for name, value in list(values.items())[:_NAMED]]
    more = len(values) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


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
