"""``Rule``, the base class of rules on records, and ``Finding``; reader of rules.json."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

from bincounter.debugger.tensor_records import EpochRecord, Record, StepRecord
from bincounter.files import check_mapping, read_file
from bincounter.names import first_of

_NAMED = 3  # tensors in a sentence


@dataclass(frozen=True, slots=True)
class Finding:
    """Finding of a rule.

    Attributes:
        reason: a clause with the numbers, without a period.
        advice: a sentence with settings to try, without its period.
        diverged: the model holds or produces values that are not finite, so that its weights cannot be scored.
    """

    reason: str
    advice: str
    diverged: bool = False


class Rule:
    """Base class: one rule over one run, a function of its records only, so that it can be evaluated again later.

    Args:
        settings: ``debugger.rules.<name>``.

    Attributes:
        judged: the records were sufficient for a verdict.
    """

    name: ClassVar[str]

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self.judged = False

    def judge(self, record: Record) -> Finding | None:
        """Evaluate a record; return a finding, if any."""
        return self.step(record) if isinstance(record, StepRecord) else self.epoch(record)

    def step(self, record: StepRecord) -> Finding | None:
        """Evaluate a recorded step."""

    def epoch(self, record: EpochRecord) -> Finding | None:
        """Evaluate the end of an epoch."""


class Streaks:
    """Number of consecutive recorded steps in which a condition holds, per tensor.

    Args:
        patience: number of consecutive steps for a finding.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._lengths: Counter[str] = Counter()

    def add(self, names: Iterable[str]) -> list[str]:
        """Add a step with the tensors that meet the condition; return those that have met it ``patience`` times."""
        self._lengths = Counter({name: self._lengths[name] + 1 for name in names})
        return [name for name, length in self._lengths.items() if length >= self._patience]


def format_tensors(values: Mapping[str, str]) -> str:
    """Format the first few tensors, with a number each: ``a (1e-8), b (0) and 5 more``."""
    return first_of([f"{name} ({value})" for name, value in values.items()], _NAMED)


_STATES = {"off": "off", "waiting": "not enough data", "passed": "nothing found"}
_ACTIONS = {"warn": "warned", "stop": "stopped the run", "fail": "failed the run"}


def read_verdicts(run: Path) -> list[dict[str, Any]]:
    """Read one row per rule: ``rule, verdict, epoch, step, reason, advice``; none if nothing was recorded.

    Args:
        run: the run's folder.

    Raises:
        UserError: ``rules.json`` is corrupt.
    """
    advice = "delete it; bincounter rules reads the records"
    return read_file(run / "debugger" / "rules.json", _verdicts, advice) or []


def _verdicts(file: IO[str]) -> list[dict[str, Any]]:
    absent = {"reason": "", "advice": "", "step": None, "epoch": None}
    states = check_mapping(json.load(file))
    return [{**absent, "rule": name, "verdict": verdict_of(state), **state} for name, state in states.items()]


def verdict_of(state: dict[str, Any]) -> str:
    """Return a rule's state in words."""
    return _ACTIONS[state["action"]] if state["state"] == "found" else _STATES[state["state"]]
