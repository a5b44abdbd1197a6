"""Studies of random trials, made without training."""

import math
import random
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

LR, BATCH, EPOCHS, WEIGHTS = "model.optimizer.lr", "data.batch_size", "trainer.max_epochs", "model.weights"
SPACE: dict[str, BaseDistribution] = {
    LR: FloatDistribution(0.001, 0.1, log=True),
    BATCH: CategoricalDistribution([32, 64, 128]),
    EPOCHS: IntDistribution(1, 5),
    WEIGHTS: CategoricalDistribution([None, "IMAGENET1K_V2", "<b>file</b>.pt"]),
}
DIRECTIONS = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE, StudyDirection.MINIMIZE]
_START = datetime(2026, 11, 20, 10)


def command(params: Mapping[str, Any]) -> str:
    return " ".join(["bincounter train", *(f"'{key}={value}'" for key, value in params.items())])


def made_study(
    trials: int,
    *,
    metrics: int = 1,
    space: Mapping[str, BaseDistribution] = SPACE,
    failing: bool = False,
    constant: bool = False,
) -> optuna.Study:
    """A study of random trials; of every six, the fourth was pruned and the sixth failed."""
    study = optuna.create_study(directions=DIRECTIONS[:metrics])
    for number in range(trials):
        study.add_trial(_trial(random.Random(number), number, metrics, space, failing, constant))
    return study


def _trial(
    chance: random.Random,
    number: int,
    objectives: int,
    space: Mapping[str, BaseDistribution],
    failing: bool,
    constant: bool,
) -> FrozenTrial:
    params = {key: _drawn(chance, distribution) for key, distribution in space.items()}
    state = TrialState.FAIL if failing or number % 6 == 5 else TrialState.COMPLETE
    if number % 6 == 3 and objectives == 1 and not failing:
        state = TrialState.PRUNED
    score = 0.5 if constant else 0.8 - 0.1 * abs(math.log10(params.get(LR, 0.01)) + 2) - chance.random() / 20
    values = [score, 1 - score + chance.random() / 5, 0.3 + chance.random()]
    epochs = params.get(EPOCHS, 2) if state == TrialState.COMPLETE else 1
    attrs: dict[str, Any] = {"seconds": 40.0 * epochs + chance.random(), "usd": 0.01 * epochs}
    if state == TrialState.PRUNED:
        attrs["saved_seconds"] = 80.0
    if state == TrialState.FAIL:
        attrs["error"] = "the memory gave out at data.batch_size=128: <script>alert(1)</script>"
    trial = create_trial(
        state=state,
        values=values[:objectives] if state == TrialState.COMPLETE else None,
        params=params,
        distributions=dict(space),
        user_attrs=attrs,
        intermediate_values={epoch: score * (1 - 0.5**epoch) for epoch in range(1, epochs + 1)}
        if objectives == 1
        else {},
    )
    trial.datetime_start = _START + timedelta(minutes=4 * number)
    trial.datetime_complete = trial.datetime_start + timedelta(seconds=attrs["seconds"])
    return trial


def _drawn(chance: random.Random, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return chance.choice(distribution.choices)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    if isinstance(distribution, IntDistribution):
        return chance.randint(distribution.low, distribution.high)
    return 10 ** chance.uniform(math.log10(distribution.low), math.log10(distribution.high))
