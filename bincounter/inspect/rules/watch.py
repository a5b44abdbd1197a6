"""Rules on a run that is under way: what they find is said once, and ends the fit where it is to."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L

from bincounter.errors import BinCounterError
from bincounter.inspect.rules.verdicts import Verdict, Verdicts
from bincounter.inspect.tensors.record import EpochRecord, Record
from bincounter.training.trainer import run_checkpoint

log = logging.getLogger(__name__)


class RuleFailed(BinCounterError):
    """A rule whose action is ``fail`` has found something."""


class RuleWatch:
    """Judges records as they are made, on the first process; all of them act alike.

    Args:
        folder: ``RUN/debugger``.
        settings: ``debugger.rules``.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
        self._folder = folder
        self._verdicts = Verdicts(settings)

    def begin(self, trainer: L.Trainer, records: Iterator[Record] | None) -> None:
        """Come to the state the run had; what stopped or failed it does so again.

        Raises:
            RuleFailed: a rule had failed the run, and is to fail it still.
        """
        verdict = None
        if records is not None:
            self._verdicts.judge_all(records)
            self._verdicts.write(self._folder)
            verdict = self._verdicts.gravest()
        action, sentence = _agreed(trainer, self._decision(trainer, verdict))
        if action == "fail":
            raise RuleFailed(sentence)
        trainer.should_stop = trainer.should_stop or action == "stop"

    def judge(self, trainer: L.Trainer, record: Record | None) -> None:
        """Say what rules find, and act on it.

        ``stop`` ends the epoch here, validates and leaves the fit, as early stopping does; ``fail`` leaves it as soon
        as ``last.ckpt`` is written.
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
            trainer.should_stop = True
        elif action == "fail":
            run_checkpoint(trainer).end_with(trainer, RuleFailed(sentence))

    def _decision(self, trainer: L.Trainer, verdict: Verdict | None) -> tuple[str, str]:
        """What to do, and what to say of it."""
        if verdict is None or verdict.action == "warn":
            return "go on", ""
        key = f"debugger.rules.{verdict.rule}.action"
        if verdict.action == "stop" and verdict.finding.diverged and not run_checkpoint(trainer).best_path.exists():
            reason = f"{verdict.sentence()} There is no earlier checkpoint whose scores would mean something."
            return "fail", reason
        if verdict.action == "stop":
            return "stop", f"{key}=stop ends the fit after step {verdict.step}."
        return "fail", f"{verdict.sentence()} To go on from the checkpoint nevertheless: ckpt_path=last {key}=warn"


def _agreed(trainer: L.Trainer, decision: tuple[str, str]) -> tuple[str, str]:
    """What the first process decided."""
    return trainer.strategy.broadcast(decision) if trainer.world_size > 1 else decision
