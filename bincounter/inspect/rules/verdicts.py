"""All rules over one run: what they found so far, in ``RUN/debugger/rules.json`` and in the report."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bincounter.files import write_text
from bincounter.inspect.rules.imbalance import ClassImbalance
from bincounter.inspect.rules.initialization import PoorWeightInitialization
from bincounter.inspect.rules.losses import LossNotDecreasing, Overfit, Overtraining
from bincounter.inspect.rules.rule import Finding, Rule
from bincounter.inspect.rules.values import DeadRelu, ExplodingTensor, SaturatedActivation, VanishingGradient
from bincounter.inspect.tensors.record import Record

RULES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (
        LossNotDecreasing,
        Overfit,
        Overtraining,
        VanishingGradient,
        ExplodingTensor,
        PoorWeightInitialization,
        DeadRelu,
        ClassImbalance,
        SaturatedActivation,
    )
}
"""Rules by name, in the order they are shown."""

_SEVERITY = ("warn", "stop", "fail")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A rule that has found something.

    Attributes:
        rule: its name.
        action: ``warn``, ``stop`` or ``fail``.
        epoch: counted from 0.
        step: optimizer steps before the one that it found it in.
        finding: what it is.
    """

    rule: str
    action: str
    epoch: int
    step: int
    finding: Finding

    def sentence(self) -> str:
        """What is logged."""
        place = f"step {self.step}, epoch {self.epoch + 1}"
        return f"Rule {self.rule} at {place}: {self.finding.reason}. {self.finding.advice}."


class Verdicts:
    """Rules that have not found anything yet, and what the others did.

    Args:
        settings: ``debugger.rules``.
    """

    def __init__(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        self._settings = settings
        self._open = {name: rule(settings[name]) for name, rule in RULES.items() if settings[name]["action"] != "off"}
        self._all = dict(self._open)
        self.found: dict[str, Verdict] = {}

    def judge(self, record: Record) -> list[Verdict]:
        """What rules find in a record that they have not found before, the gravest action last."""
        new = []
        for name, rule in list(self._open.items()):
            finding = rule.judge(record)
            if finding is not None:
                new.append(Verdict(name, self._settings[name]["action"], record.epoch, record.step, finding))
                self.found[name] = new[-1]
                del self._open[name]
        return sorted(new, key=lambda verdict: _SEVERITY.index(verdict.action))

    def judge_all(self, records: Iterable[Record]) -> None:
        """Take records whose findings were acted on already."""
        for record in records:
            self.judge(record)

    def gravest(self) -> Verdict | None:
        """The finding with the gravest action."""
        return max(self.found.values(), key=lambda verdict: _SEVERITY.index(verdict.action), default=None)

    def states(self) -> dict[str, dict[str, Any]]:
        """What ``rules.json`` holds of each rule: its ``action`` and its ``state``.

        States are ``off``, ``waiting`` (for enough to judge by), ``passed`` (so far) and ``found``, which comes with
        ``epoch``, ``step``, ``reason`` and ``advice``.
        """
        states: dict[str, dict[str, Any]] = {}
        for name in RULES:
            verdict, rule = self.found.get(name), self._all.get(name)
            state = "off" if rule is None else "found" if verdict else "passed" if rule.judged else "waiting"
            states[name] = {"action": self._settings[name]["action"], "state": state}
            if verdict is not None:
                finding = verdict.finding
                states[name] |= {"epoch": verdict.epoch, "step": verdict.step}
                states[name] |= {"reason": finding.reason, "advice": finding.advice}
        return states

    def write(self, folder: Path) -> None:
        """Write ``rules.json``."""
        write_text(folder / "rules.json", json.dumps(self.states(), indent=2, ensure_ascii=False) + "\n")
