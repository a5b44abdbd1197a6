"""One run: lock its folder, prepare the data, fit or load a model, score it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from bincounter.config.checks import plain_of
from bincounter.config.launcher_schema import runs_locally
from bincounter.config.quoting import search_path, shell_command
from bincounter.data.datamodule import BinDataModule
from bincounter.data.records import QUARANTINE_FILE, SPLITS, write_quarantine
from bincounter.data.splits import read_split, write_split
from bincounter.errors import ConfigError, DataError, Interrupted, ResourceError, Stopped, UserError
from bincounter.files import checkpoint_file
from bincounter.model.build import (
    build_counter,
    check_description,
    check_image_size,
    check_loadable,
    checkpoint_metadata,
    load_counter,
    without_pretrained,
)
from bincounter.model.counter import BinCounter
from bincounter.model.trust import own_targets
from bincounter.parallel import limit_threads
from bincounter.redaction import mask_secrets
from bincounter.training import resume
from bincounter.training.cached_features import cached_features
from bincounter.training.caveats import (
    follow_checkpoint,
    list_caveats,
    log_overlap,
    photos_behind_weights,
    training_overlap,
)
from bincounter.training.checkpoint import (
    MaxTimeReached,
    StopRequested,
    best_value,
    check_last_validation,
    epochs_begun,
    export_model,
    find_resume_checkpoint,
    read_checkpoint,
)
from bincounter.training.run_folder import RunFolder
from bincounter.training.scoring import fabric_for, print_scores, score_run
from bincounter.training.trainer import (
    check_photos_per_process,
    end_other_processes,
    make_trainer,
    resolve_precision,
    run_checkpoint,
    set_schedule_length,
    silence_lightning,
    translate_errors,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOutcome:
    """Objects of a finished run, for the report.

    Attributes:
        folder: the run's folder.
        model: the best model, in evaluation mode.
        data: prepared data module.
        fabric: device and precision of the scoring.
        objective: best value of ``optimized_metric``; ``None`` without a fit.
        loggers: of the fit.
    """

    folder: RunFolder
    model: BinCounter
    data: BinDataModule
    fabric: L.Fabric
    objective: float | None
    loggers: Sequence[Logger] = ()


def run(cfg: DictConfig, callbacks: Sequence[L.Callback] = ()) -> RunOutcome | None:
    """Fit and score, or only score, one validated configuration.

    Args:
        cfg: configuration checked by :mod:`bincounter.config.validate`; ``paths.output_dir`` is the run's folder.
        callbacks: further ones, which change no result; see :func:`bincounter.training.scoring.fabric_for`.

    Returns:
        Objects for the report; ``None`` on all but the first process of a DDP run.

    Raises:
        BinCounterError: the fit or the scoring failed; the message is one sentence.
    """
    if not runs_locally(cfg.launcher):
        raise ConfigError("this run is for a launcher: choose one launcher, and do not set hydra.mode")
    plain = plain_of(cfg)
    silence_lightning()
    limit_threads()
    torch.set_float32_matmul_precision(cfg.float32_matmul_precision)
    known = {"batch_size": cfg.data.batch_size, "overfits": bool(cfg.trainer.get("overfit_batches"))}
    with RunFolder(cfg.paths.output_dir) as folder, translate_errors(run=folder.path, **known):
        return (_fit_and_score if cfg.train else _score_only)(cfg, plain, folder, callbacks)


def _fit_and_score(
    cfg: DictConfig, plain: dict[str, Any], folder: RunFolder, callbacks: Sequence[L.Callback]
) -> RunOutcome | None:
    trainer = make_trainer(cfg, folder, _resume_checkpoint(cfg, folder), callbacks)
    first = trainer.is_global_zero  # of a trainer: before, the first process of every machine has rank 0
    resume_from = _claim(cfg, plain, folder) if first else _resume_checkpoint(cfg, folder)
    if first and (resume_from is None or resume.stored_config(folder.path) is None):
        debug = HydraConfig.get().runtime.choices.get("debug")  # see is_debug_run
        folder.describe(plain, _overrides(), {"precision": trainer.precision, "debug": debug})
    data = data_module(cfg)
    if cfg.trainer.get("overfit_batches"):
        data.repeat_order()
    data.prepare()
    _check_sides(data, plain["data"]["split"]["fractions"])
    if first:
        if resume_from is not None:
            _check_same_photos(folder.path / "split.csv", data, resume_from)
        write_split(folder.path / "split.csv", data.records, data.assignment)
        write_quarantine(folder.path / QUARANTINE_FILE, data.manifest.refusals)
        if further := len(np.setdiff1d(data.training, data.kept)):
            folder.add_facts({"learnt_above": further})
    check_photos_per_process(data, trainer.world_size)
    model = _model(plain, data, resume_from)
    set_schedule_length(model, trainer, data)
    if resume_from is None:
        check_last_validation(trainer, model)
    if first:
        check_loadable(model, own_targets(plain))
    log.info("%s", model.size())
    features = cached_features(plain, trainer, model, data, resume_from)
    resumed_at = None if resume_from is None else epochs_begun(Path(resume_from))
    _fit(trainer, model, data, resume_from, folder)
    if torch.distributed.is_initialized():  # one process scores, without waiting for the others
        torch.distributed.destroy_process_group()
    if not first:
        return None
    checkpoint = run_checkpoint(trainer)
    best = checkpoint.best_path if checkpoint.best_path.exists() else checkpoint.last_path
    loaded = load_counter(best, trusted=own_targets(plain), own=True)
    if features is not None and plain["test"] and len(data.side("test")):
        features.add(data.side("test"))
    caveats = [] if checkpoint.ended_by is None else [checkpoint.ended_by]
    planned = {"planned_epochs": trainer.max_epochs, "resumed_at_epoch": resumed_at}
    folder.add_facts({"epochs": epochs_begun(checkpoint.last_path), **planned})
    outcome = _scored(plain, folder, data, loaded, best, callbacks, caveats)
    return replace(outcome, loggers=trainer.loggers)


def _score_only(
    cfg: DictConfig, plain: dict[str, Any], folder: RunFolder, callbacks: Sequence[L.Callback]
) -> RunOutcome:
    checkpoint = checkpoint_file(cfg.ckpt_path)
    loaded = load_counter(checkpoint, trusted=own_targets(plain))
    folder.claim(fresh=True)
    caveats = follow_checkpoint(cfg, loaded[1], _overrides())
    check_image_size(loaded[0], cfg.data.image_size)
    plain = plain_of(cfg)
    data = data_module(cfg)
    data.prepare()
    write_split(folder.path / "split.csv", data.records, data.assignment)
    write_quarantine(folder.path / QUARANTINE_FILE, data.manifest.refusals)
    if not len(data.side("validation")) and not (cfg.test and len(data.side("test"))):
        raise DataError("nothing to score: with data.split.fractions=[0,0,1] all photos are scored as test photos")
    seen = log_overlap(training_overlap(data, loaded[1]))
    folder.describe(plain, _overrides(), {"checkpoint": str(checkpoint), "photos_seen_in_training": seen})
    return _scored(plain, folder, data, loaded, None, callbacks, caveats)


def _scored(
    plain: dict[str, Any],
    folder: RunFolder,
    data: BinDataModule,
    loaded: tuple[BinCounter, dict[str, Any]],
    fitted: Path | None,
    callbacks: Sequence[L.Callback],
    caveats: Sequence[str],
) -> RunOutcome:
    model, description = loaded
    fabric = fabric_for(plain["trainer"], callbacks)
    sides = ["val", *(name for name in ("test", "train") if plain[name])]
    overlaps = training_overlap(data, description)
    overlaps = {side: overlap for side, overlap in overlaps.items() if side in sides}
    metrics = score_run(
        folder.path,
        model,
        data,
        fabric,
        precision=resolve_precision(plain["trainer"].get("precision"), plain["trainer"]["accelerator"]),
        sides=sides,
        train_counts=description["train_counts"],
        seen={side: overlap.seen for side, overlap in overlaps.items()},
        caveats=[*list_caveats(plain, data, overlaps), *caveats],
        calibrated=fitted,
    )
    corrected = {} if data.manifest.corrected is None else {"corrected_photos": data.manifest.corrected}
    folder.add_facts({"seconds": folder.seconds, **corrected})
    print_scores(metrics)
    if plain["paths"]["model_dir"] is not None:
        export_model(folder.path, Path(plain["paths"]["model_dir"]))
    return RunOutcome(folder, model, data, fabric, None if fitted is None else best_value(fitted))


def data_module(cfg: DictConfig) -> BinDataModule:
    """Build the data module of a configuration, without preparing it."""
    options = plain_of(cfg.data)
    options["layout"] = instantiate(options["layout"])
    return BinDataModule(**options, data_dir=cfg.paths.data_dir, cache_dir=cfg.paths.cache_dir, seed=cfg.seed)


def _claim(cfg: DictConfig, plain: dict[str, Any], folder: RunFolder) -> str | None:
    """Lock the folder; return the checkpoint to resume from, if any."""
    resuming = cfg.ckpt_path == "last"
    folder.claim(fresh=not resuming)
    checkpoint = _resume_checkpoint(cfg, folder)
    if resuming:
        if (before := resume.stored_config(folder.path)) is not None:
            # Masked again: an earlier version may have masked less.
            resume.check_unchanged(
                mask_secrets(before), mask_secrets(plain), folder.path, [*search_path(HydraConfig.get()), *_overrides()]
            )
        if checkpoint is None:
            log.warning("%s has no checkpoint yet: the run starts from the beginning.", folder.path)
        else:
            log.info("Resuming from %s", checkpoint)
    return checkpoint


def _resume_checkpoint(cfg: DictConfig, folder: RunFolder) -> str | None:
    found = find_resume_checkpoint(folder.checkpoints) if cfg.ckpt_path == "last" else None
    return str(found) if found else None


def _check_sides(data: BinDataModule, fractions: list[float]) -> None:
    for name in ("training", "validation"):
        if not len(data.side(name)):
            raise DataError(
                f"the {name} split is empty with data.split.fractions={fractions}: add photos or give it a larger share"
            )


def _check_same_photos(split: Path, data: BinDataModule, checkpoint: str) -> None:
    """Check that a run is resumed with the same photos, wherever they are."""
    if split.exists():
        rows = [(row.id, row.count, row.split) for row in read_split(split)]
        if rows != [(r.id, r.count, SPLITS[i]) for r, i in zip(data.records, data.assignment.tolist(), strict=True)]:
            raise DataError(
                f"the photos or their split differ from {split}: restore them to resume the run, or start a new one"
            )
    description = read_checkpoint(checkpoint, "bincounter")["bincounter"]
    check_description(description)
    now = dict(zip(_train_ids(data), _train_content(data).tolist(), strict=True))
    before = dict(zip(description["train_ids"], description["train_content"].tolist(), strict=True))
    changed = [id_ for id_ in {**before, **now} if now.get(id_) != before.get(id_)]
    if changed:
        raise DataError(
            f"{len(changed):,} of {len(now):,} training photos, {changed[0]} first, are not byte for byte those that "
            f"{checkpoint} was trained on: restore them to resume the run, or start a new one"
        )


def _train_ids(data: BinDataModule) -> list[str]:
    return [data.manifest.records[i].id for i in data.training]


def _train_content(data: BinDataModule) -> torch.Tensor:  # int64[N]
    return torch.from_numpy(data.manifest.content[data.training].view(np.int64))


def _model(plain: dict[str, Any], data: BinDataModule, resume_from: str | None) -> BinCounter:
    above, train_counts = plain["data"]["learn_above"], data.count_of(data.training)
    built = plain["model"]
    if resume_from is not None:  # with the weights of its checkpoint: those it began with may be gone
        built = {**without_pretrained(built), "optimizer": built["optimizer"]}
    with torch.random.fork_rng():
        torch.manual_seed(plain["seed"])  # initial weights depend on the seed alone
        model = build_counter(built, plain["objective"], data.counts, train_counts, above)
    check_image_size(model, plain["data"]["progressive"]["start_size"] or data.image_size)
    model.description = checkpoint_metadata(
        mask_secrets(plain["model"]),
        plain["objective"],
        data.counts,
        image_size=data.image_size,
        learn_above=above,
        balanced=plain["data"]["balanced"],
        train_counts={count: train_counts[count] for count in data.counts},
        train_ids=_train_ids(data),
        train_content=_train_content(data),
        earlier=photos_behind_weights(plain["model"].get("weights"), resume_from),
    )
    return model


def _fit(
    trainer: L.Trainer, model: BinCounter, data: BinDataModule, resume_from: str | None, folder: RunFolder
) -> None:
    program = ["bincounter", "train", *search_path(HydraConfig.get())]
    resume_by = f"resume with: {shell_command(*program, 'ckpt_path=last', settings={'paths.output_dir': folder.path})}"
    try:
        trainer.fit(model, datamodule=data, ckpt_path=resume_from, weights_only=True)
    except StopRequested:
        raise Stopped(f"Stopped by SIGTERM at step {trainer.global_step}; {resume_by}") from None
    except SystemExit:  # raised by Lightning on Ctrl-C
        raise Interrupted(f"Interrupted at step {trainer.global_step}; {resume_by}") from None
    except MaxTimeReached:
        raise ResourceError(
            f"trainer.max_time is up at epoch {trainer.current_epoch + 1} of {trainer.max_epochs}; {resume_by}"
        ) from None
    except Exception as error:
        end_other_processes(trainer)
        if resume_from is None or run_checkpoint(trainer).started or not isinstance(error, _UNFIT):
            raise
        raise UserError(
            f"{resume_from} does not fit this run ({type(error).__name__}): restore it from a copy, or start a new run"
        ) from error


# An entry of a checkpoint is missing or has another shape.
_UNFIT = (LookupError, TypeError, ValueError, AttributeError, RuntimeError)


def _overrides() -> list[str]:
    return list(HydraConfig.get().overrides.task)
