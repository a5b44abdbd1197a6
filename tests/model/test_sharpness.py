"""Sharpness-aware minimisation."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bincounter.model.sharpness import SharpnessAware


def test_a_step_is_adamws_with_the_gradient_of_the_nearby_weights() -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    theirs = copy.deepcopy(ours)
    optimizer = SharpnessAware(ours.parameters(), rho=0.1, lr=0.01, weight_decay=0.05)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.05)
    for _ in range(3):
        photos, labels = torch.randn(16, 3), torch.randint(2, (16,))

        def closure(photos: torch.Tensor = photos, labels: torch.Tensor = labels) -> float:
            optimizer.zero_grad()
            loss = F.cross_entropy(ours(photos), labels)
            loss.backward()
            return loss.item()

        loss = F.cross_entropy(theirs(photos), labels)
        assert optimizer.step(closure) == pytest.approx(loss.item())  # sums in another order on some CPUs
        weights = list(theirs.parameters())
        gradients = torch.autograd.grad(loss, weights)
        norm = torch.cat([each.flatten() for each in gradients]).norm()
        moved = copy.deepcopy(theirs)
        with torch.no_grad():
            for weight, gradient in zip(moved.parameters(), gradients, strict=True):
                weight.add_(0.1 * gradient / norm)
        F.cross_entropy(moved(photos), labels).backward()
        for weight, nearby in zip(weights, moved.parameters(), strict=True):
            weight.grad = nearby.grad
        adamw.step()
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other)


def test_weights_without_a_gradient_stay_where_they_are() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = SharpnessAware([used, unused])

    def closure() -> float:
        optimizer.zero_grad()
        (loss := used.square().sum()).backward()
        return loss.item()

    optimizer.step(closure)
    assert (used != 1).all() and (unused == 1).all()
    with pytest.raises(ValueError, match="closure"):
        optimizer.step()
