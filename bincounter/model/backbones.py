"""ResNet and CNN backbones, and their pretrained weights.

A backbone of your own is any callable that returns an ``nn.Module``, named in a config file::

    backbone:
      _target_: my_models.tiny
      width: 32

Only ``forward`` is required of the module; :func:`feature_size` and :func:`cam_layer` infer what is missing:

===============  ============================================================  ===================================
attribute        value                                                         without it
===============  ============================================================  ===================================
``forward``      ``float[B, 3, S, S] -> float[B, D]``                          required
``feature_size`` ``D``                                                         ``head_hidden_size`` or
                                                                               ``num_features`` (timm's names), else
                                                                               measured on one blank photo
``stages``       sequence of sequences of modules, from input to output       ``trained=all`` and ``frozen`` only
``cam_layer``    layer explained by Grad-CAM                                   the last ``nn.Conv2d``
``maps``         ``float[B, 3, S, S] -> float[B, C, h, w]``                    no spatial objectives
===============  ============================================================  ===================================

Where ``model.weights`` is not null, it is passed to the callable as ``weights``.
"""

import logging
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import resnet as torchvision_resnet

from bincounter.errors import ConfigError, ResourceError, check_choice, check_extra, unreadable

log = logging.getLogger(__name__)

PACKAGED = "package"
"""Value of ``model.weights`` for those of an installed package."""

_BasicBlock, _Bottleneck = torchvision_resnet.BasicBlock, torchvision_resnet.Bottleneck
_RESNETS = {
    "resnet18": (_BasicBlock, [2, 2, 2, 2]),
    "resnet34": (_BasicBlock, [3, 4, 6, 3]),
    "resnet50": (_Bottleneck, [3, 4, 6, 3]),
}


class ResNet(torchvision_resnet.ResNet):
    """torchvision's ResNet without its classifier; parameter names are torchvision's.

    He et al., Deep Residual Learning for Image Recognition, CVPR 2016, https://arxiv.org/abs/1512.03385.
    The last normalisation of each residual branch starts at zero (Goyal et al. 2017, https://arxiv.org/abs/1706.02677),
    which helps when training from scratch; pretrained weights overwrite it.
    """

    def __init__(self, name: str) -> None:
        block, layers = _RESNETS[name]
        super().__init__(block, layers, zero_init_residual=True)
        self.feature_size: int = 512 * block.expansion
        self.fc = nn.Identity()

    @property
    def stages(self) -> list[list[nn.Module]]:
        """Five stages from input to output: the stem and the four residual stages."""
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]

    @property
    def cam_layer(self) -> nn.Module:
        """The last residual stage."""
        return self.layer4

    def maps(self, image: Tensor) -> Tensor:
        """``float[B, 3, S, S]`` -> ``float[B, D, S/32, S/32]``."""
        stem = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        return self.layer4(self.layer3(self.layer2(self.layer1(stem))))

    def forward(self, image: Tensor) -> Tensor:
        """``float[B, 3, S, S]`` -> ``float[B, D]``."""
        return self.avgpool(self.maps(image)).flatten(1)


class PlainCNN(nn.Module):
    """Blocks of convolution, batch normalisation, ReLU and max pooling, then global average pooling."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        widths = [3, *(width * 2**block for block in range(blocks))]
        self.blocks = nn.ModuleList(map(_conv_block, widths[:-1], widths[1:]))
        self.feature_size = widths[-1]

    @property
    def stages(self) -> list[list[nn.Module]]:
        """One stage per block, from input to output."""
        return [[block] for block in self.blocks]

    @property
    def cam_layer(self) -> nn.Module:
        """The last block."""
        return self.blocks[-1]

    def maps(self, image: Tensor) -> Tensor:
        """``float[B, 3, S, S]`` -> ``float[B, D, S / 2**blocks, S / 2**blocks]``."""
        for block in self.blocks:
            image = block(image)
        return image

    def forward(self, image: Tensor) -> Tensor:
        """``float[B, 3, S, S]`` -> ``float[B, D]``."""
        return self.maps(image).mean((2, 3))


def resnet(name: str = "resnet50", weights: str | None = None) -> ResNet:
    """Build a ResNet backbone.

    Args:
        name: ``resnet18``, ``resnet34`` or ``resnet50``.
        weights: see :func:`load_weights`.

    Raises:
        ConfigError: an unknown name, unknown weights, or a file of another architecture.
        ResourceError: weights that cannot be downloaded.
    """
    check_choice("model.backbone.name", name, _RESNETS)
    backbone = ResNet(name)
    if weights is not None:
        load_weights(backbone, weights, architecture=name)
    return backbone


def cnn(width: int = 32, blocks: int = 5, weights: str | None = None) -> PlainCNN:
    """Build the plain CNN, to be trained from scratch: the capstone projects' benchmark model.

    Args:
        width: channels of the first block; every further block doubles them.
        blocks: number of blocks, each of which halves the resolution; photos need at least ``2**blocks`` pixels a side.
        weights: a local file, see :func:`load_weights`.

    Raises:
        ConfigError: ``weights`` is not a file, or a file of another architecture.
    """
    backbone = PlainCNN(width, blocks)
    if weights is not None:
        load_weights(backbone, weights)
    return backbone


def _conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    # Without bias: the batch normalisation would cancel it.
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True), nn.MaxPool2d(2))


def feature_size(backbone: nn.Module) -> int:
    """Number of features ``D``, from an attribute of the backbone, else measured.

    timm's ``num_features`` is the number before the pooling, ``head_hidden_size`` that of the output.

    Raises:
        ConfigError: the backbone does not turn a blank photo of 224 pixels into ``[1, D]``.
    """
    for attribute in ("feature_size", "head_hidden_size", "num_features"):
        if isinstance(size := getattr(backbone, attribute, None), int):
            return size
    mode = backbone.training
    try:
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(1, 3, 224, 224))
    except Exception as error:
        raise ConfigError(
            f"model.backbone: {type(backbone).__name__} has no feature_size and failed on a blank photo of "
            f"224 pixels ({error}); give the module an attribute feature_size."
        ) from error
    finally:
        backbone.train(mode)
    if not isinstance(features, Tensor) or features.ndim != 2:
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ConfigError(f"model.backbone: {type(backbone).__name__} must give features [B, D], but gave {shape}.")
    return features.shape[1]


def stages(backbone: nn.Module) -> Sequence[Sequence[nn.Module]] | None:
    """Stages of a backbone from input to output, or ``None`` if it has no attribute ``stages``."""
    return getattr(backbone, "stages", None)


def cam_layer(backbone: nn.Module) -> nn.Module:
    """Layer explained by Grad-CAM: the attribute ``cam_layer``, else the last convolution.

    Raises:
        ConfigError: the backbone has neither.
    """
    if isinstance(layer := getattr(backbone, "cam_layer", None), nn.Module):
        return layer
    convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    if not convolutions:
        raise ConfigError(f"model.backbone: {type(backbone).__name__} needs an attribute cam_layer for Grad-CAM.")
    return convolutions[-1]


_CLASSIFIER = "fc."
_CONNECT_TIMEOUT = 30.0  # seconds; a firewall that drops packets would otherwise block a run for minutes


def load_weights(backbone: nn.Module, weights: str, architecture: str | None = None) -> None:
    """Load pretrained weights into ``backbone`` in place.

    Args:
        backbone: the module to fill.
        weights: a torchvision weights name of ``architecture`` (``IMAGENET1K_V1``, ``IMAGENET1K_V2``, ``DEFAULT``: the
            the best available), or a local file: a state dict with the backbone's own parameter names (torchvision's
            for a ResNet; a classifier ``fc`` is skipped), or a bincounter checkpoint, also a run's folder or one at the
            hub (``hf://owner/name``), of which the backbone's part is used. Files are read with ``weights_only=True``.
        architecture: torchvision's name of the model, or ``None`` where torchvision has no weights for it.

    Raises:
        ConfigError: neither a known name nor a readable file that fits the backbone.
        ResourceError: the weights cannot be downloaded.
    """
    check_weights(weights, architecture)
    given = read_weights(weights) if is_file_name(weights) else _torchvision_state(weights, architecture)
    state = {name: tensor for name, tensor in given.items() if not name.startswith(_CLASSIFIER)}
    fill(backbone, state, weights)


def check_weights(weights: str, architecture: str | None) -> None:
    """Check that ``weights`` is a file or a known name, without reading it.

    Args:
        weights: see :func:`load_weights`.
        architecture: see :func:`load_weights`.

    Raises:
        ConfigError: it is neither.
    """
    if is_file_name(weights):
        if not _weights_file(weights).is_file():
            raise ConfigError(
                f"model.weights={weights} is not a file; use a weights file, a torchvision weights name or null."
            )
    elif architecture is None:
        raise ConfigError(
            f"model.weights={weights} is not a file, and this backbone has no weights by name; use a file or null."
        )
    else:
        check_choice("model.backbone.name", architecture, _RESNETS)
        known = torchvision.models.get_model_weights(architecture).__members__
        check_choice("model.weights", weights, known, where=f" for {architecture}, or a file, or null")


def is_file_name(weights: str) -> bool:
    """Return True if ``model.weights`` is a file, False for a known name."""
    return "/" in weights or "\\" in weights or bool(Path(weights).suffix) or Path(weights).exists()


def _weights_file(weights: str) -> Path:
    from bincounter.files import checkpoint_file  # here: an archive has no files.py

    return checkpoint_file(Path(weights).expanduser())


def _torchvision_state(name: str, architecture: str | None) -> Mapping[str, Tensor]:
    assert architecture is not None  # checked
    entry = torchvision.models.get_model_weights(architecture)[name]
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
    # torch.hub opens its URL without a timeout and has no argument for one.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_weights(weights: str) -> Mapping[str, Tensor]:
    """Read the state dict of a weights file, or of the backbone in a bincounter checkpoint.

    Raises:
        ConfigError: the file is broken, or holds no state dict.
        ResourceError: memory or disk failed.
    """
    path = _weights_file(weights)
    if path.suffix == ".safetensors":  # a dependency of timm
        check_extra("safetensors", extra="timm", wanted=f"model.weights={path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises almost anything on a broken file
        unsafe = ConfigError(f"model.weights={path} is not a weights file that torch can read safely.")
        raise (unreadable(f"model.weights={path}", error) or unsafe) from error
    if isinstance(content, Mapping) and "bincounter" in content and isinstance(content.get("state_dict"), Mapping):
        prefix = "backbone."
        content = {name[len(prefix) :]: v for name, v in content["state_dict"].items() if name.startswith(prefix)}
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(
            f"model.weights={path} holds no state dict; use a torchvision one or a bincounter checkpoint."
        )
    return content


def fill(backbone: nn.Module, state: Mapping[str, Tensor], weights: str) -> None:
    """Load a state dict into ``backbone`` in place; ``weights`` is its name for messages.

    Raises:
        ConfigError: the state dict is of another architecture, or has values that are not finite.
    """
    own = backbone.state_dict()
    # torchvision's older files are from before batch normalisation counted batches; torch fills these in, too.
    state = {**{name: value for name, value in own.items() if name.endswith(".num_batches_tracked")}, **state}
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    misshapen = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    kinds = (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
    if problems := [f"{len(names)} {kind} (such as {names[0]})" for kind, names in kinds if names]:
        raise ConfigError(
            f"model.weights={weights} does not fit this backbone: parameters {', '.join(problems)}; "
            "choose the model it was made for, or model.weights=null."
        )
    if broken := [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]:
        raise ConfigError(
            f"model.weights={weights} holds NaN or infinite numbers, such as in {broken[0]}; use other weights or null."
        )
    backbone.load_state_dict(state)
    log.info("Backbone starts from weights %s.", weights)
