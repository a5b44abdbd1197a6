"""Models built from a configuration or a checkpoint; of a checkpoint only trusted callables are called."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from bincounter.errors import BinCounterError, ConfigError, UserError, first_line, unreadable
from bincounter.model.counter import BinCounter
from bincounter.model.objectives import Objective, learnt_counts
from bincounter.model.trust import check_arguments, check_trusted, is_own
from bincounter.parallel import limit_threads

VERSION = 1
_PARTS = ("backbone", "objective", "optimizer", "weights")


def build_counter(
    model_cfg: Mapping[str, Any],
    objective_cfg: Mapping[str, Any],
    counts: Sequence[int],
    train_counts: Mapping[int, int] | None = None,
    learn_above: int = 0,
) -> BinCounter:
    """Build the model of a configuration, with its pretrained weights.

    Args:
        model_cfg: the ``model`` node: ``backbone`` and ``optimizer`` with their ``_target_``, ``weights``, ``head``,
            and the options of :class:`BinCounter`. Without ``optimizer`` the model cannot be fitted.
        objective_cfg: the ``objective`` node with its ``_target_``.
        counts: the support, ascending.
        train_counts: photos per count in training, for ``class_weights=balanced``.
        learn_above: see :func:`bincounter.model.objectives.learnt_counts`.

    Raises:
        ConfigError: a target that cannot be imported or built, or incompatible options.
        ResourceError: weights that cannot be downloaded.
    """
    model, objective = _plain(model_cfg), _plain(objective_cfg)
    options = {key: value for key, value in model.items() if key not in _PARTS}
    weights = {} if model.get("weights") is None else {"weights": model["weights"]}
    optimizer = model.get("optimizer")
    learnt = _instantiate("objective", objective, Objective, counts=learnt_counts(counts, learn_above))
    learnt.answered = tuple(counts)
    return BinCounter(
        backbone=_instantiate("model.backbone", model["backbone"], nn.Module, **weights),
        objective=learnt,
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
    learn_above: int = 0,
    balanced: bool = False,
    train_counts: Mapping[int, int],
    train_ids: Sequence[str],
    train_content: Tensor,
    earlier: tuple[Sequence[str], Tensor] = ((), torch.zeros(0, dtype=torch.int64)),
) -> dict[str, Any]:
    """Return the metadata to rebuild a checkpoint's model, the value of ``BinCounter.description``.

    Args:
        model_cfg: the ``model`` node; its optimizer is dropped.
        objective_cfg: the ``objective`` node.
        counts: the support, ascending.
        image_size: side of the training photos, in pixels.
        learn_above: see :func:`bincounter.model.objectives.learnt_counts`.
        balanced: training drew every count equally often.
        train_counts: photos per count in training.
        train_ids: ids of the training photos.
        train_content: ``int64[N]``, content hashes of the training photos (``uint64`` bits viewed as ``int64``).
        earlier: ids and content hashes of the photos that the initial weights were trained on.

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
        "learn_above": int(learn_above),
        "balanced": bool(balanced),
        "train_counts": {int(count): int(number) for count, number in train_counts.items()},
        "train_ids": [str(id_) for id_ in train_ids],
        "train_content": torch.as_tensor(train_content, dtype=torch.int64),
        "earlier_ids": list(earlier[0]),
        "earlier_content": earlier[1],
    }


def training_photos(description: Mapping[str, Any]) -> tuple[list[str], Tensor]:
    """Photos that a model was trained on, and those that its initial weights were trained on.

    Args:
        description: see :func:`checkpoint_metadata`.

    Returns:
        Their ids, and their content hashes ``int64[N]``.
    """
    content = (description["train_content"], description.get("earlier_content", torch.zeros(0, dtype=torch.int64)))
    return [*description["train_ids"], *description.get("earlier_ids", ())], torch.cat(content)


def load_counter(
    path: str | Path, trusted: Sequence[str] = (), *, own: bool = False
) -> tuple[BinCounter, dict[str, Any]]:
    """Rebuild the model of a checkpoint, on the CPU and in evaluation mode; nothing is downloaded.

    A checkpoint names the callables that build its model, and their arguments; one from a stranger could name
    anything. Only backbones and objectives of bincounter are called, and callables *defined* under the prefixes in
    ``trusted`` (``trusted_module.os.system`` starts with a trusted prefix, too). Arguments for initial weights are
    dropped; others that name a file or an address raise an error.

    Args:
        path: a checkpoint of :class:`BinCounter`.
        trusted: dotted prefixes of further callables to trust, such as ``my_package.``.
        own: the caller wrote the checkpoint; its arguments are not checked.

    Returns:
        The model and its metadata, see :func:`checkpoint_metadata`.

    Raises:
        UserError: the file is missing, broken, not a bincounter checkpoint, names a callable that is not trusted, or
            holds weights that are not finite.
    """
    limit_threads()  # of all that computes with it
    checkpoint = read_model(Path(path))
    description = checkpoint["bincounter"]
    try:
        parts = _trusted_parts(description, checkpoint["state_dict"], trusted, path, own=own)
        counter = build_counter(*parts)
        counter.objective.calibration_temperature = description.get("temperature", 1.0)
        counter.load_state_dict(checkpoint["state_dict"])
        check_finite(checkpoint["state_dict"])
        check_image_size(counter, description["image_size"])
    except BinCounterError as error:
        raise UserError(f"The model in {path} cannot be used: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        advice = "use the bincounter version that wrote it, or another checkpoint."
        wrong = f"{path} does not hold what its model needs; {advice}"
        raise (unreadable(path, error) or UserError(wrong)) from error
    counter.description = description
    return counter.eval(), description


def check_loadable(model: BinCounter, trusted: Sequence[str]) -> None:
    """Check, before a fit, that :func:`load_counter` will rebuild a model from the fit's checkpoints.

    Raises:
        ConfigError: it would refuse them.
    """
    assert model.description is not None
    state = model.state_dict()
    try:
        parts = _trusted_parts(model.description, state, trusted, "its checkpoints", own=True)
        if not is_own(parts):
            with torch.random.fork_rng():
                build_counter(*parts).load_state_dict(state)
    except Exception as error:  # a part of one's own may raise anything
        raise ConfigError(
            f"the model could not be rebuilt from its checkpoints ({first_line(error).rstrip('.')}): change "
            "model.backbone, model.head or objective"
        ) from error


def _trusted_parts(
    description: Mapping[str, Any], state: Mapping[str, Tensor], trusted: Sequence[str], path: str | Path, *, own: bool
) -> tuple[Any, ...]:
    """Return the arguments of :func:`build_counter` for a checkpoint's model, checked."""
    model = without_pretrained(description["model"])
    check_description(description)
    for node in (model, description["objective"]):
        check_trusted(node, trusted, path)
        if not own:
            check_arguments(node)
    photos, above = description["train_counts"], description.get("learn_above", 0)
    parts = model, description["objective"], description["counts"], photos, above
    if is_own(parts):
        _check_shapes(parts, state)
    return parts


def read_model(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint; nothing that it names is called.

    Raises:
        UserError: the file is missing, broken, or not a checkpoint of this version of bincounter.
        ResourceError: memory or disk failed.
    """
    if not path.is_file():
        raise UserError(f"Checkpoint {path} does not exist, or is a folder without one; give the path of a .ckpt file.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises almost anything on a broken file
        broken = UserError(f"{path} is truncated or not a checkpoint; give the path of a whole .ckpt file.")
        raise (unreadable(path, error) or broken) from error
    description = checkpoint.get("bincounter") if isinstance(checkpoint, Mapping) else None
    if not isinstance(description, Mapping) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of bincounter; give one that bincounter wrote.")
    if description.get("version") != VERSION:
        raise UserError(
            f"{path} has checkpoint version {description.get('version')}, this bincounter reads version {VERSION}; "
            "use the bincounter version that wrote it."
        )
    return checkpoint


def check_description(description: Mapping[str, Any]) -> None:
    """Check types and bounds of a checkpoint's metadata, see :func:`checkpoint_metadata`.

    Raises:
        UserError: an entry is wrong; unchecked, it would fail at a photo later.
    """
    wrong = "; use the bincounter version that wrote it, or another checkpoint."
    size = description["image_size"]
    if type(size) is not int or not 16 <= size <= 1024:
        raise UserError(f"its image_size is {size!r}, and photos have 16 to 1024 pixels a side{wrong}")
    counts = description["counts"]
    if not isinstance(counts, list) or not all(type(count) is int for count in counts):
        raise UserError(f"its counts are {counts!r}, not a list of whole numbers{wrong}")
    temperature = description.get("temperature", 1.0)
    if not isinstance(temperature, float) or not 0 < temperature < float("inf"):
        raise UserError(f"its temperature is {temperature!r}, not a number above 0{wrong}")
    above = description.get("learn_above", 0)
    if type(above) is not int or not 0 <= above <= 100:
        raise UserError(f"its learn_above is {above!r}, not a number of counts{wrong}")
    if type(description.get("balanced", False)) is not bool:
        raise UserError(f"its balanced is {description['balanced']!r}, not true or false{wrong}")
    photos = description["train_counts"]
    if not isinstance(photos, dict) or not all(type(n) is int and n >= 0 for pair in photos.items() for n in pair):
        raise UserError(f"its train_counts are not numbers of photos by count{wrong}")
    ids, content = description["train_ids"], description["train_content"]
    earlier = description.get("earlier_ids", []), description.get("earlier_content", torch.zeros(0))
    for names, hashes in ((ids, content), earlier):
        if (
            not isinstance(hashes, Tensor)
            or hashes.shape != (len(names),)
            or not all(isinstance(i, str) for i in names)
        ):
            raise UserError(f"its training photos are not listed by id and content{wrong}")


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Check that weights are finite.

    Raises:
        UserError: a weight is NaN or infinite.
    """
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise UserError(
            f"its weights are not finite (NaN or infinite numbers in {len(broken)} of {len(state)} tensors, such as "
            f"{broken[0]}), so its training had diverged; use an earlier checkpoint, or train again with a lower "
            "model.optimizer.lr."
        )


def check_image_size(model: BinCounter, image_size: int) -> None:
    """Check, before the first batch, that a backbone accepts photos of ``image_size`` pixels a side.

    Raises:
        ConfigError: the backbone fails on a blank photo.
    """
    mode = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the backbone cannot take photos of {image_size} pixels ({first_line(error)}): use larger ones"
        ) from None
    model.train(mode)


_LARGEST = 10_000  # width or number of layers


def _check_shapes(parts: tuple[Any, ...], state: Mapping[str, Tensor]) -> None:
    """Check that weights fit a model of bincounter, before memory is allocated for it."""
    model, objective = parts[:2]
    numbers = [*model["backbone"].values(), *(model.get("head") or {}).values(), *objective.values()]
    if any(isinstance(number, int) and number > _LARGEST for number in numbers):
        raise ValueError(f"a number above {_LARGEST:,}")
    with torch.device("meta"):
        expected = build_counter(*parts).state_dict()
    if {name: t.shape for name, t in expected.items()} != {name: t.shape for name, t in state.items()}:
        raise ValueError("other shapes")


# Arguments of torchvision and timm for initial weights.
_INITIAL = {"weights": None, "weights_backbone": None, "pretrained": False, "checkpoint_path": None}


def without_pretrained(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``model`` node without optimizer and initial weights, for the weights of a checkpoint."""
    return {**model, "backbone": _without_initial(model["backbone"]), "weights": None, "optimizer": None}


def _without_initial(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _INITIAL[key] if key in _INITIAL else _without_initial(value) for key, value in node.items()}
    return [_without_initial(value) for value in node] if isinstance(node, (list, tuple)) else node


def _instantiate(key: str, node: Mapping[str, Any], kind: type, **arguments: Any) -> Any:
    if "_target_" not in node:
        raise ConfigError(f"{key} needs a _target_, the dotted name of what builds it.")
    try:
        built = instantiate(dict(node), _convert_="all", **arguments)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, BinCounterError):
            raise cause from None
        if isinstance(cause, ModuleNotFoundError):
            raise ConfigError(
                f"{key}: {node['_target_']} needs {cause.name}, which is not installed: pip install {cause.name}"
            ) from error
        if "weights" in arguments and isinstance(cause, TypeError) and "weights" in str(cause):
            raise ConfigError(
                f"{key}: {node['_target_']} takes no weights; set model.weights=null and name them in model.backbone."
            ) from error
        raise ConfigError(f"{key}: {node['_target_']} cannot be built: {first_line(cause)}") from error
    if not isinstance(built, kind):
        raise ConfigError(f"{key}: {node['_target_']} returns a {type(built).__name__}, not a {kind.__name__}.")
    return built


def _plain(node: Mapping[str, Any]) -> dict[str, Any]:
    """Convert to plain containers, interpolations resolved."""
    if OmegaConf.is_config(node):
        return OmegaConf.to_container(node, resolve=True)  # type: ignore[return-value]
    return copy.deepcopy(dict(node))
