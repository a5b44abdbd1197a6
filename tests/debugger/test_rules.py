"""Every rule finds the fault it is for in a little training, and nothing in its twin without that fault."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faulty import Dense, fit, imbalanced, settings
from squares import squares
from torch import nn

from bincounter.debugger.loss_rules import ClassImbalance, LossNotDecreasing, Overfit, Overtraining
from bincounter.debugger.rule import Finding, Rule
from bincounter.debugger.tensor_records import VALUES, EpochRecord, Record, StepRecord, Table
from bincounter.debugger.tensor_rules import ExplodingTensor, PoorWeightInitialization
from bincounter.errors import ConfigError

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
        "values are not finite: ",
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


def asked(rule: type[Rule], records: list[Record], *overrides: str) -> tuple[list[Finding | None], Rule]:
    """Verdict of a rule on made-up records."""
    one = rule(settings(*(f"rules.{rule.name}.{override}" for override in overrides))["rules"][rule.name])
    return [one.judge(record) for record in records], one


def losses(*values: float) -> list[Record]:
    """Recorded steps that lie side by side."""
    spread = np.zeros((1, len(VALUES)), np.float32)
    return [StepRecord(0, n, each, each, {"gradient": Table(["w"], [""], spread)}) for n, each in enumerate(values)]


def epochs(*values: tuple[float, float], trained: Any = (10, 10), right: Any = (10, 10)) -> list[Record]:
    """Ends of epochs with a training and a validation loss, each second one validated."""
    counts, ones, ten = np.array([1, 2]), np.ones(2, np.float32), np.full(2, 10)
    return [
        EpochRecord(2 * n + 1, 9 + 20 * n, train, val, counts, ones, np.array(trained) * (n + 1), ten, np.array(right))
        for n, (train, val) in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("rule", "records", "overrides"),
    [
        (LossNotDecreasing, losses(2.0, 2.0, np.nan, np.nan, np.inf, np.inf), ["num_steps=2"]),
        (Overtraining, epochs(*[(np.nan, 1.0)] * 8), []),
        (PoorWeightInitialization, losses(*[np.nan] * 8), []),
    ],
)
def test_losses_that_are_no_numbers_are_left_to_the_rule_for_them(
    rule: type[Rule], records: list[Record], overrides: list[str]
) -> None:
    assert asked(rule, records, *overrides)[0] == [None] * len(records)


def test_overtraining_counts_validations_not_epochs() -> None:
    falling = [(1 / n, 1 / n) for n in range(1, 7)]
    assert [asked(Overtraining, epochs(*falling[:number]))[1].judged for number in (4, 5, 6)] == [False, False, True]


@pytest.mark.parametrize(
    ("patience", "said"), [(1, "25 %, in this validation"), (21, "25 %, in 21 validations in a row")]
)
def test_overfit_says_how_often_it_was_seen(patience: int, said: str) -> None:
    findings, _ = asked(Overfit, epochs(*[(1.0, 2.0)] * patience), f"patience={patience}")
    assert findings[:-1] == [None] * (patience - 1)
    assert findings[-1] is not None and said in findings[-1].reason


def test_what_is_rare_and_what_is_a_new_low_can_be_set() -> None:
    few = epochs((1.0, 1.0), trained=(1000, 300), right=(10, 2))
    assert asked(ClassImbalance, few, "patience=1")[0][0] is not None  # 300 are less than half of 650
    assert asked(ClassImbalance, few, "patience=1", "threshold_rare=0.4")[0] == [None]
    assert asked(ClassImbalance, few, "patience=1", "photos=11")[0] == [None]
    slow = losses(*(2.0 * 0.995**n for n in range(8)))
    assert any(asked(PoorWeightInitialization, slow, "patience=1")[0])
    assert not any(asked(PoorWeightInitialization, slow, "patience=1", "diff_percent=0.1")[0])


def test_a_patience_that_is_never_reached_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"patience=5 is never reached in 5 recorded steps: raise .*\.steps above it"):
        settings("rules.poor_weight_initialization.steps=5")
