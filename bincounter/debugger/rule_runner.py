"""Evaluation of all rules: during the fit (warn, stop, fail), and by ``bincounter rules``; ``debugger_callbacks``."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import lightning as L
import yaml
from omegaconf import DictConfig
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bincounter.config.checks import plain_of
from bincounter.config.debugger_schema import MEASURED, check_debugger
from bincounter.debugger.loss_rules import ClassImbalance, LossNotDecreasing, Overfit, Overtraining
from bincounter.debugger.recorder import TensorRecorder
from bincounter.debugger.rule import Finding, Rule, verdict_of
from bincounter.debugger.tensor_records import FOLDER, EpochRecord, Record, read_records
from bincounter.debugger.tensor_rules import (
    DeadRelu,
    ExplodingTensor,
    PoorWeightInitialization,
    SaturatedActivation,
    VanishingGradient,
)
from bincounter.errors import BinCounterError, UserError
from bincounter.files import check_mapping, read_file, write_json
from bincounter.training.trainer import run_checkpoint

log = logging.getLogger(__name__)


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
"""Rules by name, in the order of rules.json and of its table."""

_SEVERITY = ("warn", "stop", "fail")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A finding with its rule, action and place.

    Attributes:
        rule: name of the rule.
        action: ``warn``, ``stop`` or ``fail``.
        epoch: epoch, counted from 0.
        step: number of optimizer steps before that of the finding.
        finding: reason and advice.
    """

    rule: str
    action: str
    epoch: int
    step: int
    finding: Finding

    def sentence(self) -> str:
        """Format the verdict for the log."""
        place = f"step {self.step}, epoch {self.epoch + 1}"
        return f"Rule {self.rule} at {place}: {self.finding.reason}. {self.finding.advice}."


class Verdicts:
    """State of all rules over one run.

    Args:
        settings: ``debugger.rules``.
    """

    def __init__(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        self._settings = settings
        self._open = {name: rule(settings[name]) for name, rule in RULES.items() if settings[name]["action"] != "off"}
        self._all = dict(self._open)
        self.found: dict[str, Verdict] = {}

    def judge(self, record: Record) -> list[Verdict]:
        """Evaluate a record; return new findings, the most severe action last."""
        new = []
        for name, rule in list(self._open.items()):
            finding = rule.judge(record)
            if finding is not None:
                new.append(Verdict(name, self._settings[name]["action"], record.epoch, record.step, finding))
                self.found[name] = new[-1]
                del self._open[name]
        return sorted(new, key=lambda verdict: _SEVERITY.index(verdict.action))

    def judge_all(self, records: Iterable[Record]) -> None:
        """Evaluate records without acting on their findings."""
        for record in records:
            self.judge(record)

    def most_severe(self) -> Verdict | None:
        """Return the finding with the most severe action."""
        return max(self.found.values(), key=lambda verdict: _SEVERITY.index(verdict.action), default=None)

    def states(self) -> dict[str, dict[str, Any]]:
        """Return the content of ``rules.json``: the ``action`` and ``state`` of each rule.

        States are ``off``, ``waiting`` (for enough data), ``passed`` (so far) and ``found``, which comes with
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
        write_json(folder / "rules.json", self.states())


class RuleFailed(BinCounterError):
    """A rule with action ``fail`` has a finding."""


class RuleWatch:
    """Evaluates new records on the first process; all processes take the same action.

    Args:
        folder: ``RUN/debugger``.
        settings: ``debugger.rules``.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
        self._folder = folder
        self._verdicts = Verdicts(settings)

    def begin(self, trainer: L.Trainer, records: Iterator[Record] | None) -> None:
        """Evaluate the run's earlier records; a rule that stopped or failed the run does so again.

        Raises:
            RuleFailed: a rule failed the run, and its action is still ``fail``.
        """
        verdict = None
        if records is not None:
            self._verdicts.judge_all(records)
            self._verdicts.write(self._folder)
            verdict = self._verdicts.most_severe()
        action, sentence = _agreed(trainer, self._decision(trainer, verdict))
        if action == "fail":
            raise RuleFailed(sentence)
        if action == "stop":
            self._stop(trainer, sentence)

    def judge(self, trainer: L.Trainer, record: Record | None) -> None:
        """Log new findings, and act on them.

        ``stop`` ends the epoch, validates and ends the fit, like early stopping; ``fail`` ends the fit as soon as
        ``last.ckpt`` is written.
        """
        new: list[Verdict] = []
        if record is not None:
            new = self._verdicts.judge(record)
            if new or isinstance(record, EpochRecord):
                self._verdicts.write(self._folder)
        for verdict in new:
            log.warning("%s", verdict.sentence())
        action, sentence = _agreed(trainer, self._decision(trainer, new[-1] if new else None))
        if action == "stop":
            if trainer.is_global_zero:
                log.warning("%s", sentence)
            self._stop(trainer, sentence)
        elif action == "fail":
            run_checkpoint(trainer).end_with(trainer, RuleFailed(sentence))

    def _stop(self, trainer: L.Trainer, sentence: str) -> None:
        run_checkpoint(trainer).ended_by = sentence
        trainer.should_stop = True

    def _decision(self, trainer: L.Trainer, verdict: Verdict | None) -> tuple[str, str]:
        """Return the action, and a sentence for the log."""
        if verdict is None or verdict.action == "warn":
            return "continue", ""
        key = f"debugger.rules.{verdict.rule}.action"
        if verdict.action == "stop" and verdict.finding.diverged and not run_checkpoint(trainer).best_path.exists():
            reason = f"{verdict.sentence()} No earlier checkpoint exists that could be scored."
            return "fail", reason
        if verdict.action == "stop":
            return "stop", f"{key}=stop ends the fit after step {verdict.step}."
        return "fail", f"{verdict.sentence()} To resume from the checkpoint anyway: ckpt_path=last {key}=warn"


def _agreed(trainer: L.Trainer, decision: tuple[str, str]) -> tuple[str, str]:
    """Return the decision of the first process."""
    return trainer.strategy.broadcast(decision) if trainer.world_size > 1 else decision


_KEY = "debugger.rules."


def rule_overrides(run: Path, given: Sequence[str]) -> list[str]:
    """Return overrides that compose a run's rules with changes.

    Args:
        run: the run's folder.
        given: overrides of the command line.

    Raises:
        UserError: the run has no records, or an override is not about rules.
    """
    for override in given:
        name, _, setting = override.partition("=")[0].removeprefix(_KEY).partition(".")
        if not override.startswith(_KEY):
            raise UserError(f"{override} is not about rules: only {_KEY}RULE.SETTING=VALUE changes a verdict")
        if setting in MEASURED.get(name, ()):
            raise UserError(
                f"{_KEY}{name}.{setting} is a bound of counts made while the run was recorded: changing it takes "
                "another run"
            )
    stored = read_file(run / "config.yaml", _stored_rules, "restore it, or start a new run")
    if stored is None:
        raise UserError(f"{run} is not a run's folder (it has no config.yaml): name the folder that the run printed")
    if not (run / FOLDER / "losses.csv").is_file():
        raise UserError(f"{run} has no records: train with debugger=tensors")
    return ["debugger=tensors", *stored, *given]


def _stored_rules(file: IO[str]) -> list[str]:
    """Overrides of a stored configuration's rules; none if the run was started without them."""
    debugger = check_mapping(check_mapping(yaml.safe_load(file)).get("debugger") or {})
    rules = check_mapping(debugger.get("rules") or {})
    return [
        f"{_KEY}{name}.{setting}={json.dumps(value)}"
        for name, rule in rules.items()
        for setting, value in check_mapping(rule).items()
    ]


def evaluate_rules(run: Path, debugger: Mapping[str, Any]) -> Verdicts:
    """Evaluate the rules on a run's records.

    Args:
        run: the run's folder.
        debugger: the node ``debugger`` as plain containers, its bounds checked.

    Raises:
        ConfigError: settings contradict each other.
        UserError: records are missing or corrupt.
    """
    check_debugger(debugger)
    verdicts = Verdicts(debugger["rules"])
    verdicts.judge_all(read_records(run / FOLDER))
    return verdicts


def format_verdicts(verdicts: Verdicts) -> RenderableType:
    """Format a table of the rules, and a paragraph per finding."""
    rows = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in ("rule", "action", "verdict"):
        rows.add_column(column, no_wrap=True)
    rows.add_column("step", justify="right")
    for name, state in verdicts.states().items():
        found = state["state"] == "found"
        verdict = "finding" if found else verdict_of(state)
        style = "bold" if found else ""
        rows.add_row(Text(name, style), state["action"], Text(verdict, style), f"{state['step']:,}" if found else "")
    return Group(rows, *(Text(f"\n{verdict.sentence()}") for verdict in verdicts.found.values()))


def debugger_callbacks(cfg: DictConfig) -> list[L.Callback]:
    """Return the callback of ``debugger=tensors`` or ``debugger=smdebug``, or none.

    Args:
        cfg: the run's whole configuration.
    """
    settings = plain_of(cfg.debugger)
    if settings["kind"] == "smdebug":
        from bincounter.smdebug.hook import SmdebugCallback  # in an environment of its own

        return [SmdebugCallback(settings, Path(cfg.paths.output_dir))]
    if not cfg.train or settings["kind"] != "tensors":
        return []
    folder = Path(cfg.paths.output_dir) / FOLDER
    return [TensorRecorder(folder, settings, RuleWatch(folder, settings["rules"]))]
