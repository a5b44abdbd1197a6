"""How the time of a run is measured: the settings of ``profiler``; docs/debugger.md says what the figures mean."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bincounter.config.kinds import check_kind
from bincounter.config.sagemaker_rules import check_profiler_rules
from bincounter.errors import ConfigError


@dataclass
class NoProfiler:
    """Nothing is measured."""

    kind: str = "none"


@dataclass
class SimpleProfiler:
    """The phases of each step, and how busy the machine is."""

    kind: str = "simple"
    every_n_train_steps: int = 20  # on a GPU, batches between two that are waited for, phase by phase; on a CPU all are
    usage_seconds: float = 1.0  # between two samples of CPU, memory, disk and GPU
    sagemaker_interval: int | None = None  # milliseconds between AWS's own samples in a SageMaker job; null: none
    sagemaker_rules: list[str] = field(default_factory=lambda: ["ProfilerReport"])  # of AWS's, on those samples


@dataclass
class AdvancedProfiler(SimpleProfiler):
    """Also the Python functions that take the time of each phase."""

    kind: str = "advanced"
    functions: int = 25  # per phase, those that take longest themselves
    first_step: int = 5  # batches before the first one that is looked into: they warm up
    steps: int = 50  # batches that are looked into


@dataclass
class PytorchProfiler(SimpleProfiler):
    """Also the operators that take the time of a few steps, and their trace."""

    kind: str = "pytorch"
    operators: int = 50  # those that take longest themselves
    first_step: int = 5  # batches before the first one that is looked into: they warm up
    steps: int = 3  # batches that are looked into; each adds megabytes to the trace


def check_profiler(profiler: Mapping[str, Any], trainer: Mapping[str, Any]) -> None:
    """Refuse settings that nothing can be measured by.

    Args:
        profiler: as plain containers.
        trainer: the node ``trainer``, which may name a profiler of Lightning's.

    Raises:
        ConfigError: the first thing that is wrong.
    """
    schemas = {"none": NoProfiler, "simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PytorchProfiler}
    check_kind("profiler", profiler, schemas)
    if profiler["kind"] == "none":
        return
    if trainer.get("profiler") is not None:
        raise ConfigError(
            "profiler= and trainer.profiler both measure the steps: keep one, or set trainer.profiler=null"
        )
    check_profiler_rules(profiler)
    for name, value in profiler.items():
        if name == "kind" or name.startswith("sagemaker_"):
            continue
        low = 0 if name == "first_step" else 0.1 if name == "usage_seconds" else 1
        if not low <= value < math.inf:
            raise ConfigError(f"profiler.{name}={value:g} is out of range: it must be at least {low:g}")
