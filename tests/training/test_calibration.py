"""The temperature of a trained model: fitted to labels, kept in the checkpoint, used by whatever answers with it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bincounter.model.objectives import Classification, Corn, temper
from bincounter.training.calibration import fit_temperature


@given(temperature=st.floats(0.3, 3), seed=st.integers(0, 100))
def test_the_temperature_of_many_photos_is_found(temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = 2 * torch.randn(20_000, 5, generator=generator)
    true = (outputs / temperature).softmax(1)
    labels = torch.multinomial(true, 1, generator=generator).squeeze(1)
    assert fit_temperature(outputs.log_softmax(1), labels) == pytest.approx(temperature, rel=0.1)


def test_a_few_photos_change_little() -> None:
    certain = torch.tensor([[4.0, 0, 0]]).log_softmax(1)
    assert 0.6 < fit_temperature(certain, torch.tensor([0])) < 1
    assert 1 < fit_temperature(certain, torch.tensor([1])) < 3


@pytest.mark.parametrize("objective", [Classification([1, 2, 4]), Corn([1, 2, 4])])
def test_calibrated_distributions_answer_alike(objective: Classification | Corn) -> None:
    outputs = torch.from_numpy(np.random.default_rng(0).normal(size=(50, objective.out_features))).float()
    assert torch.equal(objective.calibrated(outputs), objective.probabilities(outputs))
    objective.calibration_temperature = 2.5
    calibrated = objective.calibrated(outputs)
    assert torch.allclose(calibrated.sum(1), torch.ones(50))
    assert torch.equal(calibrated.argmax(1), objective.probabilities(outputs).argmax(1))
    assert torch.allclose(calibrated, temper(objective.probabilities(outputs).log(), 2.5).exp(), atol=1e-6)
    assert (calibrated.amax(1) <= objective.probabilities(outputs).amax(1)).all()
