"""Every rule finds the fault it is for in a little training, and nothing in its twin without that fault."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faulty import Dense, fit, imbalanced
from squares import squares
from torch import nn

from bincounter.inspect.rules.values import ExplodingTensor
from bincounter.inspect.tensors.record import VALUES, StepRecord, Table

_QUICK = {
    "loss_not_decreasing": ["rules.loss_not_decreasing.num_steps=8"],
    "overfit": ["every_n_train_steps=100"],  # it looks at epochs
    "overtraining": ["every_n_train_steps=100", "rules.overtraining.delta=0.05"],
    "class_imbalance": ["every_n_train_steps=100", "rules.class_imbalance.samples=100"],
}


def sgd(**options: Any) -> dict[str, Any]:
    return {"optimizer": torch.optim.SGD, **options}


FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "loss_not_decreasing": ({"lr": 1e-9}, {}, "the mean training loss of steps 8 to 15 is"),
    "overfit": (
        {"train": squares(8), "epochs": 12},
        {"train": squares(512, batch_size=32)},
        "% above the training loss",
    ),
    "overtraining": ({"lr": 1e-9, "epochs": 7}, {"epochs": 7}, "nor for 5 the validation loss"),
    "vanishing_gradient": (
        {"backbone": lambda: Dense(14, nn.Sigmoid, gain=0.5)},
        {"backbone": lambda: Dense(2, nn.Sigmoid)},
        "the gradients of",
    ),
    "exploding_tensor": (
        sgd(backbone=lambda: Dense(4, nn.ReLU), lr=1e12, limit_val_batches=0),
        sgd(backbone=lambda: Dense(4, nn.ReLU), lr=1e-3),
        "no finite numbers: ",
    ),
    "poor_weight_initialization": (
        sgd(backbone=lambda: Dense(6, nn.ReLU, gain=0.02), lr=1e-3),
        sgd(backbone=lambda: Dense(6, nn.ReLU), lr=1e-3),
        "the variance of activations is",
    ),
    "dead_relu": (
        {"backbone": lambda: Dense(3, nn.ReLU, bias=-30)},
        {"backbone": lambda: Dense(3, nn.ReLU)},
        "3 of 3 layers have had more than 50 % of their units dead",
    ),
    "class_imbalance": (
        {"train": imbalanced(60, rarely=4)},
        {"train": imbalanced(60, rarely=50)},
        "count 3",
    ),
    "saturated_activation": (
        {"backbone": lambda: Dense(3, nn.Tanh, gain=300)},
        {"backbone": lambda: Dense(3, nn.Tanh)},
        "of their units saturated for 3 recorded steps",
    ),
}


@pytest.mark.parametrize(("update", "finds"), [(0.0, False), (1e-3, True), (np.nan, True)])
def test_gradients_of_a_step_that_fp16_skips_do_not_explode(update: float, finds: bool) -> None:
    """Loss scaling finds its bound by them; there is no GPU here to see it."""
    values = np.zeros((1, len(VALUES)), np.float32)
    gradient, weight = values.copy(), values.copy()
    gradient[0, VALUES.index("nonfinite")] = 0.5
    weight[0, VALUES.index("update_ratio")] = update
    tables = {"gradient": Table(["head.0.weight"], [""], gradient), "weight": Table(["head.0.weight"], [""], weight)}
    found = ExplodingTensor({"only_nan": False}).judge(StepRecord(0, 0, 1.0, 1.0, tables))
    assert (found is not None) == finds


@pytest.mark.parametrize("rule", FAULTS)
def test_a_rule_finds_its_fault_and_nothing_in_a_training_without_it(rule: str, tmp_path: Path) -> None:
    faulty, sound, reason = FAULTS[rule]
    found = fit(tmp_path / "faulty", *_QUICK.get(rule, []), **faulty)[rule]
    assert found["state"] == "found", found
    assert reason in found["reason"]
    assert found["advice"]
    assert fit(tmp_path / "sound", *_QUICK.get(rule, []), **sound)[rule]["state"] == "passed"
