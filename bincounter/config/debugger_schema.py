"""Dataclasses of ``debugger`` and ``profiler`` and their rules.

Rules and their settings carry the names of SageMaker Debugger's built-in ones; docs/debugger.md says what each means,
and where a default is another than there.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bincounter.config.checks import check_kind
from bincounter.errors import ConfigError, one_of
from bincounter.smdebug.settings import SmdebugConfig, check_profiler_rules

ACTIONS = ("off", "warn", "stop", "fail")
MEASURED = {
    "dead_relu": ("threshold_inactivity",),
    "saturated_activation": ("threshold_tanh", "threshold_sigmoid", "threshold_inactivity"),
}
"""Settings of rules that are bounds of what is counted while it is recorded: later on they are what they were."""


@dataclass
class NoDebugger:
    """Nothing is recorded."""

    kind: str = "none"


@dataclass
class RuleConfig:
    """What every rule has."""

    action: str = "warn"  # off | warn: one line in the log | stop: end the fit, and score it | fail: exit code 1


@dataclass
class LossNotDecreasing(RuleConfig):
    """The training loss stays where it is."""

    num_steps: int = 500  # optimizer steps whose mean loss is compared with that of as many before them
    diff_percent: float = 0.1  # by which it has to fall, in per cent


@dataclass
class Overfit(RuleConfig):
    """The validation loss is far above the training loss."""

    start_step: int = 0  # optimizer steps before the first comparison
    patience: int = 3  # validations in a row
    ratio_threshold: float = 0.25  # (validation - training) / training


@dataclass
class Overtraining(RuleConfig):
    """Neither loss improves any more."""

    patience_train: int = 3  # validations without a better training loss
    patience_validation: int = 5  # validations without a better validation loss
    delta: float = 0.01  # by how much a loss has to be lower than the best to be better, in nats


@dataclass
class VanishingGradient(RuleConfig):
    """Gradients that teach nothing."""

    threshold: float = 1e-9  # mean of absolute values, below which a tensor's gradient has vanished
    patience: int = 3  # recorded steps in a row


@dataclass
class ExplodingTensor(RuleConfig):
    """Values that are no finite numbers."""

    only_nan: bool = False  # infinities are let pass


@dataclass
class PoorWeightInitialization(RuleConfig):
    """A start from which learning does not begin."""

    threshold: float = 10.0  # largest over smallest variance of activations, over layers
    distribution_range: float = 1e-8  # smallest spread of a tensor's gradient, from its 5th to its 95th percentile
    patience: int = 5  # recorded steps without a lower loss
    steps: int = 10  # recorded steps that are looked at
    diff_percent: float = 1.0  # by which a lower loss has to be below the lowest so far, in per cent


@dataclass
class DeadRelu(RuleConfig):
    """ReLUs that let nothing pass."""

    threshold_inactivity: float = 1.0  # per cent of a unit's values above zero, below which it is dead
    threshold_layer: float = 50.0  # per cent of a layer's units
    patience: int = 3  # recorded steps in a row


@dataclass
class ClassImbalance(RuleConfig):
    """Counts that are rare in training, and rarely counted right."""

    threshold_imbalance: float = 10.0  # most frequent over rarest count
    threshold_misprediction: float = 0.7  # share of wrong answers on an underrepresented count
    samples: int = 500  # training photos seen before anything is said
    patience: int = 3  # validations in a row with too many wrong answers
    threshold_rare: float = 0.5  # share of an even share of the training, below which a count is underrepresented
    photos: int = 5  # validation photos of a count that it takes to judge its answers


@dataclass
class SaturatedActivation(RuleConfig):
    """Tanh and sigmoid units stuck at their ends."""

    threshold_tanh: list[float] = field(default_factory=lambda: [-4.2, 4.2])  # inputs outside are saturated
    threshold_sigmoid: list[float] = field(default_factory=lambda: [-7.0, 7.0])
    threshold_inactivity: float = 1.0  # per cent of a unit's inputs inside, below which it is saturated
    threshold_layer: float = 50.0  # per cent of a layer's units
    patience: int = 3  # recorded steps in a row


@dataclass
class RulesConfig:
    """All rules, by the names that SageMaker Debugger has for them."""

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
    every_n_train_steps: int = 50  # optimizer steps between two recorded ones
    layers: list[str] = field(default_factory=lambda: ["."])  # regular expressions, searched for in module names
    rules: RulesConfig = field(default_factory=RulesConfig)


DEBUGGERS = {"none": NoDebugger, "tensors": TensorsConfig, "smdebug": SmdebugConfig}
"""Schemas of the options of ``debugger``."""


def check_debugger(debugger: Mapping[str, Any]) -> None:
    """Refuse settings that nothing can be recorded or judged by.

    Args:
        debugger: as plain containers.

    Raises:
        ConfigError: the first thing that is wrong.
    """
    check_kind("debugger", debugger, DEBUGGERS)
    if debugger["kind"] != "tensors":
        return
    _at_least("debugger.every_n_train_steps", debugger["every_n_train_steps"], 1)
    if not debugger["layers"]:
        raise ConfigError("debugger.layers=[] records no layer: name some, as in 'debugger.layers=[layer4,head]'")
    for pattern in debugger["layers"]:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"debugger.layers: {pattern!r} is no regular expression ({error})") from None
    for name, rule in debugger["rules"].items():
        key = f"debugger.rules.{name}"
        one_of(f"{key}.action", rule["action"], ACTIONS)
        for setting, value in rule.items():
            if setting != "action":
                _bounds(f"{key}.{setting}", setting, value)
    patience, steps = (debugger["rules"]["poor_weight_initialization"][name] for name in ("patience", "steps"))
    if patience >= steps:  # the first of them is the lowest so far
        key = "debugger.rules.poor_weight_initialization"
        raise ConfigError(
            f"{key}.patience={patience} is never reached in {steps} recorded steps: raise {key}.steps above it, or set "
            f"{key}.action=off"
        )


def _bounds(key: str, setting: str, value: Any) -> None:
    if isinstance(value, list):
        if len(value) != 2 or not value[0] < value[1]:
            raise ConfigError(f"{key}={value} is no interval: write its two ends, as in {key}=[-7,7]")
    elif setting in ("num_steps", "steps", "samples", "photos") or setting.startswith("patience"):
        _at_least(key, value, 1)
    elif setting in ("threshold_inactivity", "threshold_layer", "diff_percent"):
        _at_least(key, value, 0, 100)
    elif setting in ("threshold_misprediction", "threshold_rare"):
        _at_least(key, value, 0, 1)
    elif setting == "threshold_imbalance" or key.endswith("poor_weight_initialization.threshold"):
        _at_least(key, value, 1)
    elif not isinstance(value, bool):
        _at_least(key, value, 0)


def _at_least(key: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value <= high or not math.isfinite(value):
        bound = f" and at most {high:g}" if high < math.inf else ""
        raise ConfigError(f"{key}={value:g} is out of range: it must be at least {low:g}{bound}")


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
