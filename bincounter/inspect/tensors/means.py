"""Running means that stay on the device."""

from typing import Any, Self

import torch
from torch import Tensor


class PhotoMean:
    """A mean over photos; adding to it and reading it wait for nothing."""

    def __init__(self) -> None:
        self._total: Tensor = torch.zeros(())
        self._photos = 0

    def add(self, value: Tensor, photos: int) -> None:
        """Add the mean ``value`` of so many photos."""
        self._total = torch.add(self._total.to(value.device), value.float(), alpha=photos)
        self._photos += photos

    def take_over(self, other: Self) -> None:
        """Add all that ``other`` has, which starts over."""
        self._total = self._total.to(other._total.device) + other._total
        self._photos += other._photos
        other.clear()

    def mean(self) -> Tensor:
        """The mean so far, ``float32`` on the device; 0 of nothing."""
        return self._total / max(self._photos, 1)

    def clear(self) -> None:
        """Start over."""
        self._total, self._photos = torch.zeros_like(self._total), 0

    def state_dict(self) -> dict[str, Any]:
        """Sum and number of photos."""
        return {"total": float(self._total), "photos": self._photos}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` told."""
        self._total, self._photos = torch.tensor(state["total"]), state["photos"]
