"""The Trainer a configuration asks for, with what makes a run exact."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from bincounter.config import mode_of
from bincounter.training.checkpoint import AtomicCheckpointIO, RunCheckpoint, StatelessRandomness
from bincounter.training.folder import RunFolder
from bincounter.training.logs import TrainingLog
from bincounter.training.precision import resolved


def make_trainer(
    cfg: DictConfig, folder: RunFolder, continued: str | None, watching: Sequence[L.Callback] = ()
) -> L.Trainer:
    """The Trainer of a run, with the callbacks that every run has.

    Args:
        cfg: the whole configuration.
        folder: of the run.
        continued: the checkpoint that is gone on from, if there is one.
        watching: further callbacks; Lightning tells them of an epoch before its checkpoint is written.
    """
    options: dict[str, Any] = OmegaConf.to_container(cfg.trainer, resolve=True)  # type: ignore[assignment]
    max_time = options.pop("max_time", None)
    checkpoint = RunCheckpoint(
        folder.checkpoints,
        monitor=cfg.optimized_metric,
        mode=mode_of(cfg.optimized_metric),
        every_n_train_steps=cfg.checkpoint.every_n_train_steps,
        max_time=_duration(max_time),
        model_dir=None if cfg.paths.model_dir is None else Path(cfg.paths.model_dir),
    )
    callbacks = [instantiate(node) for node in (cfg.callbacks or {}).values() if node]
    options["precision"] = resolved(options.get("precision"), options["accelerator"])
    if options.get("sync_batchnorm") == "auto":  # a CPU has no such layer
        options["sync_batchnorm"] = options["accelerator"] != "cpu" and torch.cuda.is_available()
    plugins = [instantiate(node) for node in options.pop("plugins", None) or []]
    overfit = options.pop("overfit_batches", 0)
    if overfit:  # Lightning would put a sampler of its own in the place of ours
        options |= {"limit_train_batches": overfit, "limit_val_batches": overfit}
    return instantiate(
        options,
        # The log comes before the checkpoint, which has to know all of it.
        callbacks=[
            *callbacks,
            StatelessRandomness(cfg.seed),
            TrainingLog(options.get("log_every_n_steps") or 50),
            checkpoint,
            *watching,
        ],
        logger=_loggers(cfg, continued) or False,
        plugins=[AtomicCheckpointIO(), *plugins],
        default_root_dir=str(folder.path),
        use_distributed_sampler=False,  # the data module deals the photos out itself
        num_sanity_val_steps=0,  # the configuration was checked; a resume must not validate twice
        enable_checkpointing=True,
        enable_model_summary=False,
    )


def _loggers(cfg: DictConfig, continued: str | None) -> list[Any]:
    loggers = []
    for node in (cfg.logger or {}).values():
        if not node:
            continue
        resumed: dict[str, Any] = {}
        if continued is not None and node["_target_"].endswith("TensorBoardLogger"):
            # Later points were written by the part of the run that was lost.
            resumed["purge_step"] = torch.load(continued, weights_only=True, mmap=True)["global_step"]
        loggers.append(instantiate(node, **resumed))
    return loggers


def _duration(text: str | None) -> timedelta | None:
    """``DD:HH:MM:SS``, as Lightning writes it."""
    if text is None:
        return None
    days, hours, minutes, seconds = (int(part) for part in text.split(":"))
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def run_checkpoint(trainer: L.Trainer) -> RunCheckpoint:
    """The trainer's own RunCheckpoint."""
    return next(c for c in trainer.callbacks if isinstance(c, RunCheckpoint))  # type: ignore[attr-defined]
