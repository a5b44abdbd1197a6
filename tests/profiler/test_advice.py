"""Advice of the profile: it follows from the figures, and names settings that exist."""

import re
from dataclasses import replace
from typing import Any

import pytest

from bincounter.cli.hydra_app import compose
from bincounter.config.validate import validate
from bincounter.errors import ConfigError
from bincounter.profiler.advice import advice
from bincounter.profiler.profile_facts import ProfileFacts
from bincounter.profiler.profile_record import PHASES

CONFIG: dict[str, Any] = {
    "data": {
        "cache": True,
        "batch_size": 32,
        "augmentation": {"flip": True, "shift": 0.06, "scale": 0, "rotation": 5, "brightness": 0.2},
    },
    "trainer": {"log_every_n_steps": 10, "check_val_every_n_epoch": 1, "accumulate_grad_batches": 1},
    "checkpoint": {"every_n_train_steps": 100},
    "debugger": {"every_n_train_steps": 50},
    "callbacks": {"progress_bar": {"_target_": "lightning.pytorch.callbacks.RichProgressBar"}},
}
MACHINE = {
    "cores": 4,
    "machine_cores": 4,
    "threads": 4,
    "workers": 0,
    "processes": 1,
    "device": "cpu",
    "photos": "kept",
}
GPU = {"device": "cuda", "gpu": "a GPU", "gpu_mb": 80_000.0, "gpu_peak_mb": 48_000.0, "precision": "32-true"}


def facts(machine: dict[str, Any] | None = None, *, free: float | None = None, **step_ms: float) -> ProfileFacts:
    """A step of 100 ms, of which the phases not named take the part of forward and backward."""
    times = dict.fromkeys(PHASES, 0.0) | step_ms
    times["forward"] = times["backward"] = (100 - sum(step_ms.values())) / 2
    usage = {"machine_cpu_percent": 100.0, "cpu_percent": 390.0, "memory_percent": 40.0}
    return ProfileFacts(
        step_ms=times,
        free_step_ms=free or 100.0,
        fit_s={phase: value / 10 for phase, value in times.items()},
        steps=100,
        exact_steps=99,
        machine={**MACHINE, **(machine or {})},
        mean=usage,
        peak=usage,
        config=CONFIG,
    )


def uncached(photos: str, cache: bool = True) -> ProfileFacts:
    made = facts({"photos": photos}, data=41)
    return replace(made, config={**CONFIG, "data": {**CONFIG["data"], "cache": cache}})


def with_usage(made: ProfileFacts, **usage: float) -> ProfileFacts:
    return replace(made, mean={**made.mean, **usage}, peak={**made.peak, **usage})


VALIDATING = replace(facts(), fit_s={**dict.fromkeys(PHASES, 1.0), "validation": 10.0})
IDLE_GPU = {**GPU, "gpu_peak_mb": 8_000.0}
TRIGGERED = {
    "A step waits 41 % of the time for its batch (41.0 of 100.0 ms): every photo is decoded in every epoch; try "
    "data.cache=true": uncached("decoded", cache=False),
    "the disk had no room for decoded photos; try another paths.cache_dir, or data.num_workers=1": uncached("decoded"),
    "try data.sync.stream=false": uncached("streamed"),
    "cached photos are read from disk at 120 MB/s": with_usage(facts(data=16), read_mb_s=120.0),
    "too few processes prepare batches; try data.num_workers=3 (now 2)": facts({"workers": 2, "threads": 1}, data=16),
    "more processes would hardly help": facts({"workers": 8, "cores": 64, "threads": 1}, data=16),
    # Of 41 ms, 20 pass while the GPU still computes what it was asked for before.
    "The GPU waits 26 % of the time for its batch (21.0 of 80.0 ms)": facts(GPU, data=41, free=80.0),
    "try data.augmentation.flip=false data.augmentation.shift=0 data.augmentation.rotation=0 (one": facts(
        augmentation=26
    ),
    "Validation takes 50 % of the fit: try trainer.check_val_every_n_epoch=2 (now 1)": VALIDATING,
    "Validation takes 50 % of the fit: try trainer.check_val_every_n_epoch=3 (now 1)": replace(
        VALIDATING, config={"trainer": {"max_epochs": 9}}
    ),
    # 6 ms per step of 94 ms of work: 638 ms each; 1 % of the time if one comes every 632 steps.
    "Checkpoints take 6 % of a step: try checkpoint.every_n_train_steps=640 (now 100)": facts(checkpoint=6),
    "try trainer.log_every_n_steps=100 (now 10), or callbacks.progress_bar=null": facts(logging=6),
    "The debugger takes 6 % of a step: try debugger.every_n_train_steps=320 (now 50)": facts(debugger=6),
    "idle 60 % of the time although batches are ready, and 90 % of its memory is free: try data.batch_size=64 "
    "(now 32) and trainer.precision=bf16-mixed": with_usage(facts(IDLE_GPU), gpu_percent=40.0),
    "idle 38 % of the time although": facts(IDLE_GPU, free=160.0),
    "93 % of the machine's memory was in use": with_usage(facts(), memory_percent=93.0),
    "try data.num_workers=2 (now 4)": with_usage(facts({"workers": 4, "threads": 1}), memory_percent=93.0),
    "Tensors filled 94 % of the GPU's memory: data.batch_size=16 trainer.accumulate_grad_batches=2 (now 32": facts(
        {**GPU, "gpu_peak_mb": 75_000.0}
    ),
    "4 computing threads and 4 workers share 4 cores, and wait for each other: try data.num_workers=0": facts(
        {"workers": 4}
    ),
    "4 computing threads and 4 workers share 4 cores, and wait for each other: try data.num_workers=0 (now 2)": facts(
        {"workers": 2, "threads": 2, "processes": 2}
    ),
    "few processes prepare batches; try data.num_workers=3 (now 2).": facts(
        {"workers": 2, "threads": 1, "cores": 8, "processes": 2}, data=16
    ),
    "Other programs kept 50 % of the cores busy": with_usage(facts(), cpu_percent=200.0),
}
QUIET = {
    "an even run": facts(),
    "little of each": facts(data=14, augmentation=24, checkpoint=4, logging=4, debugger=4),
    "data that the GPU does not wait for": facts(GPU, data=41, free=60.0),
    "a GPU that is filled": with_usage(facts(GPU), gpu_percent=40.0),
    "a GPU that is busy": with_usage(facts(IDLE_GPU), gpu_percent=80.0),
    "memory to spare": with_usage(facts(), memory_percent=89.0),
    "some workers": facts({"workers": 3}),
    "others that do little": with_usage(facts(), cpu_percent=310.0),
    "few validations": replace(VALIDATING, config={"trainer": {"max_epochs": 3}}),
    "nothing to switch off": replace(facts(augmentation=40), config={}),
}


@pytest.mark.parametrize("said", TRIGGERED)
def test_advice_follows_from_the_figures(said: str) -> None:
    sentences = advice(TRIGGERED[said])
    assert len(sentences) == 1 and said in sentences[0]


@pytest.mark.parametrize("case", QUIET)
def test_where_nothing_stands_out_nothing_is_said(case: str) -> None:
    assert advice(QUIET[case]) == []


def test_whatever_is_advised_can_be_said_on_the_command_line() -> None:
    said = " ".join(sentence for each in TRIGGERED.values() for sentence in advice(each))
    overrides = set(re.findall(r"\+?[a-z_]+(?:\.[a-z_]+)+=[\w-]+", said))
    assert len(overrides) >= 15
    for override in overrides - {"debugger.every_n_train_steps=320"}:
        validate(compose([override]))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["profiler=simple", "profiler.every_n_train_steps=0"], "profiler.every_n_train_steps=0 is out of range"),
        (["profiler=pytorch", "profiler.usage_seconds=0"], "profiler.usage_seconds=0 is out of range"),
        (["profiler=advanced", "profiler.kind=simple"], "profiler.kind=simple is set by choosing the option"),
        (["debugger=tensors", "debugger.kind=smdebug"], "debugger.kind=smdebug is set by choosing the option"),
        (["profiler=simple", "+trainer.profiler=simple"], "keep one, or set trainer.profiler=null"),
    ],
)
def test_settings_that_measure_nothing_are_refused(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        validate(compose(overrides))
