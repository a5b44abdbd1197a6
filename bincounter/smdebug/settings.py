"""Schema of ``debugger=smdebug``, AWS's built-in rules by name, environment check.

The words are SageMaker Debugger's: a collection is a group of tensors, a step is one batch, and a mode is training
(``train``), validation (``eval``) or the scoring of the test photos (``predict``).

Names and parameters are those of AWS's "List of Debugger built-in rules" and of smdebug-rulesconfig.
"""

import importlib.metadata
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from bincounter.errors import ConfigError, one_of

COLLECTIONS = ("losses", "weights", "biases", "gradients")
_OF_TRAINING = ("weights", "biases")  # what validation and scoring leave as it is
_SAGEMAKER_RULES = ("loss_not_decreasing", "overfit", "overtraining", "vanishing_gradient", "exploding_tensor")


def _open() -> Any:
    return DictConfig({}, flags={"struct": False})  # takes new keys without Hydra's +


@dataclass
class SaveInterval:
    """Batches between two whose tensors are saved, the first of which always is; one count over all epochs."""

    train: int = 500  # smdebug's own default; weights and gradients take 200 MB each time for a ResNet50
    eval: int = 10
    predict: int = 10


@dataclass
class SmdebugConfig:
    """What SageMaker Debugger's hook saves, in full, in RUN/debugger/smdebug."""

    kind: str = "smdebug"
    collections: list[str] = field(default_factory=lambda: list(COLLECTIONS))  # losses are saved anyway
    include_regex: list[str] = field(default_factory=list)  # more tensors by name: 'backbone\.layer4.*_output_0'
    save_interval: SaveInterval = field(default_factory=SaveInterval)
    sagemaker_rules: list[str] = field(default_factory=lambda: list(_SAGEMAKER_RULES))  # of AWS's, in a SageMaker job
    sagemaker_parameters: dict[str, Any] = field(default_factory=_open)  # of these rules: {overfit: {patience: 3}}


def check_smdebug(debugger: Mapping[str, Any], *, here: bool) -> None:
    """Refuse settings that smdebug cannot follow, and an environment that it cannot run in.

    Args:
        debugger: the settings as plain containers; others than smdebug's pass.
        here: the run is carried out by this interpreter, not by a launcher's machines.

    Raises:
        ConfigError: the first thing that is wrong.
    """
    if debugger["kind"] != "smdebug":
        return
    for name in debugger["collections"]:
        one_of("debugger.collections", name, COLLECTIONS)
    for pattern in debugger["include_regex"]:
        if "," in pattern:
            raise ConfigError(f"debugger.include_regex: smdebug takes {pattern!r} apart at its comma: do without")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"debugger.include_regex: {pattern!r} is not a regular expression ({error})") from None
    for mode, batches in debugger["save_interval"].items():
        if batches < 1:
            raise ConfigError(f"debugger.save_interval.{mode}={batches} is out of range: it must be at least 1")
    check_debug_rules(debugger, evaluated=not here)
    if here:
        require_smdebug()


def hook_config(debugger: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as SageMaker's ``DebugHookConfig``, but for the places that tensors go to.

    Args:
        debugger: the settings as plain containers.
    """
    parameters = {f"{mode}.save_interval": str(batches) for mode, batches in debugger["save_interval"].items()}
    if debugger["include_regex"]:
        parameters["include_regex"] = ",".join(debugger["include_regex"])
    only_train = {"eval.end_step": "0", "predict.end_step": "0"}
    return {
        "HookParameters": parameters,
        "CollectionConfigurations": [
            {"CollectionName": name, "CollectionParameters": only_train if name in _OF_TRAINING else {}}
            for name in debugger["collections"]
        ],
    }


def require_smdebug() -> None:
    """Answer an interpreter that smdebug does not run in.

    Raises:
        ConfigError: what is in the way, and the command that makes an environment for it.
    """
    smdebug, numpy, protobuf = (_version(name) for name in ("smdebug", "numpy", "protobuf"))
    in_python = os.environ.get("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION") == "python"
    wrong = []
    if _number(numpy) >= (2, 3):
        wrong.append(f"numpy {numpy}")
    if _number(protobuf) >= (3, 21) and not in_python:
        wrong.append(f"protobuf {protobuf}")
    if smdebug and not wrong:
        return
    problems = [] if smdebug else ["is not installed here"]
    problems += [f"does not run beside {' and '.join(wrong)}"] if wrong else []
    raise ConfigError(
        f"debugger=smdebug: smdebug {' and '.join(problems)}; make an environment for it by `make install-smdebug` "
        "and start the run with .venv-smdebug/bin/python train.py debugger=smdebug ..."
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


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
