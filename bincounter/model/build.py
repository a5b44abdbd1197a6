"""Models built from a configuration, and from a checkpoint; only trusted targets are called."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from bincounter.errors import BinCounterError, ConfigError, UserError
from bincounter.model.counter import BinCounter
from bincounter.model.objectives import Objective

VERSION = 1
OWN_PARTS = ("bincounter.model.backbones.", "bincounter.model.objectives.")
_PARTS = ("backbone", "objective", "optimizer", "weights")


def build_counter(
    model_cfg: Mapping[str, Any],
    objective_cfg: Mapping[str, Any],
    counts: Sequence[int],
    train_counts: Mapping[int, int] | None = None,
) -> BinCounter:
    """Build the model that a configuration describes; pretrained weights it names are loaded.

    Args:
        model_cfg: the ``model`` node: ``backbone`` and ``optimizer`` with their ``_target_``, ``weights``, ``head``,
            and the options of :class:`BinCounter`. Without ``optimizer`` the model cannot be fitted.
        objective_cfg: the ``objective`` node with its ``_target_``.
        counts: the support, ascending.
        train_counts: photos per count in training, for ``class_weights=balanced``.

    Raises:
        ConfigError: a target that cannot be imported or built, or options that do not go together.
        ResourceError: weights that cannot be downloaded.
    """
    model, objective = _plain(model_cfg), _plain(objective_cfg)
    options = {key: value for key, value in model.items() if key not in _PARTS}
    weights = {} if model.get("weights") is None else {"weights": model["weights"]}
    optimizer = model.get("optimizer")
    return BinCounter(
        backbone=_instantiate("model.backbone", model["backbone"], nn.Module, **weights),
        objective=_instantiate("objective", objective, Objective, counts=list(counts)),
        optimizer=None if optimizer is None else _instantiate("model.optimizer", optimizer, object, _partial_=True),
        train_counts=train_counts,
        **options,
    )


def checkpoint_metadata(
    model_cfg: Mapping[str, Any],
    objective_cfg: Mapping[str, Any],
    counts: Sequence[int],
    *,
    image_size: int,
    train_counts: Mapping[int, int],
    train_ids: Sequence[str],
    train_content: Tensor,
) -> dict[str, Any]:
    """Return the metadata from which a checkpoint's model can be rebuilt: the value of ``BinCounter.description``.

    Args:
        model_cfg: the ``model`` node; its optimizer is dropped.
        objective_cfg: the ``objective`` node.
        counts: the support, ascending.
        image_size: side of the photos the model was trained on, in pixels.
        train_counts: photos per count in training.
        train_ids: ids of the training photos.
        train_content: ``int64[N]``, content hashes of the training photos (``uint64`` bits seen as ``int64``).

    Returns:
        Plain containers and one tensor, readable with ``torch.load(weights_only=True)``.
    """
    model = _plain(model_cfg)
    model.pop("optimizer", None)
    return {
        "version": VERSION,
        "model": model,
        "objective": _plain(objective_cfg),
        "counts": [int(count) for count in counts],
        "image_size": int(image_size),
        "train_counts": {int(count): int(number) for count, number in train_counts.items()},
        "train_ids": [str(id_) for id_ in train_ids],
        "train_content": torch.as_tensor(train_content, dtype=torch.int64),
    }


def load_counter(path: str | Path, trusted: Sequence[str] = ()) -> tuple[BinCounter, dict[str, Any]]:
    """Rebuild the model a checkpoint holds, on the CPU and in evaluation mode; nothing is downloaded.

    A checkpoint names the callables that build its model, so one from a stranger could name any. Only backbones and
    objectives of bincounter are called, and those under the prefixes in ``trusted``; a callable has to be *defined*
    there, since ``trusted_module.os.system`` also starts with a trusted prefix.

    Args:
        path: a checkpoint of :class:`BinCounter`.
        trusted: dotted prefixes of further callables to trust, such as ``my_package.``.

    Returns:
        The model and its description, see :func:`describe`.

    Raises:
        UserError: the file is missing, broken, not a bincounter checkpoint, or names a callable that is not trusted.
    """
    checkpoint = _read(Path(path))
    description = checkpoint["bincounter"]
    try:
        model = without_pretrained(description["model"])
        prefixes = [*OWN_PARTS, *(prefix.rstrip(".") + "." for prefix in trusted)]
        for node in (model, description["objective"]):
            _check_trusted(node, prefixes, path)
        counter = build_counter(model, description["objective"], description["counts"], description["train_counts"])
        counter.load_state_dict(checkpoint["state_dict"])
    except BinCounterError as error:
        raise UserError(f"The model in {path} cannot be built: {error}") from error
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not hold what its model needs; use the bincounter version that wrote it, or another "
            "checkpoint."
        ) from error
    counter.description = description
    return counter.eval(), description


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"Checkpoint {path} does not exist; give the path of a .ckpt file.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises almost anything on a broken file
        raise UserError(f"{path} is truncated or not a checkpoint; give the path of a whole .ckpt file.") from error
    description = checkpoint.get("bincounter") if isinstance(checkpoint, Mapping) else None
    if not isinstance(description, Mapping) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of bincounter; give one that train.py wrote.")
    if description.get("version") != VERSION:
        raise UserError(
            f"{path} has checkpoint version {description.get('version')}, this bincounter reads version {VERSION}; "
            "use the bincounter version that wrote it."
        )
    return checkpoint


def without_pretrained(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``model`` node without optimizer and initial weights, which those of a checkpoint replace."""
    starts = {"weights": None, "pretrained": False}  # the names torchvision and timm give the argument
    backbone = {key: starts.get(key, value) for key, value in model["backbone"].items()}
    return {**model, "backbone": backbone, "weights": None, "optimizer": None}


def _check_trusted(node: Any, prefixes: Sequence[str], path: str | Path) -> None:
    for target in targets_of(node):
        # The prefix is checked first, since looking a name up imports its module.
        if not any(target.startswith(prefix) for prefix in prefixes) or not _defined_in(target, prefixes):
            raise UserError(
                f"it is built by {target}, which is not part of bincounter; trust it by name if you trust {path}."
            )


def targets_of(node: Any) -> Iterator[str]:
    """Yield the targets of a node and its inner nodes.

    Raises:
        UserError: it holds an interpolation, which could name any.
    """
    if isinstance(node, str) and "${" in node:
        raise UserError("its configuration holds an interpolation; use a checkpoint that train.py wrote.")
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from targets_of(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from targets_of(value)


def _defined_in(target: str, prefixes: Sequence[str]) -> bool:
    try:
        found = get_object(target)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"it is built by {target}, which cannot be imported; install the package it is from."
        ) from error
    defined = f"{getattr(found, '__module__', None)}."
    return callable(found) and any(defined.startswith(prefix) for prefix in prefixes)


def _instantiate(key: str, node: Mapping[str, Any], kind: type, **arguments: Any) -> Any:
    if "_target_" not in node:
        raise ConfigError(f"{key} needs a _target_, the dotted name of what builds it.")
    try:
        built = instantiate(dict(node), _convert_="all", **arguments)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, BinCounterError):
            raise cause from None
        if "weights" in arguments and isinstance(cause, TypeError) and "weights" in str(cause):
            raise ConfigError(
                f"{key}: {node['_target_']} takes no weights; set model.weights=null and name them in model.backbone."
            ) from error
        raise ConfigError(f"{key}: {node['_target_']} cannot be built: {_first_line(cause)}") from error
    if not isinstance(built, kind):
        raise ConfigError(f"{key}: {node['_target_']} returns a {type(built).__name__}, not a {kind.__name__}.")
    return built


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _plain(node: Mapping[str, Any]) -> dict[str, Any]:
    """Containers without OmegaConf's types and interpolations."""
    if OmegaConf.is_config(node):
        return OmegaConf.to_container(node, resolve=True)  # type: ignore[return-value]
    return copy.deepcopy(dict(node))
