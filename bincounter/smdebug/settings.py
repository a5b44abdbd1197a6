"""Schema of ``debugger=smdebug``, AWS's built-in rules by name, environment check.

Terms are SageMaker Debugger's: a collection is a group of tensors, a step is one batch, and a mode is training
(``train``), validation (``eval``) or the scoring of the test photos (``predict``). Rules and their parameters are from
AWS's "List of Debugger built-in rules" and from smdebug-rulesconfig.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from bincounter.errors import ConfigError, check_choice

COLLECTIONS = ("losses", "weights", "biases", "gradients")
_OF_TRAINING = ("weights", "biases")  # not changed by validation and scoring
_SAGEMAKER_RULES = ("loss_not_decreasing", "overfit", "overtraining", "vanishing_gradient", "exploding_tensor")


def _open() -> Any:
    return DictConfig({}, flags={"struct": False})  # takes new keys without Hydra's +


@dataclass
class SaveInterval:
    """Batches from one saved batch to the next, counted over all epochs; the first is always saved."""

    train: int = 500  # training batches; 200 MB each time for a ResNet50
    eval: int = 10  # validation batches
    predict: int = 10  # batches of test photos


@dataclass
class SmdebugConfig:
    """Tensors that SageMaker Debugger's hook saves in full, in RUN/debugger/smdebug."""

    kind: str = "smdebug"
    # groups of tensors: losses, weights, biases, gradients; losses are always saved
    collections: list[str] = field(default_factory=lambda: list(COLLECTIONS))
    # regular expressions of further tensors: 'backbone\.layer4.*_output_0'
    include_regex: list[str] = field(default_factory=list)
    save_interval: SaveInterval = field(default_factory=SaveInterval)
    sagemaker_rules: list[str] = field(default_factory=lambda: list(_SAGEMAKER_RULES))  # AWS's rules of a job
    # parameters of these rules: {overfit: {patience: 3}}
    sagemaker_parameters: dict[str, Any] = field(default_factory=_open)


def check_smdebug(debugger: Mapping[str, Any], *, here: bool) -> None:
    """Check the settings of smdebug, and its environment.

    Args:
        debugger: the node ``debugger`` as plain containers; other kinds are not checked.
        here: the run is in this interpreter, not on a launcher's machines.

    Raises:
        ConfigError: a wrong setting, or packages that do not work with smdebug.
    """
    if debugger["kind"] != "smdebug":
        return
    for name in debugger["collections"]:
        check_choice("debugger.collections", name, COLLECTIONS)
    for pattern in debugger["include_regex"]:
        if "," in pattern:
            raise ConfigError(f"debugger.include_regex: smdebug splits {pattern!r} at its comma: write it without one")
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
    """Return the settings as SageMaker's ``DebugHookConfig``, without output paths.

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
    """Check that smdebug runs in this interpreter.

    Raises:
        ConfigError: smdebug is missing, or does not run with an installed package; the message has the command to
            make an environment for it.
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
    from importlib import metadata  # not for every command: it imports email and zipfile

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


INTERVALS = (100, 200, 500, 1000, 5000, 60000)
"""Intervals between two samples of the machine that AWS accepts, in milliseconds."""

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
"""AWS's rules on metrics of the machine; the others read framework metrics, not supported from PyTorch 2.0 on."""


@dataclass(frozen=True)
class DebugRule:
    """A rule on tensors.

    Attributes:
        invoke: AWS's name, the value of the rule's parameter ``rule_to_invoke``.
        parameters: names of its parameters.
        collection: collection of the tensors that it reads.
        regex: regular expression of those that are in no collection.
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
    """Check names and parameters of AWS's rules, and that the tensors they read are saved.

    Args:
        debugger: the settings of ``debugger=smdebug`` as plain containers.
        evaluated: the run becomes a SageMaker job, so that AWS evaluates the rules.

    Raises:
        ConfigError: an unknown rule or parameter, or a rule without tensors.
    """
    rules, key = debugger["sagemaker_rules"], "debugger.sagemaker_rules"
    for name in rules:
        check_choice(key, name, DEBUG_RULES, where="; AWS's others need tensors that are not saved")
    _check_distinct(key, rules)
    for name, given in debugger["sagemaker_parameters"].items():
        where = f"debugger.sagemaker_parameters.{name}"
        if name not in rules:
            raise ConfigError(f"{where}: the rule is not in {key}: add {name} there, or drop the parameter")
        if not isinstance(given, Mapping):
            raise ConfigError(f"{where}={given} has no parameter name: write {where}.threshold=0.1")
        for parameter, value in given.items():
            check_choice(where, parameter, DEBUG_RULES[name].parameters)
            if isinstance(value, (Mapping, list)) or value is None:
                raise ConfigError(f"{where}.{parameter}={value} is not allowed by AWS: write a number or a string")
    for name in rules if evaluated else ():
        rule = DEBUG_RULES[name]
        if rule.collection and rule.collection not in debugger["collections"]:
            raise ConfigError(
                f"{key}: {name} reads {rule.collection}, which debugger.collections does not save: add "
                f"{rule.collection} there, or drop the rule"
            )
        if rule.regex and not debugger["include_regex"]:
            raise ConfigError(
                f"{key}: {name} reads tensors that no collection has: save them, as with "
                f"\"debugger.include_regex=['{rule.regex}']\", or drop the rule"
            )


def check_profiler_rules(profiler: Mapping[str, Any]) -> None:
    """Check sampling interval and rules of AWS's profiler.

    Args:
        profiler: the node ``profiler`` as plain containers.

    Raises:
        ConfigError: an interval that AWS rejects, or an unknown or repeated rule.
    """
    interval, rules = profiler["sagemaker_interval"], profiler["sagemaker_rules"]
    if interval is not None and interval not in INTERVALS:
        raise ConfigError(
            f"profiler.sagemaker_interval={interval} is not one of {', '.join(map(str, INTERVALS))}, in milliseconds"
        )
    for name in rules:
        check_choice("profiler.sagemaker_rules", name, PROFILER_RULES)
    _check_distinct("profiler.sagemaker_rules", rules)


def _check_distinct(key: str, rules: list[str]) -> None:
    twice = [name for name in rules if rules.count(name) > 1]
    if twice:
        raise ConfigError(f"{key} names {twice[0]} twice: drop one")
