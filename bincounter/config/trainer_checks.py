"""Checks of the group ``trainer``: arguments of Lightning's Trainer that cannot work, or would have no effect."""

import re
from collections.abc import Mapping
from typing import Any

from bincounter.config.checks import SHORT_PRECISIONS, Bound
from bincounter.errors import ConfigError, check_choice


def check_trainer(trainer: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Check arguments of the Trainer, and rules between them and the model.

    Raises:
        ConfigError: one is wrong, has no effect, or cannot be beside another.
    """
    check_choice("trainer.accelerator", str(trainer["accelerator"]), ("auto", "cpu", "gpu", "cuda", "mps", "tpu"))
    if trainer.get("max_epochs") is not None and trainer["max_epochs"] < 1:
        raise ConfigError(f"trainer.max_epochs={trainer['max_epochs']} does not train: write 1 or more")
    if trainer.get("max_epochs") is None:
        raise ConfigError("trainer.max_epochs is not set: the learning-rate schedule needs to know how long a run is")
    _overridden(trainer)
    precisions = ("auto", *SHORT_PRECISIONS.values(), "bf16-true", *SHORT_PRECISIONS)
    if trainer.get("precision") == "16-true":
        raise ConfigError(
            "trainer.precision=16-true rounds the optimizer's small numbers to zero and ends in NaN: use 16-mixed or "
            "bf16-true"
        )
    check_choice("trainer.precision", str(trainer.get("precision") or 32), precisions)
    for key in ("accumulate_grad_batches", "log_every_n_steps", "check_val_every_n_epoch"):
        if trainer.get(key) is not None:
            Bound(ge=1).check(f"trainer.{key}", trainer[key])
    if trainer.get("max_time") is not None and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(trainer["max_time"])):
        raise ConfigError(
            f"trainer.max_time={trainer['max_time']} is not days:hours:minutes:seconds, as in 00:01:30:00"
        )
    several = "ddp" in str(trainer.get("strategy", "")) or str(trainer.get("devices", 1)) != "1"
    if several and model["trained"] == "gradual":
        raise ConfigError(
            "model.trained=gradual changes what DDP has to exchange as it runs: use model.trained=last_stages"
        )
    if several and trainer["accelerator"] == "cpu" and trainer.get("sync_batchnorm") is True:
        raise ConfigError("trainer.sync_batchnorm=true needs GPUs: leave it at auto, or write false")


def check_accelerator(trainer: Mapping[str, Any]) -> None:
    """Report a missing GPU at once, not by a traceback half a minute later.

    Raises:
        ConfigError: this machine has no such accelerator.
    """
    import torch

    if trainer["accelerator"] in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator=gpu: no CUDA GPU is visible here; use trainer=cpu, or check nvidia-smi")
    if trainer["accelerator"] == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("trainer.accelerator=mps: no Apple GPU is available; use trainer=cpu")


def _overridden(trainer: Mapping[str, Any]) -> None:
    """Refuse arguments of the Trainer that would have no effect, or leave nothing to train or to choose by."""
    for key, (taken, instead) in _NOT_OF_THE_TRAINER.items():
        # 1 is one batch, 1.0 is all of them.
        if repr(trainer.get(key)) not in ("None", repr(taken)):
            raise ConfigError(f"+trainer.{key} has no effect here: {instead}")
    for key, side in (("limit_train_batches", "train on"), ("limit_val_batches", "choose the best checkpoint by")):
        if key in trainer and trainer[key] is not None and not trainer[key] > 0:
            raise ConfigError(f"trainer.{key}={trainer[key]} leaves nothing to {side}: write 1 batch or more")
    every, epochs = trainer.get("check_val_every_n_epoch") or 1, trainer["max_epochs"]
    if every > epochs:
        raise ConfigError(
            f"trainer.check_val_every_n_epoch={every} with trainer.max_epochs={epochs} never validates, and the best "
            f"checkpoint is chosen by validation: write {epochs} or less"
        )
    if (trainer.get("min_epochs") or 0) > epochs:
        raise ConfigError(
            f"trainer.min_epochs={trainer['min_epochs']} is above trainer.max_epochs={epochs}: lower it, or raise the "
            "other"
        )
    if trainer.get("gradient_clip_algorithm") is not None and trainer.get("gradient_clip_val") is None:
        raise ConfigError("+trainer.gradient_clip_algorithm has no effect here: set trainer.gradient_clip_val, too")
    if trainer.get("max_steps") is not None and trainer["max_steps"] < 1 and trainer["max_steps"] != -1:
        raise ConfigError(f"trainer.max_steps={trainer['max_steps']} does not train: write 1 or more, or -1")
    strategy = trainer.get("strategy")
    if isinstance(strategy, str) and strategy != "auto" and not strategy.startswith(("ddp", "single_device")):
        raise ConfigError(
            f"trainer.strategy={strategy} splits the model over processes, and a checkpoint here is whole: use "
            "trainer=ddp"
        )


_NOT_OF_THE_TRAINER = {
    "callbacks": (None, "choose them by the group callbacks, as in callbacks=[default,early_stopping]"),
    "logger": (None, "choose loggers by the group logger, as in logger=[csv] or logger=none"),
    "default_root_dir": (None, "name the run's folder with paths.output_dir"),
    "enable_checkpointing": (True, "a run always keeps best.ckpt and last.ckpt, see checkpoint.every_n_train_steps"),
    "enable_model_summary": (
        False,
        "add +callbacks.summary._target_=lightning.pytorch.callbacks.RichModelSummary",
    ),
    "num_sanity_val_steps": (0, "the configuration is checked before a run; for one batch of each, add debug=fdr"),
    "use_distributed_sampler": (False, "the data module shares the photos out itself"),
    "val_check_interval": (1.0, "runs validate as epochs end, see trainer.check_val_every_n_epoch"),
    "limit_test_batches": (1.0, "scores are of all photos; choose them with data.split.fractions"),
    "limit_predict_batches": (1.0, "scores are of all photos; choose them with data.split.fractions"),
}
"""Arguments of the Trainer that a run sets itself: the value it takes, and what to write instead."""
