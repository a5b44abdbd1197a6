"""Advice from a profile: one function per finding, each with a threshold, a setting to try and its present value."""

import math

from bincounter.number_format import percent
from bincounter.profiler.profile_facts import ProfileFacts
from bincounter.profiler.profile_record import AUGMENTATION, CHECKPOINT, DEBUGGER, LOGGING, VALIDATION

WAITING = 0.15  # fraction of a step without a batch
READING = 20.0  # MB/s from disks, above which the page cache does not hold the cached photos
AUGMENTING = 0.25  # fraction of a step
SAVING, SAVING_AIM = 0.05, 0.01  # fraction of a step in checkpoints within epochs
RECORDING, RECORDING_AIM = 0.05, 0.01  # fraction of a step in logs and progress bars, or in the debugger
VALIDATING = 0.3  # fraction of the fit
IDLE = 0.3  # fraction of a step in which a GPU with batches is idle
GPU_ROOM = 0.5  # fraction of a GPU's memory up to which twice the batch fits
MEMORY_FULL, GPU_FULL = 90.0, 0.9  # per cent of the machine's memory; fraction of the GPU's
OVERSUBSCRIBED = 2.0  # threads and workers per core
OTHERS = 0.25  # fraction of the cores, busy for other programs


def advice(facts: ProfileFacts) -> list[str]:
    """Return a sentence per finding, the largest gain first; none if nothing exceeds its threshold."""
    checks = (
        waits_for_data,
        augmentation_dominates,
        validates_often,
        saves_often,
        logs_often,
        records_often,
        gpu_idle,
        memory_nearly_full,
        gpu_memory_nearly_full,
        too_many_threads,
        machine_shared,
    )
    return [sentence for check in checks if (sentence := check(facts)) is not None]


def waits_for_data(facts: ProfileFacts) -> str | None:
    """More than ``WAITING`` of a step passes without a batch."""
    share = facts.waiting_ms / max(facts.free_step_ms, 1e-9)
    if share <= WAITING:
        return None
    subject = "The GPU waits" if facts.on_gpu else "A step waits"
    milliseconds = f"{facts.waiting_ms:.1f} of {facts.free_step_ms:.1f} ms"
    return f"{subject} {percent(share, 0)} of the time for its batch ({milliseconds}): {_cause_of_waiting(facts)}"


def _cause_of_waiting(facts: ProfileFacts) -> str:
    cores = max(facts.machine.get("cores", 1) // facts.machine.get("processes", 1), 1)  # per process
    workers = facts.machine.get("workers", 0)
    target = min(max(2 * workers, 1), max(cores - 1, 1), 8)
    more = f"data.num_workers={target} (now {workers})"
    also = f", or {more}" if target > workers else ""
    photos = facts.machine.get("photos")
    if photos == "streamed":
        return "photos are read from a bucket each time; try data.sync.stream=false, which fetches them once."
    if photos == "decoded" and facts.setting("data.cache") is False:
        return "every photo is decoded in every epoch; try data.cache=true, which decodes it once."
    if photos == "decoded":
        return f"the disk had no room for decoded photos; try another paths.cache_dir{also}."
    if facts.mean.get("read_mb_s", 0.0) > READING:
        read = facts.mean["read_mb_s"]
        return f"cached photos are read from disk at {read:.0f} MB/s; try a faster paths.cache_dir{also}."
    if target > workers:
        return f"too few processes prepare batches; try {more}."
    return "more processes would hardly help; a smaller data.image_size has less to read."


def augmentation_dominates(facts: ProfileFacts) -> str | None:
    """Augmentation takes more than ``AUGMENTING`` of a step, and some of it is switched on."""
    share = facts.share(AUGMENTATION)
    shape = {name: facts.setting(f"data.augmentation.{name}") for name in ("flip", "shift", "scale", "rotation")}
    colour = {name: facts.setting(f"data.augmentation.{name}") for name in ("brightness", "contrast", "saturation")}
    chosen = shape if any(shape.values()) else colour
    if share <= AUGMENTING or not any(chosen.values()):
        return None
    off = " ".join(f"data.augmentation.{name}={'false' if v is True else 0}" for name, v in chosen.items() if v)
    why = (
        "one resampling, skipped only without all of them" if chosen is shape else "each of them passes over all pixels"
    )
    return f"Augmentation takes {percent(share, 0)} of a step: if the scores allow it, try {off} ({why})."


def validates_often(facts: ProfileFacts) -> str | None:
    """Validation takes more than ``VALIDATING`` of the fit."""
    share, every = facts.fit_share(VALIDATION), facts.setting("trainer.check_val_every_n_epoch") or 1
    epochs = facts.setting("trainer.max_epochs") or 4 * every
    # With fewer than two validations there is no checkpoint to choose; the last epoch has to have one.
    rarer = next((number for number in range(2 * every, epochs // 2 + 1) if epochs % number == 0), None)
    if share <= VALIDATING or rarer is None:
        return None
    finding = f"Validation takes {percent(share, 0)} of the fit: "
    return finding + f"try trainer.check_val_every_n_epoch={rarer} (now {every})."


def saves_often(facts: ProfileFacts) -> str | None:
    """Checkpoints within epochs take more than ``SAVING`` of a step; the advised interval takes ``SAVING_AIM``."""
    share, every = facts.share(CHECKPOINT), facts.setting("checkpoint.every_n_train_steps")
    if share <= SAVING or not every:
        return None
    return (
        f"Checkpoints take {percent(share, 0)} of a step: try checkpoint.every_n_train_steps="
        f"{_rarer(share, every, SAVING_AIM)} (now {every}); a killed run then repeats at most as many steps."
    )


def _rarer(share: float, every: int, aim: float) -> int:
    """Return the interval in steps that reduces a phase's fraction of the time from ``share`` to ``aim``."""
    cost = share / (1 - share) * every  # in steps
    interval = math.ceil(cost * (1 - aim) / aim)
    unit = 10 ** max(len(str(interval)) - 2, 0)
    return -(-interval // unit) * unit  # rounded up to two digits


def logs_often(facts: ProfileFacts) -> str | None:
    """Logs and progress bars take more than ``RECORDING`` of a step."""
    share, every = facts.share(LOGGING), facts.setting("trainer.log_every_n_steps") or 50
    if share <= RECORDING:
        return None
    bar = facts.setting("callbacks.progress_bar")
    other = ", or callbacks.progress_bar=null" if bar else ""
    finding = f"Logging takes {percent(share, 0)} of a step: "
    return finding + f"try trainer.log_every_n_steps={10 * every} (now {every}){other}."


def records_often(facts: ProfileFacts) -> str | None:
    """The debugger takes more than ``RECORDING`` of a step."""
    share = facts.share(DEBUGGER)
    for key in ("debugger.every_n_train_steps", "debugger.save_interval.train"):
        every = facts.setting(key)
        if share > RECORDING and every:
            finding = f"The debugger takes {percent(share, 0)} of a step: "
            return finding + f"try {key}={_rarer(share, every, RECORDING_AIM)} (now {every})."
    return None


def gpu_idle(facts: ProfileFacts) -> str | None:
    """A GPU is idle for more than ``IDLE`` of a step, not counting data, and has free memory."""
    if not facts.on_gpu:
        return None
    busy = facts.mean.get("gpu_percent")  # of the driver if known, else of the clock
    idle = facts.gpu_idle_ms / facts.free_step_ms if busy is None else 1 - busy / 100
    idle -= facts.waiting_ms / facts.free_step_ms
    if idle <= IDLE or _gpu_filled(facts) > GPU_ROOM:
        return None
    size = facts.setting("data.batch_size")
    precise = facts.machine.get("precision") == "32-true"
    also = " and trainer.precision=bf16-mixed" if precise else ""
    free = percent(1 - _gpu_filled(facts), 0)
    return (
        f"The GPU is idle {percent(idle, 0)} of the time although batches are ready, and {free} of "
        f"its memory is free: try data.batch_size={2 * size} (now {size}){also}."
    )


def _gpu_filled(facts: ProfileFacts) -> float:
    """Largest fraction of the GPU's memory allocated by the run."""
    return facts.machine.get("gpu_peak_mb", 0.0) / max(facts.machine.get("gpu_mb", 0.0), 1.0)


def memory_nearly_full(facts: ProfileFacts) -> str | None:
    """More than ``MEMORY_FULL`` per cent of the machine's memory was in use."""
    peak, workers = facts.peak.get("memory_percent", 0.0), facts.machine.get("workers", 0)
    if peak <= MEMORY_FULL:
        return None
    try_ = f"data.num_workers={workers // 2} (now {workers})" if workers else _smaller_batch(facts)
    return f"{peak:.0f} % of the machine's memory was in use; a run that needs more is killed: try {try_}."


def gpu_memory_nearly_full(facts: ProfileFacts) -> str | None:
    """Tensors filled more than ``GPU_FULL`` of the GPU's memory."""
    if not facts.on_gpu or _gpu_filled(facts) <= GPU_FULL:
        return None
    finding = f"Tensors filled {percent(_gpu_filled(facts), 0)} of the GPU's memory: "
    return f"{finding}{_smaller_batch(facts)} is safer."


def _smaller_batch(facts: ProfileFacts) -> str:
    size = facts.setting("data.batch_size")
    if str(facts.setting("model.optimizer._target_")).endswith(".SharpnessAware"):  # accumulates no gradients
        return f"data.batch_size={max(size // 2, 1)} (now {size})"
    steps = facts.setting("trainer.accumulate_grad_batches") or 1
    return f"data.batch_size={max(size // 2, 1)} trainer.accumulate_grad_batches={2 * steps} (now {size} and {steps})"


def too_many_threads(facts: ProfileFacts) -> str | None:
    """Compute threads and data workers are ``OVERSUBSCRIBED`` per core or more."""
    cores, processes = facts.machine.get("cores", 1), facts.machine.get("processes", 1)
    threads, workers = facts.machine.get("threads", 1), facts.machine.get("workers", 0)  # of each process
    if facts.on_gpu or not workers or processes * (threads + workers) < OVERSUBSCRIBED * cores:
        return None
    return (
        f"{processes * threads} computing threads and {processes * workers} workers share {cores} cores, and wait for "
        f"each other: try data.num_workers={max(cores // processes - threads, 0)} (now {workers})."
    )


def machine_shared(facts: ProfileFacts) -> str | None:
    """Other programs keep more than ``OTHERS`` of the cores busy; a caveat without a setting to try."""
    cores = facts.machine.get("machine_cores", 1)
    if "machine_cpu_percent" not in facts.mean:
        return None
    others = (facts.mean["machine_cpu_percent"] - facts.mean["cpu_percent"] / cores) / 100
    if others <= OTHERS:
        return None
    return f"Other programs kept {percent(others, 0)} of the cores busy: without them the run would be faster."
