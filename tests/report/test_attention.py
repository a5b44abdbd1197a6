from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from bincounter.model.build import build_counter
from bincounter.report.report_photos import grad_cam

COUNTS = (0, 1, 2, 3)
OBJECTIVES = ("Classification", "NeighbourSoftened", "Corn")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors on shared cores: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def counter(objective: str = "Classification", trained: str = "all") -> Any:
    torch.manual_seed(0)
    model = {"backbone": {"_target_": "bincounter.model.backbones.cnn", "width": 8, "blocks": 3}, "trained": trained}
    return build_counter(model, {"_target_": f"bincounter.model.objectives.{objective}"}, COUNTS)


def squares(photos: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Dark 32-pixel photos, each without or with one bright square of 8 pixels somewhere; and where it is."""
    rng = np.random.default_rng(seed)
    images, mask = torch.zeros(photos, 3, 32, 32), torch.zeros(photos, 32, 32, dtype=torch.bool)
    for i in range(1, photos, 2):
        x, y = rng.integers(0, 24, 2)
        mask[i, y : y + 8, x : x + 8] = True
    images[mask[:, None].expand_as(images)] = 3.0
    return images, mask


@pytest.mark.parametrize("objective", ["Classification", "Corn"])
def test_attention_of_a_trained_counter_lies_on_what_it_counts(objective: str) -> None:
    model = counter(objective)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    images, mask = squares(64)
    counts = mask.any((1, 2)).long()
    for _ in range(30):
        likelihood = model.probabilities(images).gather(1, counts[:, None])
        (-likelihood.clamp_min(1e-9).log().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    images, mask = squares(16, seed=1)
    heat = torch.from_numpy(grad_cam(model, images))[1::2]
    mask = mask[1::2]
    inside = (heat * mask).sum((1, 2)) / mask.sum((1, 2))
    outside = (heat * ~mask).sum((1, 2)) / (~mask).sum((1, 2))
    assert (inside > 2 * outside).float().mean() >= 0.75


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("trained", ["all", "frozen"])
def test_shape_range_and_an_untouched_model(objective: str, trained: str) -> None:
    model = counter(objective, trained).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = [parameter.requires_grad for parameter in model.parameters()]
    with torch.inference_mode():
        heat = grad_cam(model, torch.randn(5, 3, 40, 40))
    assert heat.shape == (5, 40, 40)
    assert heat.dtype == np.float32
    assert heat.min() >= 0
    assert set(heat.max(axis=(1, 2)).round(5)) <= {0.0, 1.0}
    assert heat.any()
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == grads
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_photo_is_explained_as_in_a_batch() -> None:
    model, images = counter(), torch.randn(3, 3, 40, 40)
    together = grad_cam(model, images)
    alone = np.concatenate([grad_cam(model, image[None]) for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-4)
