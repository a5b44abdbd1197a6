"""Calibration of a trained model: one temperature for its distributions, fitted to the validation photos."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bincounter.files import link
from bincounter.model.counter import BinCounter
from bincounter.model.objectives import temper
from bincounter.model.scores import CountMetrics
from bincounter.training.checkpoint import AtomicCheckpointIO

_PRIOR = 0.5  # standard deviation of the temperature's logarithm, before any photo is seen
_WIDEST = 3.0  # of that logarithm: temperatures of 0.05 to 20


def calibrate(model: BinCounter, log_probabilities: Tensor, counts: Tensor, checkpoint: Path) -> dict[str, float]:
    """Calibrate a model, and store the temperature in its checkpoint.

    Args:
        model: at temperature 1.
        log_probabilities: of the validation photos, ``float[N, K]``.
        counts: their labels, ``int[N]``.
        checkpoint: of the model.

    Returns:
        ``temperature``, and the ``ece`` and ``cross_entropy`` of these photos without it.
    """
    before = CountMetrics(model.counts, torch.float64, model.answer)
    before.update(log_probabilities.exp(), counts, log_probabilities=log_probabilities)
    temperature = fit_temperature(log_probabilities, torch.searchsorted(torch.tensor(list(model.counts)), counts))
    model.objective.calibration_temperature = temperature
    store_temperature(checkpoint, temperature)
    return {"temperature": temperature, **{name: before[name].compute().item() for name in ("ece", "cross_entropy")}}


def fit_temperature(log_probabilities: Tensor, labels: Tensor) -> float:
    """Temperature under which the labels are most likely, see :func:`bincounter.model.objectives.temper`.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017, https://arxiv.org/abs/1706.04599. A normal prior on
    its logarithm, around 0, keeps the temperature near 1 where photos are few; of a hundred it is hardly felt.

    Args:
        log_probabilities: ``float[N, K]``.
        labels: positions in the support, ``int[N]``.
    """
    from scipy.optimize import minimize_scalar

    logarithms = log_probabilities.double()

    def cost(log_temperature: float) -> float:
        likelihood = temper(logarithms, math.exp(log_temperature)).gather(1, labels[:, None]).sum().item()
        return (log_temperature / _PRIOR) ** 2 / 2 - likelihood

    return math.exp(minimize_scalar(cost, bounds=(-_WIDEST, _WIDEST), method="bounded").x)


def store_temperature(checkpoint: Path, temperature: float) -> None:
    """Write the temperature into a checkpoint's metadata; a ``last.ckpt`` that is the same file stays the same."""
    content: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    content["bincounter"]["temperature"] = temperature
    last = checkpoint.with_name("last.ckpt")
    shared = last.exists() and last.samefile(checkpoint)
    AtomicCheckpointIO().save_checkpoint(content, checkpoint)
    if shared and last != checkpoint:
        link(checkpoint, last)
