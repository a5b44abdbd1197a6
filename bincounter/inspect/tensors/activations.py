"""What activation functions and fully connected layers put out, measured by hooks that are there only when needed."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bincounter.inspect.tensors.statistics import activation_statistics

# What a layer hands on lies behind its activation function; convolutions and normalisations are seen through it.
_KINDS: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
    nn.Hardtanh,  # ReLU6 too
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Tanh,
    nn.Sigmoid,
    nn.Linear,
)
_RECTIFIED = (nn.ReLU, nn.ReLU6)


class ActivationHooks:
    """Measures the outputs of a model's activation functions and fully connected layers.

    A ReLU that is a function call, as in ``F.relu``, is no module and cannot be seen; nor can what lies inside a module
    that ``torch.compile`` has compiled.

    Args:
        model: whose modules they are.
        layers: names of modules, as ``model.named_modules()`` gives them.
        bounds: the settings ``dead_relu`` and ``saturated_activation`` of ``debugger.rules``.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], bounds: Mapping[str, Any]) -> None:
        modules = dict(model.named_modules())
        self._modules = {name: modules[name] for name in layers if isinstance(modules[name], _KINDS)}
        self._dead = bounds["dead_relu"]["threshold_inactivity"] / 100
        saturated = bounds["saturated_activation"]
        self._stuck = saturated["threshold_inactivity"] / 100
        self._intervals = {nn.Tanh: saturated["threshold_tanh"], nn.Sigmoid: saturated["threshold_sigmoid"]}
        self._handles: list[Any] = []
        self._calls: Counter[str] = Counter()
        self._measured: dict[str, Tensor] = {}

    @property
    def measures(self) -> bool:
        """Whether there is any such layer."""
        return bool(self._modules)

    def attach(self) -> None:
        """Measure the forward passes from now on."""
        self.detach()
        self._calls.clear()
        self._measured = {}
        self._handles = [module.register_forward_hook(self._hook(name)) for name, module in self._modules.items()]

    def detach(self) -> None:
        """Measure no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def take(self) -> tuple[list[str], list[str], list[Tensor]]:
        """Names, kinds of modules and statistics ``float[9]`` of what was measured, in the order it was computed.

        A module that is called several times, as the ReLUs of torchvision's residual blocks are, has a name for each
        call: ``relu``, ``relu#2``, ``relu#3``.
        """
        measured, self._measured = self._measured, {}
        kinds = [type(self._modules[name.partition("#")[0]]).__name__ for name in measured]
        return list(measured), kinds, list(measured.values())

    def _hook(self, name: str) -> Any:
        def measure(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if not isinstance(output, Tensor) or not output.is_floating_point() or not (output.ndim and output.numel()):
                return
            self._calls[name] += 1
            call = self._calls[name]
            with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
                measured = self._measure(module, inputs, output)
            self._measured[name if call == 1 else f"{name}#{call}"] = measured

        return measure

    def _measure(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        for kind, (low, high) in self._intervals.items():
            if isinstance(module, kind):
                return activation_statistics(output, (inputs[0].detach(), low, high), self._stuck)
        # Only a rectifier's zeros mean that a unit is off.
        active = self._dead if isinstance(module, _RECTIFIED) else None
        return activation_statistics(output, None, active)
