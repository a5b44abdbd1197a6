import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from bincounter.errors import ConfigError
from bincounter.model.backbones import cnn
from bincounter.model.counter import BinCounter
from bincounter.model.objectives import Classification, Corn, NeighbourSoftened, Objective

SUPPORTS = st.lists(st.integers(0, 90), min_size=2, max_size=8, unique=True).map(sorted)
OBJECTIVES = st.one_of(
    st.builds(Classification, SUPPORTS, st.floats(0, 0.9)),
    st.builds(NeighbourSoftened, SUPPORTS, st.floats(0.05, 20)),
    st.builds(Corn, SUPPORTS),
)


def outputs_and_targets(objective: Objective, seed: int, scale: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outputs = scale * torch.randn(6, objective.out_features, generator=generator)
    target = torch.rand(6, len(objective.counts), generator=generator) ** 8 + 1e-9
    target = target / target.sum(1, keepdim=True)
    target[0] = F.one_hot(torch.tensor(seed % len(objective.counts)), len(objective.counts))
    return outputs.requires_grad_(), target


@settings(deadline=None, max_examples=60)
@given(objective=OBJECTIVES, seed=st.integers(0, 1000), scale=st.sampled_from([0.1, 1.0, 30.0, 1000.0]))
def test_losses_are_finite_and_probabilities_are_distributions(objective: Objective, seed: int, scale: float) -> None:
    outputs, target = outputs_and_targets(objective, seed, scale)
    loss = objective.loss(outputs, target)
    loss.sum().backward()
    probabilities = objective.probabilities(outputs)
    assert loss.shape == (6,) and (loss >= -1e-5).all() and loss.isfinite().all()
    assert outputs.grad is not None and outputs.grad.isfinite().all()
    assert probabilities.shape == target.shape and (probabilities >= 0).all()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(6))


@settings(deadline=None, max_examples=30)
@given(objective=OBJECTIVES, seed=st.integers(0, 1000))
def test_padding_has_no_loss_and_the_loss_is_linear_in_the_target(objective: Objective, seed: int) -> None:
    outputs, target = outputs_and_targets(objective, seed, 2.0)
    assert objective.loss(outputs, torch.zeros_like(target)).abs().max() == 0
    mixed = objective.loss(outputs, 0.3 * target + 0.7 * target.flip(0))
    parts = 0.3 * objective.loss(outputs, target) + 0.7 * objective.loss(outputs, target.flip(0))
    torch.testing.assert_close(mixed, parts, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_is_torchs_cross_entropy(smoothing: float) -> None:
    objective = Classification([1, 2, 3, 4, 5], label_smoothing=smoothing)
    outputs, label = torch.randn(7, 5), torch.tensor([0, 1, 2, 3, 4, 0, 2])
    expected = F.cross_entropy(outputs, label, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(objective.loss(outputs, F.one_hot(label, 5).float()), expected)


def test_the_squared_error_is_that_of_the_expected_count() -> None:
    plain, objective = Classification([1, 2, 5]), Classification([1, 2, 5], squared_error=0.2)
    outputs, label = torch.randn(4, 3), torch.tensor([0, 1, 2, 2])
    target = F.one_hot(label, 3).float()
    support = torch.tensor([1.0, 2.0, 5.0])
    miss = (outputs.softmax(1) * support).sum(1) - support[label]
    torch.testing.assert_close(objective.loss(outputs, target), plain.loss(outputs, target) + 0.2 * miss.square())
    assert objective.loss(outputs, torch.zeros(4, 3)).abs().max() == 0  # padding


def test_softened_labels_fall_with_the_distance_in_counts() -> None:
    objective = NeighbourSoftened([0, 1, 3], temperature=0.5)
    weights = torch.tensor([0.0, -1.0, -3.0]).div(0.5).exp()
    torch.testing.assert_close(objective.soft_labels()[0], weights / weights.sum())
    near, far = torch.eye(3)[1] * 5, torch.eye(3)[2] * 5
    target = torch.eye(3)[:1]
    assert objective.loss(near[None], target) < objective.loss(far[None], target)


def corn_reference(outputs: list[list[float]], labels: list[int]) -> tuple[float, int]:
    """Equation 4 of arXiv:2111.08851 in scalar form: the summed loss and the number of (photo, task) pairs."""
    total, pairs = 0.0, 0
    for task in range(len(outputs[0])):
        for row, label in zip(outputs, labels, strict=True):
            if label < task:  # only photos that passed all tasks before belong to this task's subset
                continue
            probability = 1 / (1 + 2.718281828459045 ** -row[task])
            total -= float(torch.tensor(probability if label > task else 1 - probability).log())
            pairs += 1
    return total, pairs


def test_corn_is_the_papers_loss_up_to_its_normalisation() -> None:
    objective, labels = Corn([1, 2, 3, 4]), [0, 1, 2, 3, 3, 1]
    outputs = torch.randn(6, 3)
    total, pairs = corn_reference(outputs.tolist(), labels)
    ours = objective.loss(outputs, F.one_hot(torch.tensor(labels), 4).float())
    assert pairs == sum(min(label + 1, 3) for label in labels)
    assert ours.sum().item() == pytest.approx(total, rel=1e-4)


def test_corn_probabilities_and_loss_follow_their_formulas() -> None:
    objective, outputs = Corn([0, 2, 5]), torch.randn(4, 2)
    passed = outputs.sigmoid()
    expected = torch.stack([1 - passed[:, 0], passed[:, 0] * (1 - passed[:, 1]), passed[:, 0] * passed[:, 1]], 1)
    torch.testing.assert_close(objective.probabilities(outputs), expected)
    target = torch.tensor([[0.2, 0.5, 0.3]]).expand(4, 3)
    hazard = F.binary_cross_entropy(passed[:, 0], torch.full((4,), 0.8), reduction="none") + 0.8 * (
        F.binary_cross_entropy(passed[:, 1], torch.full((4,), 0.3 / 0.8), reduction="none")
    )
    torch.testing.assert_close(objective.loss(outputs, target), hazard)
    torch.testing.assert_close(objective.loss(outputs, target), -(target * expected.log()).sum(1))


@pytest.mark.parametrize("kind", [Classification, NeighbourSoftened, Corn])
def test_gradient_descent_on_outputs_finds_every_label(kind: type[Objective]) -> None:
    objective = kind([0, 1, 2, 3])
    outputs = torch.zeros(4, objective.out_features, requires_grad=True)
    optimizer = torch.optim.Adam([outputs], lr=0.3)
    for _ in range(100):
        optimizer.zero_grad()
        objective.loss(outputs, torch.eye(4)).sum().backward()
        optimizer.step()
    assert objective.probabilities(outputs).argmax(1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("counts", [[], [3], [1, 1], [2, 1], [-1, 0]])
def test_a_support_that_is_none_is_refused(counts: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"data\.counts"):
        Classification(counts)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="label_smoothing"):
        Classification([0, 1], label_smoothing=1.0)
    with pytest.raises(ConfigError, match="squared_error"):
        Classification([0, 1], squared_error=-1.0)
    with pytest.raises(ConfigError, match="temperature"):
        NeighbourSoftened([0, 1], temperature=0.0)


class Poisson(Objective):
    """The example of Objective's docstring."""

    out_features = 1

    def log_rates(self, outputs: Tensor) -> Tensor:
        log_mean = outputs.clamp(-5, 5)
        return self.support * log_mean - log_mean.exp() - torch.lgamma(self.support + 1)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return -(target * self.log_rates(outputs)).sum(1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        return self.log_rates(outputs).softmax(1)


class DensityMap(Poisson):
    """A density per place whose sum is the mean count: an objective with a head of its own over maps."""

    spatial = True

    def head(self, in_features: int, **options: object) -> nn.Module:
        return nn.Conv2d(in_features, 1, 1)

    def log_rates(self, outputs: Tensor) -> Tensor:
        return super().log_rates(F.softplus(outputs).sum((1, 2, 3))[:, None].log())


@pytest.mark.parametrize("kind", [Poisson, DensityMap])
def test_objectives_of_ones_own_learn_to_count(kind: type[Objective], big_loader: DataLoader) -> None:
    torch.manual_seed(0)
    counter = BinCounter(cnn(8, 3), kind([0, 1, 2, 3]))
    optimizer = torch.optim.Adam(counter.parameters(), lr=1e-2)
    for batch in itertools.chain(big_loader, big_loader):
        optimizer.zero_grad()
        counter.objective.loss(counter(batch["image"]), F.one_hot(batch["count"], 4).float()).mean().backward()
        optimizer.step()
    expected = counter.probabilities(batch["image"]) @ torch.arange(4.0)
    assert expected[batch["count"] == 3].mean() > expected[batch["count"] == 0].mean() + 1


def test_a_spatial_objective_needs_a_backbone_with_maps() -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    with pytest.raises(ConfigError, match="maps"):
        BinCounter(backbone, DensityMap([0, 1]))


@pytest.mark.parametrize("kind", [Classification, NeighbourSoftened, Corn])
def test_the_support_follows_the_module_and_stays_out_of_its_state(kind: type[Objective]) -> None:
    objective = kind([0, 1, 2])
    assert objective.to("meta").support.device.type == "meta"
    assert not list(objective.buffers()) and not objective.state_dict()
