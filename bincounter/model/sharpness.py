"""Sharpness-aware minimisation: an optimizer that looks for flat minima, and overfits less on few photos."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class SharpnessAware(torch.optim.AdamW):
    """AdamW with the gradient at the nearby weights where the loss is largest, to first order.

    Foret, Kleiner, Mobahi and Neyshabur, Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR
    2021, https://arxiv.org/abs/2010.01412. A step computes the gradient twice, and takes twice as long; the training
    loss that is logged is that of the nearby weights, and both computations update running statistics.

    Args:
        params: parameters, or groups of them.
        rho: Euclidean distance to the nearby weights.
        lr: see :class:`torch.optim.AdamW`, as for the others.
        betas: see lr.
        eps: see lr.
        weight_decay: see lr.
    """

    def __init__(
        self,
        params: Iterable[Any],
        rho: float = 0.05,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self._rho = rho

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float:  # type: ignore[override]
        """Update the weights.

        Args:
            closure: resets the gradients, computes them for a batch, and returns its loss.

        Returns:
            The loss at the weights before the step.
        """
        if closure is None:
            raise ValueError("SharpnessAware.step needs a closure, since it computes the gradients twice")
        with torch.enable_grad():
            loss = closure()
        moved = [each for group in self.param_groups for each in group["params"] if each.grad is not None]
        before = [each.clone() for each in moved]  # subtracting the distance again would round
        torch._foreach_add_(moved, self._distances(moved))
        with torch.enable_grad():
            closure()
        torch._foreach_copy_(moved, before)
        super().step()
        return loss

    def _distances(self, moved: list[Tensor]) -> list[Tensor]:
        gradients = [each.grad for each in moved if each.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        return list(torch._foreach_mul(gradients, self._rho / norm.clamp(min=1e-12)))
