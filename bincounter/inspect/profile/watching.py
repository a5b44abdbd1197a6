"""What measures a run, as its configuration asks for, and what it says at the end."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig, OmegaConf

from bincounter.inspect.page import percent
from bincounter.inspect.profile.advice import advice
from bincounter.inspect.profile.callback import StepProfiler
from bincounter.inspect.profile.facts import facts_of
from bincounter.inspect.profile.phases import PHASES
from bincounter.inspect.profile.record import FOLDER, read_record

log = logging.getLogger(__name__)


def profiler_callbacks(cfg: DictConfig) -> list[L.Callback]:
    """The callback of ``profiler=simple``, ``advanced`` and ``pytorch``, or none.

    Args:
        cfg: the run's whole configuration.
    """
    settings: dict[str, Any] = OmegaConf.to_container(cfg.profiler, resolve=True)  # type: ignore[assignment]
    if not cfg.train or settings["kind"] == "none":
        return []
    return [StepProfiler(Path(cfg.paths.output_dir) / FOLDER, settings)]


def say_where_the_time_went(run: Path, cfg: DictConfig) -> None:
    """Log the phases of a step and the advice, where the run was measured.

    Args:
        run: its folder.
        cfg: its configuration.
    """
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    record = read_record(run / FOLDER) if cfg.train and config["profiler"]["kind"] != "none" else None
    facts = None if record is None else facts_of(record, config)
    if facts is None:
        return
    parts = sorted(PHASES, key=lambda phase: -facts.step_ms[phase])
    listed = ", ".join(
        f"{PHASES[phase].lower()} {percent(facts.share(phase), 0)}" for phase in parts if facts.share(phase) > 0.005
    )
    log.info("A step took %.1f ms: %s.", facts.free_step_ms, listed)
    for sentence in advice(facts):
        log.info("%s", sentence)
