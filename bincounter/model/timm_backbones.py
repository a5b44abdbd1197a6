"""Backbones of timm (https://github.com/huggingface/pytorch-image-models), by name."""

import difflib
import logging
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from bincounter.errors import ConfigError, ResourceError, check_choice, first_line
from bincounter.model import backbones

log = logging.getLogger(__name__)

PRETRAINED = "default"
"""Value of ``model.weights`` for timm's own weights of a model."""


class TimmBackbone(nn.Module):
    """A timm model without its classifier.

    Photos are normalised by ImageNet's mean and deviation; ``scale`` and ``shift`` convert them to the normalisation of
    the model's pretraining. They are buffers: a checkpoint does not depend on the version of timm.

    Args:
        name: name of a timm model, with or without a tag of its weights: ``mobilenetv3_small_100``,
            ``resnet18.a1_in1k``.
        image_size: side of the photos in pixels, for models built for one size; ``None`` for the model's default.
        weights: ``default`` (downloaded by timm, or read from its cache), ``package`` (from an installed package, see
            :mod:`bincounter.model.packaged_weights`), a state dict of timm (``.safetensors`` or torch's), a bincounter
            checkpoint, see :func:`bincounter.model.backbones.load_weights`, or ``None``.

    Attributes:
        feature_size: number of features ``D``.
        cam_layer: identity with the last maps as output, ``float[B, C, h, w]``; ``None`` if the model has no maps.

    Raises:
        ConfigError: an unknown name, or weights of another architecture.
        ResourceError: weights that cannot be downloaded.
        ModuleNotFoundError: timm is not installed.
    """

    net: Any

    def __init__(self, name: str, image_size: int | None = None, weights: str | None = None) -> None:
        import timm
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        check_timm(name, weights)
        super().__init__()
        known = timm.get_pretrained_cfg(name)
        is_fixed = image_size is not None and known is not None and known.fixed_input_size
        options: dict[str, Any] = {"img_size": image_size} if is_fixed else {}
        pretrained = weights is not None and weights.lower() == PRETRAINED
        try:
            self.net = cast(Any, timm.create_model(name, pretrained=pretrained, num_classes=0, **options))
        except Exception as error:  # clients of hubs raise almost anything without a network
            if not pretrained or known is None:
                raise
            why = first_line(error).rstrip(". ")
            raise ResourceError(
                f"The weights of timm's {name} cannot be downloaded ({why}); train from scratch with "
                f"model.weights=null, or fetch {known.hf_hub_id or known.url} elsewhere and name its model.safetensors "
                "with model.weights=FILE."
            ) from error
        cfg = self.net.pretrained_cfg
        mean, std = (torch.tensor(cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1) / std)
        self.register_buffer("shift", (torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1) - mean) / std)
        self.feature_size: int = self.net.head_hidden_size
        with torch.no_grad():
            size = image_size or cfg["input_size"][-1]
            features = self.net.eval().forward_features(torch.zeros(1, 3, size, size))
        self.net.train()
        self._name = name.partition(".")[0]
        self._channels_last = str(getattr(self.net, "output_fmt", "NCHW")).endswith("NHWC")
        self.cam_layer = nn.Identity() if isinstance(features, Tensor) and features.ndim == 4 else None
        if weights is not None and not pretrained:
            self._fill(weights)
        elif pretrained:
            log.info("Backbone starts from timm's weights of %s, for photos of %d pixels.", name, cfg["input_size"][-1])

    @property
    def stages(self) -> list[list[nn.Module]] | None:
        """Stages from input to output, timm's groups for layer-wise learning rates; ``None`` for a model without."""
        import timm

        if not hasattr(self.net, "group_matcher"):
            return None
        groups = timm.models.group_modules(self.net, self.net.group_matcher(coarse=True), return_values=True)
        found = list(groups.values())
        if all(weight.ndim < 2 for module in found[-1] for weight in module.parameters()):  # a last normalisation
            found[-2:] = [[*found[-2], *found[-1]]]
        return found

    def forward(self, image: Tensor) -> Tensor:
        """``float[B, 3, S, S]`` -> ``float[B, D]``."""
        features = self.net.forward_features(image * self.scale + self.shift)
        if self.cam_layer is not None and self._channels_last:
            features = self.cam_layer(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        elif self.cam_layer is not None:
            features = self.cam_layer(features)
        return self.net.forward_head(features)

    def _fill(self, weights: str) -> None:
        classifier = self.net.pretrained_cfg.get("classifier") or ()
        prefixes = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        given: Mapping[str, Tensor]
        if weights == backbones.PACKAGED:
            from bincounter.model.packaged_weights import read_packaged  # here: an archive has no such module

            names = [*self.net.state_dict(), *(f"{prefixes[0]}.{each}" for each in ("weight", "bias"))]
            given = read_packaged(self._name, names)
        else:
            given = backbones.read_weights(weights)
        if "scale" not in given:  # timm's own
            kept = {name: tensor for name, tensor in given.items() if name.rpartition(".")[0] not in prefixes}
            given = {"scale": self.scale, "shift": self.shift, **{f"net.{name}": each for name, each in kept.items()}}
        backbones.fill(self, given, weights)


def check_timm(name: str, weights: str | None) -> None:
    """Check that timm has a model, and its weights, without reading them.

    Args:
        name: see :class:`TimmBackbone`.
        weights: see :class:`TimmBackbone`.

    Raises:
        ConfigError: an unknown model, with the nearest names, or unknown weights.
        ModuleNotFoundError: timm is not installed.
    """
    import timm

    known = {*timm.list_models(), *timm.list_models(pretrained=True)}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "choose one of those that timm.list_models() returns."
        raise ConfigError(f"model.backbone.name={name} is not a model of timm {timm.__version__}: {hint}")
    if weights is None:
        return
    if weights == backbones.PACKAGED:
        from bincounter.model.packaged_weights import check_packaged

        check_packaged(name.partition(".")[0])
        return
    if backbones.is_file_name(weights):
        backbones.check_weights(weights, None)
        return
    check_choice("model.weights", weights.lower(), [PRETRAINED, backbones.PACKAGED], ", a file, a run or null")
    if not timm.is_model_pretrained(name):
        raise ConfigError(f"model.weights={weights}: timm has no weights of {name}; use a file or null.")
