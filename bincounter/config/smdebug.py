"""``debugger=smdebug``: its settings, the request that stands for them, and the environment they need.

The words are SageMaker Debugger's: a collection is a group of tensors, a step is one batch, and a mode is training
(``train``), validation (``eval``) or the scoring of the test photos (``predict``).
"""

import importlib.metadata
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from bincounter.config.choices import one_of
from bincounter.config.sagemaker_rules import check_debug_rules
from bincounter.errors import ConfigError

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
            raise ConfigError(f"debugger.include_regex: {pattern!r} is no regular expression ({error})") from None
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
