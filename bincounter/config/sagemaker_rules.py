"""AWS's built-in rules, which SageMaker evaluates beside a training job: their names, parameters and what they need.

Names and parameters are those of AWS's "List of Debugger built-in rules" and of smdebug-rulesconfig.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bincounter.config.choices import one_of
from bincounter.errors import ConfigError

INTERVALS = (100, 200, 500, 1000, 5000, 60000)
"""Milliseconds between two samples of the machine that AWS knows."""

PROFILER_RULES = (
    "ProfilerReport",
    "BatchSize",
    "CPUBottleneck",
    "GPUMemoryIncrease",
    "IOBottleneck",
    "LoadBalancing",
    "LowGPUUtilization",
    "OverallSystemUsage",
)
"""Those on metrics of the machine; AWS's others read metrics of the framework, which end with PyTorch 2.0."""


@dataclass(frozen=True)
class DebugRule:
    """A rule on tensors.

    Attributes:
        invoke: what AWS calls it.
        parameters: names of what it can be told.
        collection: that smdebug has to save for it.
        regex: of the tensors that it looks at, none of which are in a collection.
    """

    invoke: str
    parameters: tuple[str, ...]
    collection: str = ""
    regex: str = ""


_TENSORS = ("collection_names", "tensor_regex")
_SATURATED = ("threshold_tanh_min", "threshold_tanh_max", "threshold_sigmoid_min", "threshold_sigmoid_max")
_INACTIVITY = ("threshold_inactivity", "threshold_layer")
DEBUG_RULES: Mapping[str, DebugRule] = {
    "loss_not_decreasing": DebugRule(
        "LossNotDecreasing", (*_TENSORS, "use_losses_collection", "num_steps", "diff_percent", "mode")
    ),
    "overfit": DebugRule("Overfit", ("tensor_regex", "start_step", "patience", "ratio_threshold")),
    "overtraining": DebugRule("Overtraining", ("patience_train", "patience_validation", "delta")),
    "vanishing_gradient": DebugRule("VanishingGradient", ("threshold",), collection="gradients"),
    "exploding_tensor": DebugRule("ExplodingTensor", (*_TENSORS, "only_nan")),
    "dead_relu": DebugRule("DeadRelu", ("tensor_regex", *_INACTIVITY), regex="relu_output"),
    "poor_weight_initialization": DebugRule(
        "PoorWeightInitialization",
        ("activation_inputs_regex", "threshold", "distribution_range", "patience", "steps"),
        collection="gradients",
        regex="relu_input",
    ),
    "saturated_activation": DebugRule(
        "SaturatedActivation",
        (*_TENSORS, *_SATURATED, *_INACTIVITY),
        regex="tanh_input|sigmoid_input",
    ),
}


def check_debug_rules(debugger: Mapping[str, Any], *, evaluated: bool) -> None:
    """Refuse rules that AWS does not have, or that could find nothing in what is saved.

    Args:
        debugger: the settings of ``debugger=smdebug`` as plain containers.
        evaluated: whether the run becomes a SageMaker job.

    Raises:
        ConfigError: the first thing that is wrong.
    """
    rules, key = debugger["sagemaker_rules"], "debugger.sagemaker_rules"
    for name in rules:
        one_of(key, name, DEBUG_RULES, where="; AWS's others need tensors that are not saved here")
    _refuse_twice(key, rules)
    for name, given in debugger["sagemaker_parameters"].items():
        where = f"debugger.sagemaker_parameters.{name}"
        if name not in rules:
            raise ConfigError(f"{where} is of no rule that is asked for: add {name} to {key}, or leave it out")
        if not isinstance(given, Mapping):
            raise ConfigError(f"{where}={given} names no parameter: write it as in {where}.threshold=0.1")
        for parameter, value in given.items():
            one_of(where, parameter, DEBUG_RULES[name].parameters)
            if isinstance(value, (Mapping, list)) or value is None:
                raise ConfigError(f"{where}.{parameter}={value} is nothing that AWS takes: write a number or a text")
    for name in rules if evaluated else ():
        rule = DEBUG_RULES[name]
        if rule.collection and rule.collection not in debugger["collections"]:
            raise ConfigError(
                f"{key}: {name} looks at {rule.collection}, which debugger.collections does not save: add "
                f"{rule.collection} there, or leave the rule out"
            )
        if rule.regex and not debugger["include_regex"]:
            raise ConfigError(
                f"{key}: {name} looks at tensors that no collection has: save them, as by "
                f"\"debugger.include_regex=['{rule.regex}']\", or leave the rule out"
            )


def check_profiler_rules(profiler: Mapping[str, Any]) -> None:
    """Refuse what AWS does not sample by, or has no rule of.

    Args:
        profiler: the settings as plain containers.

    Raises:
        ConfigError: the first thing that is wrong.
    """
    interval, rules = profiler["sagemaker_interval"], profiler["sagemaker_rules"]
    if interval is not None and interval not in INTERVALS:
        raise ConfigError(
            f"profiler.sagemaker_interval={interval} is not one of {', '.join(map(str, INTERVALS))}, in milliseconds"
        )
    for name in rules:
        one_of("profiler.sagemaker_rules", name, PROFILER_RULES)
    _refuse_twice("profiler.sagemaker_rules", rules)


def _refuse_twice(key: str, rules: list[str]) -> None:
    twice = [name for name in rules if rules.count(name) > 1]
    if twice:
        raise ConfigError(f"{key} names {twice[0]} twice: leave one out")
