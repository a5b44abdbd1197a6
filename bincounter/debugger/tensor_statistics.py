"""Statistics of many tensors in few kernels; hooks on activations."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

STATISTICS = ("mean", "std", "min", "max", "norm", "abs_mean", "zeros", "nonfinite")
"""Statistics of each tensor; ``norm`` is Euclidean, ``zeros`` and ``nonfinite`` are fractions 0-1."""

_BLOCK = 4096  # values of a row; tensors of at most one row, such as biases, are summed in float64
_CPU_CHUNK = 2**20  # values of an activation processed together, to fit the processor's cache


class Blocks:
    """Layout of tensors in the rows of one matrix, so that one reduction covers all of them.

    Args:
        tensors: ``N`` tensors on one device; their shapes and memory formats must not change.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._device = tensors[0].device
        self._sizes = [tensor.numel() for tensor in tensors]
        rows = [-(-size // _BLOCK) for size in self._sizes]
        self._starts = [0]
        for number in rows:
            self._starts.append(self._starts[-1] + number)
        wide = _wide(self._device)
        self._rows = torch.tensor(rows, device=self._device)
        self._last = torch.tensor([start - 1 for start in self._starts[1:]], device=self._device)
        self._numel = torch.tensor(self._sizes, dtype=wide, device=self._device)
        in_last = torch.tensor([(size - 1) % _BLOCK + 1 for size in self._sizes], device=self._device)
        self._inside = torch.arange(_BLOCK, device=self._device) < in_last[:, None]

    def matrix(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the tensors' values, ``float32[rows, 4096]``; the rest of each tensor's last row is zero."""
        matrix = torch.zeros(self._starts[-1], _BLOCK, device=self._device)
        flat = matrix.view(-1)
        places = [flat[start * _BLOCK :][:size] for start, size in zip(self._starts, self._sizes, strict=False)]
        torch._foreach_copy_(places, [_in_memory_order(tensor) for tensor in tensors])
        return matrix

    def norms(self, matrix: Tensor) -> Tensor:
        """Return the Euclidean norm of each tensor, ``float[N]``."""
        return self._reduce(torch.linalg.vector_norm(matrix, 2, dim=1).to(self._numel.dtype).square(), "sum").sqrt()

    def statistics(self, matrix: Tensor) -> Tensor:
        """Return :data:`STATISTICS` of each tensor, ``float[N, 8]``; ``matrix`` is overwritten.

        Sums are in float32 within a row, and in float64 (if the device has it) over rows and within each tensor's last
        row, which is all of a small one. Large weights and gradients scatter around zero, so that their variance is not
        a difference of large numbers.
        """
        sums, squares = matrix.sum(1), torch.linalg.vector_norm(matrix, 2, dim=1)
        lowest, highest = matrix.amin(1), matrix.amax(1)
        last = matrix[self._last].to(self._numel.dtype)
        nonfinite = _nonfinite(matrix, squares, dim=1)
        absolute = matrix.abs_().sum(1)  # in place: on a CPU an allocation takes longer than the sums
        nonzero = _nonzero_(matrix, squares, dim=1)

        sums, squares = sums.to(last.dtype), squares.to(last.dtype).square()
        sums[self._last], squares[self._last] = last.sum(1), last.square().sum(1)
        lowest[self._last] = last.masked_fill(~self._inside, torch.inf).amin(1).to(lowest.dtype)
        highest[self._last] = last.masked_fill(~self._inside, -torch.inf).amax(1).to(highest.dtype)
        total, square = self._reduce(sums, "sum"), self._reduce(squares, "sum")
        mean = total / self._numel
        columns = (
            mean,
            (square / self._numel - mean.square()).clamp(min=0).sqrt(),
            self._reduce(lowest.to(last.dtype), "min"),
            self._reduce(highest.to(last.dtype), "max"),
            square.sqrt(),
            self._reduce(absolute.to(last.dtype), "sum") / self._numel,
            1 - self._reduce(nonzero.to(last.dtype), "sum") / self._numel,
            self._reduce(nonfinite.to(last.dtype), "sum") / self._numel,
        )
        return torch.stack(columns, dim=1)

    def _reduce(self, rows: Tensor, how: str) -> Tensor:
        """Values of rows ``[rows]`` -> values of tensors ``[N]``."""
        # unsafe: without a check of the lengths, which would synchronise with a GPU
        return torch.segment_reduce(rows, how, lengths=self._rows, unsafe=True)


def activation_statistics(output: Tensor, inside: tuple[Tensor, float, float] | None, active: float | None) -> Tensor:
    """Return :data:`STATISTICS` of an activation and its fraction of inactive units, ``float[9]``.

    A unit is a channel of ``[B, C, H, W]``, else an entry of the last dimension.

    Args:
        output: ``float[B, ...]``.
        inside: values of the shape of ``output``, with the bounds between which they are active; by default all
            values of ``output`` but zero are active.
        active: minimum fraction of active values of an active unit, 0-1; ``None`` makes the last number NaN.
    """
    wide = _wide(output.device)
    units = output.shape[1 if output.ndim == 4 else -1]
    total, square, absolute, nonfinite = (torch.zeros((), dtype=wide, device=output.device) for _ in range(4))
    nonzero, working = (torch.zeros(units, device=output.device) for _ in range(2))
    lowest, highest = [], []
    whole = output.device.type != "cpu"
    photos = len(output) if whole else max(_CPU_CHUNK // max(output[0].numel(), 1), 1)
    chunks = _by_unit(output).split(photos)
    sources = [None] * len(chunks) if inside is None else _by_unit(inside[0]).split(photos)
    for chunk, source in zip(chunks, sources, strict=True):
        values = chunk.reshape(-1, units).float()
        total += values.sum(0).to(wide).sum()
        norm = torch.linalg.vector_norm(values, 2)
        square += norm.to(wide).square()
        lowest.append(values.amin())
        highest.append(values.amax())
        nonfinite += _nonfinite(values, norm).to(wide)
        values = values.abs()  # not in place: the model needs the activation
        absolute += values.sum(0).to(wide).sum()
        present = _nonzero_(values, norm, dim=0)
        nonzero += present
        if source is None or inside is None:
            working += present
        else:
            given = source.reshape(-1, units)
            working += ((given > inside[1]) & (given < inside[2])).float().sum(0)
    number = output.numel()
    mean = total / number
    columns = (
        mean,
        (square / number - mean.square()).clamp(min=0).sqrt(),
        torch.stack(lowest).amin().to(wide),
        torch.stack(highest).amax().to(wide),
        square.sqrt(),
        absolute / number,
        1 - nonzero.to(wide).sum() / number,
        nonfinite / number,
        mean * torch.nan if active is None else (working * (units / number) < active).to(wide).mean(),
    )
    return torch.stack(columns)


def _nonfinite(values: Tensor, norm: Tensor, dim: int | None = None) -> Tensor:
    """Count the values that are not finite; on a CPU, only if the norm is not finite."""
    return torch.zeros_like(norm) if _finite(norm) else torch.isfinite(values).logical_not().sum(dim=dim)


def _nonzero_(values: Tensor, norm: Tensor, dim: int) -> Tensor:
    """Count nonzero values, NaN included; ``values`` are absolute, and may be overwritten."""
    # sign_ is faster on a CPU, but turns NaN into zero.
    return values.sign_().sum(dim) if _finite(norm) else (values != 0).sum(dim).float()


def _finite(norm: Tensor) -> bool:
    return norm.device.type == "cpu" and bool(norm.isfinite().all())


def _by_unit(tensor: Tensor) -> Tensor:
    """Move units last: ``[B, ..., C]``, without a copy."""
    return tensor.detach().movedim(1, -1) if tensor.ndim == 4 else tensor.detach()


def _in_memory_order(tensor: Tensor) -> Tensor:
    """Return all values of a dense tensor in memory order, without a copy."""
    strides = tensor.stride()
    order = sorted(range(tensor.ndim), key=lambda dim: -strides[dim])
    return tensor.detach().permute(order).reshape(-1)


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


# Activation functions stand for the convolution and normalisation before them.
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
    """Hooks that measure the outputs of activation functions and fully connected layers.

    Functions such as ``F.relu`` are no modules and cannot be hooked, nor can parts of a module compiled by
    ``torch.compile``.

    Args:
        model: the model.
        layers: names of modules in ``model.named_modules()``; others than those above are ignored.
        bounds: the settings ``dead_relu`` and ``saturated_activation`` of ``debugger.rules``.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], bounds: Mapping[str, Any]) -> None:
        modules = dict(model.named_modules())
        self._modules = {name: modules[name] for name in layers if isinstance(modules[name], _KINDS)}
        self._dead = bounds["dead_relu"]["threshold_inactivity"] / 100
        saturated = bounds["saturated_activation"]
        self._saturated = saturated["threshold_inactivity"] / 100
        self._intervals = {nn.Tanh: saturated["threshold_tanh"], nn.Sigmoid: saturated["threshold_sigmoid"]}
        self._handles: list[Any] = []
        self._calls: Counter[str] = Counter()
        self._measured: dict[str, Tensor] = {}

    @property
    def measures(self) -> bool:
        """Return True if there is a module to measure."""
        return bool(self._modules)

    def attach(self) -> None:
        """Start measuring, without results so far."""
        self.detach()
        self._calls.clear()
        self._measured = {}
        self._handles = [module.register_forward_hook(self._hook(name)) for name, module in self._modules.items()]

    def detach(self) -> None:
        """Stop measuring."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def take(self) -> tuple[list[str], list[str], list[Tensor]]:
        """Return names, module classes and statistics ``float[9]`` of the measured outputs, in order of computation.

        A module that is called several times, such as the ReLU of torchvision's residual blocks, has a name for each
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
                return activation_statistics(output, (inputs[0].detach(), low, high), self._saturated)
        # Zeros mean inactive units in rectifiers only.
        active = self._dead if isinstance(module, _RECTIFIED) else None
        return activation_statistics(output, None, active)
