"""Pretrained weights of a backbone: torchvision's by name, or a local file."""

import logging
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from bincounter.config.choices import one_of
from bincounter.errors import ConfigError, ResourceError

log = logging.getLogger(__name__)

_CLASSIFIER = "fc."
_CONNECT_TIMEOUT = 30.0  # seconds; a firewall that drops packets would otherwise hold a run for minutes


def load_weights(backbone: nn.Module, weights: str, architecture: str | None = None) -> None:
    """Load pretrained weights into ``backbone`` in place.

    Args:
        backbone: the module to fill.
        weights: a torchvision weights name of ``architecture`` (``IMAGENET1K_V1``, ``IMAGENET1K_V2``, ``DEFAULT``: the
            best there is), or a local file: a state dict with the backbone's own parameter names (torchvision's for a
            ResNet; a classifier ``fc`` is left out), or a bincounter checkpoint, from which the backbone's part is
            taken. Files are read with ``weights_only=True``.
        architecture: torchvision's name of the model, or ``None`` where torchvision has no weights for it.

    Raises:
        ConfigError: neither a known name nor a file that can be read and fits the backbone.
        ResourceError: the weights cannot be downloaded.
    """
    given = _read(Path(weights).expanduser()) if _is_file_name(weights) else _torchvision_state(weights, architecture)
    state = {name: tensor for name, tensor in given.items() if not name.startswith(_CLASSIFIER)}
    _fill(backbone, state, weights)
    log.info("Backbone starts from weights %s.", weights)


def _is_file_name(weights: str) -> bool:
    return "/" in weights or "\\" in weights or bool(Path(weights).suffix) or Path(weights).is_file()


def _torchvision_state(name: str, architecture: str | None) -> Mapping[str, Tensor]:
    if architecture is None:
        raise ConfigError(
            f"model.weights={name} is no file, and this backbone has no weights by name; use a file or null."
        )
    known = torchvision.models.get_model_weights(architecture)
    one_of("model.weights", name, known.__members__, where=f" for {architecture}, or a file, or null")
    entry = known[name]
    try:
        with _socket_timeout(_CONNECT_TIMEOUT):
            return entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: the hash is wrong
        raise ResourceError(
            f"Weights {name} of {architecture} cannot be downloaded ({error}); train from scratch with "
            f"model.weights=null, or fetch {entry.url} elsewhere and name the file with model.weights=FILE."
        ) from error


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    # torch.hub opens its URL without a timeout and takes none.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise ConfigError(f"model.weights={path} is no file; name a weights file, a torchvision weights name, or null.")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises almost anything on a broken file
        raise ConfigError(f"model.weights={path} is not a weights file that torch can read safely.") from error
    if isinstance(content, Mapping) and "bincounter" in content and isinstance(content.get("state_dict"), Mapping):
        prefix = "backbone."
        content = {name[len(prefix) :]: v for name, v in content["state_dict"].items() if name.startswith(prefix)}
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(
            f"model.weights={path} holds no state dict; use a torchvision one or a bincounter checkpoint."
        )
    return content


def _fill(backbone: nn.Module, state: Mapping[str, Tensor], weights: str) -> None:
    own = backbone.state_dict()
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    misshapen = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    kinds = (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
    if problems := [f"{len(names)} {kind} (such as {names[0]})" for kind, names in kinds if names]:
        raise ConfigError(
            f"model.weights={weights} does not fit this backbone: parameters {', '.join(problems)}; "
            "choose the model it was made for, or model.weights=null."
        )
    backbone.load_state_dict(state)
