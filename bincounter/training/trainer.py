"""The Trainer of a run: loggers, callbacks, precision, silenced warnings, translated errors."""

import ctypes
import errno
import logging
import math
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from bincounter.config.checks import SHORT_PRECISIONS, metric_mode, plain_of
from bincounter.config.quoting import search_path, shell_command
from bincounter.data.datamodule import BinDataModule
from bincounter.data.s3.error_messages import REPEAT_TRANSFER
from bincounter.errors import BinCounterError, ConfigError, DataError, ResourceError, UserError, first_line
from bincounter.model.counter import BinCounter
from bincounter.redaction import mask_text
from bincounter.training.checkpoint import AtomicCheckpointIO, RunCheckpoint, StatelessRandomness, read_checkpoint
from bincounter.training.logs import TrainingLog
from bincounter.training.run_folder import RunFolder

log = logging.getLogger(__name__)


def make_trainer(
    cfg: DictConfig, folder: RunFolder, resume_from: str | None, watching: Sequence[L.Callback] = ()
) -> L.Trainer:
    """Build the Trainer of a run, with the callbacks of every run.

    Args:
        cfg: the whole configuration.
        folder: the run's folder.
        resume_from: checkpoint to resume from, if any.
        watching: further callbacks, called before an epoch's checkpoint is written.
    """
    options = plain_of(cfg.trainer)
    max_time = options.pop("max_time", None)
    checkpoint = RunCheckpoint(
        folder.checkpoints,
        monitor=cfg.optimized_metric,
        mode=metric_mode(cfg.optimized_metric),
        every_n_train_steps=cfg.checkpoint.every_n_train_steps,
        max_time=_duration(max_time),
        model_dir=None if cfg.paths.model_dir is None else Path(cfg.paths.model_dir),
    )
    callbacks = [instantiate(node) for node in (cfg.callbacks or {}).values() if node]
    if options.get("enable_progress_bar") is False:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    elif not any(isinstance(callback, ProgressBar) for callback in callbacks):
        options.setdefault("enable_progress_bar", False)  # else Lightning adds its own
    options["precision"] = resolve_precision(options.get("precision"), options["accelerator"])
    if options.get("sync_batchnorm") == "auto":  # for GPUs only
        options["sync_batchnorm"] = options["accelerator"] != "cpu" and torch.cuda.is_available()
    if _on_cpu(options["accelerator"]):
        keep_freed_memory()
        if options["precision"].startswith(("bf16", "16")) and _cpu_has(*_BF16_OF_X86, "bf16") is False:
            emulated = "This CPU emulates 16-bit numbers: trainer.precision=%s is slower than 32-true here."
            log.warning(emulated, options["precision"])
    plugins = [instantiate(node) for node in options.pop("plugins", None) or []]
    overfit = options.pop("overfit_batches", 0)
    if overfit:  # in place of overfit_batches, with which Lightning replaces the sampler
        options |= {"limit_train_batches": overfit, "limit_val_batches": overfit}
    return instantiate(
        options,
        # The log before the checkpoint, which stores all of it.
        callbacks=[
            *callbacks,
            StatelessRandomness(cfg.seed),
            TrainingLog(options.get("log_every_n_steps") or 50),
            checkpoint,
            *watching,
        ],
        logger=_loggers(cfg, resume_from) or False,
        plugins=[AtomicCheckpointIO(), *plugins],
        default_root_dir=str(folder.path),
        use_distributed_sampler=False,  # the data module's sampler is distributed
        num_sanity_val_steps=0,  # a resumed run must not validate twice
        enable_checkpointing=True,
        enable_model_summary=False,
    )


def _loggers(cfg: DictConfig, resume_from: str | None) -> list[Any]:
    loggers = []
    stored: dict[str, Any] = {} if resume_from is None else read_checkpoint(resume_from, "global_step", "callbacks")
    states = [state for name, state in stored.get("callbacks", {}).items() if name.startswith("TrainingLog")]
    runs: dict[str, str] = states[0].get("runs", {}) if states else {}
    for node in (cfg.logger or {}).values():
        if not node:
            continue
        kind = node["_target_"].rpartition(".")[2]
        resumed: dict[str, Any] = {}
        if stored and kind == "TensorBoardLogger":
            resumed["purge_step"] = stored["global_step"]  # later points belong to the lost part of the run
        elif runs.get(kind) and kind == "WandbLogger":
            resumed |= {"id": runs[kind], "resume": "allow"}
        loggers.append(instantiate(node, **resumed))
        if runs.get(kind) and kind == "MlflowLogger":
            loggers[-1].resume(runs[kind])
    return loggers


def _duration(text: str | None) -> timedelta | None:
    """Parse ``DD:HH:MM:SS``, the format of Lightning's ``max_time``."""
    if text is None:
        return None
    days, hours, minutes, seconds = (int(part) for part in text.split(":"))
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def run_checkpoint(trainer: L.Trainer) -> RunCheckpoint:
    """Return the trainer's RunCheckpoint."""
    return next(c for c in trainer.callbacks if isinstance(c, RunCheckpoint))  # type: ignore[attr-defined]


def check_photos_per_process(data: BinDataModule, processes: int) -> None:
    """Check that each process of DDP has a training photo.

    Raises:
        DataError: there are more processes than photos.
    """
    photos = len(data.training)
    if photos < processes:
        raise DataError(f"{photos} training photos cannot be shared by {processes} processes: lower trainer.devices")


def set_schedule_length(model: BinCounter, trainer: L.Trainer, data: BinDataModule) -> None:
    """Set the optimizer steps per epoch and in total, and the epochs: reading them later would break a resume."""
    batches = max(len(data.training) // (data.batch_size * trainer.world_size), 1)
    limit = trainer.limit_train_batches
    batches = min(limit, batches) if isinstance(limit, int) else max(int(limit * batches), 1)
    model.steps_per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    epochs = trainer.max_epochs or 1
    steps = model.steps_per_epoch * epochs
    model.total_steps = steps if trainer.max_steps == -1 else min(trainer.max_steps, steps)
    data.epochs = math.ceil(model.total_steps / model.steps_per_epoch)


def end_other_processes(trainer: L.Trainer) -> None:
    """Kill the processes spawned by this one, which would wait for it in the next collective, on a paid machine."""
    kill = getattr(trainer.strategy.launcher, "kill", None)
    if kill is not None:
        kill(getattr(signal, "SIGKILL", signal.SIGTERM))  # on Windows every signal ends a process at once


TRUE_PRECISIONS = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
"""dtypes of the weights in precisions that convert them."""


def resolve_precision(precision: str | int | None, accelerator: str) -> str:
    """Return Lightning's long name of a precision; choose one for ``auto``.

    Measured on a CPU with AVX512-BF16: ResNet50 trains twice as fast in bf16-mixed; without these instructions slower.

    Args:
        precision: a value of Lightning's ``precision``, or ``auto``.
        accelerator: a value of Lightning's ``accelerator``.
    """
    if precision != "auto":
        return SHORT_PRECISIONS.get(str(precision or 32), str(precision))
    if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if _on_cpu(accelerator) and _cpu_has(*_BF16_OF_X86) else "32-true"


def _on_cpu(accelerator: str) -> bool:
    elsewhere = torch.cuda.is_available() or torch.backends.mps.is_available()
    return accelerator == "cpu" or (accelerator == "auto" and not elsewhere)


def keep_freed_memory() -> None:
    """Let glibc keep the memory of a step for the next one, 8 % of the time of a ResNet18 on 2 cores.

    It returns large blocks to the system as soon as they are freed, which then has to clear them page by page.
    """
    allocate = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # musl has none
    if allocate is None:
        return
    if any(allocate(_MMAP_THRESHOLD, size) for size in (1 << 30, 32 << 20)):  # glibc before 2.35 accepts 32 MB at most
        allocate(_TRIM_THRESHOLD, (1 << 31) - 1)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, see its manual page


_BF16_OF_X86 = ("avx512_bf16", "amx_bf16")


def _cpu_has(*units: str) -> bool | None:
    """Return True if the CPU has one of these units, ``None`` if torch knows none of them."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # torch before 2.12
    known = [bool(capabilities[unit]) for unit in units if unit in capabilities]
    return any(known) if known else None


_MESSAGES = (
    r".*treespec, LeafSpec.*",  # lightning 2.6 calls functions that torch 2.14 deprecates
    r".*smaller than the logging interval.*",  # each end of an epoch is logged, too
    r".*does not have many workers.*",  # photos are memory-mapped: workers are slower
    r".*your dataloader is not resumable.*",  # the data module restores its state
    r".*module\(s\) in eval mode at the start of training.*",  # a frozen backbone, as configured
)


def silence_lightning() -> None:
    """Silence Lightning's tips, start-up lines and known warnings; call after importing it."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()  # else lines are printed twice, by the root logger, too
        logger.setLevel(logging.WARNING)
    for message in _MESSAGES:
        warnings.filterwarnings("ignore", message)


@contextmanager
def translate_errors(*, batch_size: int, run: object, overfits: bool = False) -> Iterator[None]:
    """Raise known exceptions of a fit or scoring as a :class:`BinCounterError` with one sentence.

    Raises:
        BinCounterError: see :func:`describe_failure`; other exceptions pass.
    """
    try:
        yield
    except Exception as error:
        known = describe_failure(error, batch_size=batch_size, run=run, overfits=overfits)
        if known is None:
            raise
        raise known from error


def describe_failure(
    error: BaseException, *, batch_size: int, run: object, overfits: bool = False
) -> BinCounterError | None:
    """Describe an exception of a fit or scoring in one sentence; ``None`` if it is unknown.

    Args:
        error: the exception.
        batch_size: ``data.batch_size`` of the run.
        run: the run's folder.
        overfits: ``trainer.overfit_batches`` is set, which limits the batches of training and validation.
    """
    options = search_path(HydraConfig.get()) if HydraConfig.initialized() else []
    by = shell_command("bincounter", "train", *options, "ckpt_path=last", settings={"paths.output_dir": str(run)})
    resume_by = f"saved files are in {run}; resume with {by}"
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _cpu_allocation(error):
        smaller = max(batch_size // 2, 1)
        return ResourceError(
            f"Out of memory with data.batch_size={batch_size}: start again with data.batch_size={smaller} "
            "trainer.accumulate_grad_batches=2 (the same effective batch; not with model/optimizer=sam), or a smaller "
            "data.image_size"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" for {error.filename}" if error.filename else ""
        return ResourceError(
            f"The disk is full{place}: make room, or move paths.data_dir and paths.cache_dir; {resume_by}"
        )
    if isinstance(error, OSError) and (path := error.filename2 or error.filename):
        path = Path(os.fsdecode(path)).absolute()
        if path.is_relative_to(Path(str(run)).absolute()):
            why = (error.strerror or type(error).__name__).lower()
            return UserError(f"{path} cannot be written ({why}): move it away, or make it writable; {resume_by}")
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error) and "killed" in str(error):
        shared = "shared memory" in str(error)
        why = (
            "ran out of shared memory: give it more (docker run --shm-size=1g), or"
            if shared
            else "was killed, most likely for its memory:"
        )
        return ResourceError(f"A data.num_workers process {why} use fewer workers; {resume_by}")
    if "no kernel image is available" in str(error):
        return ConfigError(
            f"this GPU is too old, or too new, for the installed torch {torch.__version__}: use trainer=cpu, or "
            "install a torch that is built for it"
        )
    if isinstance(error, BinCounterError):
        text = str(error)
        if text.startswith("Caught"):  # from a worker, with its traceback
            text = text.strip().splitlines()[-1].partition(": ")[2]
        if Path(str(run), "checkpoints", "last.ckpt").exists():  # else it is from before the fit
            text = text.replace(REPEAT_TRANSFER, resume_by)
        return type(error)(text) if text != str(error) else None
    if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        return ConfigError(
            "batch normalisation needs more than one value: use a larger data.batch_size or data.image_size"
        )
    if isinstance(error, MisconfigurationException):
        text = " ".join(str(error).split())
        limit = re.search(r"requested to check (\S+) of the `(\w+)_dataloader` but \S+ \* (\d+) < 1", text)
        if limit is None:
            return ConfigError(text)
        share, side, batches = limit.groups()
        key = "trainer.overfit_batches" if overfits else f"trainer.limit_{side}_batches"
        return ConfigError(
            f"{key}={share} of {batches} batches is less than one: set {key}=1, which is a number of batches, or a "
            f"smaller data.batch_size={batch_size}"
        )
    return _describe_logger_failure(error)


_LOGGERS = {
    "wandb": "check the network, or add logger.wandb.offline=true, or choose logger=csv",
    "mlflow": "start the server of logger.mlflow.tracking_uri, or correct it, or choose logger=csv",
}
"""Packages of loggers, and advice if their server does not respond."""
_NO_LOGIN = re.compile(r"api[_ ]?key|log(?:ged)? ?in\b|\b40[13]\b|unauthori[sz]ed|permission|credential", re.IGNORECASE)


_MLFLOW_LOGIN = (
    "set MLFLOW_TRACKING_TOKEN, or at SageMaker let the role do sagemaker:CallMlflowAppApi and sagemaker-mlflow:* on it"
)


def _describe_logger_failure(error: BaseException) -> BinCounterError | None:
    """Describe an exception of a logger: missing package, no login, or no server."""
    for cause in filter(None, (error, error.__cause__)):
        missing = isinstance(cause, ModuleNotFoundError)
        library = type(cause).__module__.partition(".")[0]
        name = next((each for each in _LOGGERS if library == each or (missing and each in str(cause).lower())), None)
        if name is None:
            continue
        if missing:
            return ConfigError(
                f"logger={name} needs a package that is not installed: pip install 'bincounter[{name}]', or choose "
                "logger=csv"
            )
        text = mask_text(first_line(cause)).rstrip(". ")
        if _NO_LOGIN.search(text):
            login = "run `wandb login`, or set WANDB_API_KEY" if name == "wandb" else _MLFLOW_LOGIN
            return ConfigError(f"{name} refuses this login ({text}): {login}, or choose logger=csv")
        return ResourceError(f"{name} cannot log this run ({text}): {_LOGGERS[name]}")
    return None


def _cpu_allocation(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
