"""Dataclasses of ``debugger`` and ``profiler`` and their rules.

Rules and their settings carry the names of SageMaker Debugger's built-in ones; docs/debugger.md explains
each of them, and defaults that differ.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bincounter.config.checks import bounded, check_kind
from bincounter.errors import ConfigError
from bincounter.smdebug.settings import SmdebugConfig, check_profiler_rules

ACTIONS = ("off", "warn", "stop", "fail")
MEASURED = {
    "dead_relu": ("threshold_inactivity",),
    "saturated_activation": ("threshold_tanh", "threshold_sigmoid", "threshold_inactivity"),
}
"""Settings of rules that are applied while recording, so they cannot change afterwards."""


@dataclass
class NoDebugger:
    """Nothing is recorded."""

    kind: str = "none"


@dataclass
class RuleConfig:
    """Settings of every rule."""

    # of a finding: off: none | warn: one line in the log | stop: end the fit, and score it | fail: exit code 1
    action: str = bounded("warn", choices=ACTIONS)


@dataclass
class LossNotDecreasing(RuleConfig):
    """The training loss does not fall."""

    num_steps: int = bounded(500, ge=1)  # optimizer steps whose mean loss is compared with that of as many before them
    diff_percent: float = bounded(0.1, ge=0, le=100)  # per cent by which it has to fall


@dataclass
class Overfit(RuleConfig):
    """The validation loss is far above the training loss."""

    start_step: int = bounded(0, ge=0)  # optimizer steps before the first comparison
    patience: int = bounded(3, ge=1)  # validations in a row
    ratio_threshold: float = bounded(0.25, ge=0)  # ratio (validation - training) / training that is too high


@dataclass
class Overtraining(RuleConfig):
    """Neither loss improves any more."""

    patience_train: int = bounded(3, ge=1)  # validations without a better training loss
    patience_validation: int = bounded(5, ge=1)  # validations without a better validation loss
    delta: float = bounded(0.01, ge=0)  # nats by which a loss has to be below the best to be better


@dataclass
class VanishingGradient(RuleConfig):
    """Gradients too small to train on."""

    threshold: float = bounded(1e-9, ge=0)  # mean of absolute values, below which a tensor's gradient has vanished
    patience: int = bounded(3, ge=1)  # recorded steps in a row


@dataclass
class ExplodingTensor(RuleConfig):
    """Values that are not finite."""

    only_nan: bool = False  # ignore infinities


@dataclass
class PoorWeightInitialization(RuleConfig):
    """Initial weights from which training does not start."""

    threshold: float = bounded(10.0, ge=1)  # ratio of the largest to the smallest variance of activations, over layers
    # smallest spread of a tensor's gradient, from its 5th to its 95th percentile
    distribution_range: float = bounded(1e-8, ge=0)
    patience: int = bounded(5, ge=1)  # recorded steps without a lower loss
    steps: int = bounded(10, ge=1)  # recorded steps to check
    # per cent by which a lower loss has to be below the lowest so far
    diff_percent: float = bounded(1.0, ge=0, le=100)


@dataclass
class DeadRelu(RuleConfig):
    """ReLUs whose output is always zero."""

    # per cent of a unit's values above zero, below which it is dead
    threshold_inactivity: float = bounded(1.0, ge=0, le=100)
    threshold_layer: float = bounded(50.0, ge=0, le=100)  # per cent of a layer's units
    patience: int = bounded(3, ge=1)  # recorded steps in a row


@dataclass
class ClassImbalance(RuleConfig):
    """Counts that are rare in training and often predicted wrongly."""

    threshold_imbalance: float = bounded(10.0, ge=1)  # ratio of the most frequent to the rarest count
    threshold_misprediction: float = bounded(0.7, ge=0, le=1)  # share of wrong answers on an underrepresented count
    samples: int = bounded(500, ge=1)  # training photos before the first comparison
    patience: int = bounded(3, ge=1)  # validations in a row with too many wrong answers
    # share of an even share of the training, below which a count is underrepresented
    threshold_rare: float = bounded(0.5, ge=0, le=1)
    photos: int = bounded(5, ge=1)  # validation photos that a count needs to be judged


@dataclass
class SaturatedActivation(RuleConfig):
    """Tanh and sigmoid units stuck at their limits."""

    threshold_tanh: list[float] = field(default_factory=lambda: [-4.2, 4.2])  # inputs of a tanh outside are saturated
    # inputs of a sigmoid outside are saturated
    threshold_sigmoid: list[float] = field(default_factory=lambda: [-7.0, 7.0])
    # per cent of a unit's inputs inside, below which it is saturated
    threshold_inactivity: float = bounded(1.0, ge=0, le=100)
    threshold_layer: float = bounded(50.0, ge=0, le=100)  # per cent of a layer's units
    patience: int = bounded(3, ge=1)  # recorded steps in a row


@dataclass
class RulesConfig:
    """All rules, by their names in SageMaker Debugger."""

    loss_not_decreasing: LossNotDecreasing = field(default_factory=LossNotDecreasing)
    overfit: Overfit = field(default_factory=Overfit)
    overtraining: Overtraining = field(default_factory=Overtraining)
    vanishing_gradient: VanishingGradient = field(default_factory=VanishingGradient)
    exploding_tensor: ExplodingTensor = field(default_factory=ExplodingTensor)
    poor_weight_initialization: PoorWeightInitialization = field(default_factory=PoorWeightInitialization)
    dead_relu: DeadRelu = field(default_factory=DeadRelu)
    class_imbalance: ClassImbalance = field(default_factory=ClassImbalance)
    saturated_activation: SaturatedActivation = field(default_factory=SaturatedActivation)


@dataclass
class TensorsConfig:
    """Statistics of losses, gradients, weights and activations, and rules on them."""

    kind: str = "tensors"
    every_n_train_steps: int = bounded(50, ge=1)  # optimizer steps between two recorded ones
    layers: list[str] = field(default_factory=lambda: ["."])  # regular expressions, searched for in module names
    rules: RulesConfig = field(default_factory=RulesConfig)


DEBUGGERS = {"none": NoDebugger, "tensors": TensorsConfig, "smdebug": SmdebugConfig}
"""Schemas of the options of ``debugger``."""


def check_debugger(debugger: Mapping[str, Any]) -> None:
    """Check the settings of ``debugger``.

    Args:
        debugger: as plain containers.

    Raises:
        ConfigError: the first error.
    """
    check_kind("debugger", debugger, DEBUGGERS)
    if debugger["kind"] != "tensors":
        return
    if not debugger["layers"]:
        raise ConfigError("debugger.layers=[] records no layer: name some, as in 'debugger.layers=[layer4,head]'")
    for pattern in debugger["layers"]:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"debugger.layers: {pattern!r} is not a regular expression ({error})") from None
    for name in ("threshold_tanh", "threshold_sigmoid"):
        key, ends = f"debugger.rules.saturated_activation.{name}", debugger["rules"]["saturated_activation"][name]
        if len(ends) != 2 or not ends[0] < ends[1]:
            raise ConfigError(f"{key}={ends} is not an interval: write its two ends, as in {key}=[-7,7]")
    patience, steps = (debugger["rules"]["poor_weight_initialization"][name] for name in ("patience", "steps"))
    if patience >= steps:  # the first of them is the lowest so far
        key = "debugger.rules.poor_weight_initialization"
        raise ConfigError(
            f"{key}.patience={patience} is never reached in {steps} recorded steps: raise {key}.steps above it, or set "
            f"{key}.action=off"
        )


@dataclass
class NoProfiler:
    """Nothing is measured."""

    kind: str = "none"


@dataclass
class SimpleProfiler:
    """The phases of each step, and how busy the machine is."""

    kind: str = "simple"
    # batches between two that are synchronised phase by phase on a GPU; on a CPU all are
    every_n_train_steps: int = bounded(20, ge=1)
    usage_seconds: float = bounded(1.0, ge=0.1)  # seconds between two samples of CPU, memory, disk and GPU
    sagemaker_interval: int | None = None  # milliseconds between AWS's own samples in a SageMaker job; null: none
    sagemaker_rules: list[str] = field(default_factory=lambda: ["ProfilerReport"])  # AWS's rules on those samples


@dataclass
class AdvancedProfiler(SimpleProfiler):
    """Also the Python functions that take most time in each phase."""

    kind: str = "advanced"
    functions: int = bounded(25, ge=1)  # functions listed per phase, slowest first
    first_step: int = bounded(5, ge=0)  # batches of warm-up before the first one in detail
    steps: int = bounded(50, ge=1)  # batches in detail


@dataclass
class PytorchProfiler(SimpleProfiler):
    """Also the operators that take most time in a few steps, and their trace."""

    kind: str = "pytorch"
    operators: int = bounded(50, ge=1)  # operators listed, slowest first
    first_step: int = bounded(5, ge=0)  # batches of warm-up before the first one in detail
    steps: int = bounded(3, ge=1)  # batches in detail; each adds megabytes to the trace


PROFILERS = {"none": NoProfiler, "simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PytorchProfiler}


def check_profiler(profiler: Mapping[str, Any], trainer: Mapping[str, Any]) -> None:
    """Check the settings of ``profiler``.

    Args:
        profiler: as plain containers.
        trainer: the node ``trainer``, which may name a profiler of Lightning's.

    Raises:
        ConfigError: the first error.
    """
    check_kind("profiler", profiler, PROFILERS)
    if profiler["kind"] == "none":
        return
    if trainer.get("profiler") is not None:
        raise ConfigError(
            "profiler= and trainer.profiler both measure the steps: keep one, or set trainer.profiler=null"
        )
    check_profiler_rules(profiler)
