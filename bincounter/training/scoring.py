"""Scoring of a run on one device: predictions, metrics, scores of each count."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from bincounter.data.datamodule import BinDataModule
from bincounter.data.records import SPLITS
from bincounter.model.counter import BinCounter
from bincounter.model.scores import clamped_log, score
from bincounter.progress import track
from bincounter.training.results import CountRow, ScoredPhotos, write_metrics, write_per_count, write_predictions
from bincounter.training.trainer import resolve_precision

log = logging.getLogger(__name__)


FEWEST_FOR_LOSS = 5
"""Photos below which a mean loss gets no interval: their spread is too uncertain."""

_NORMAL = 1.959964  # quantile 0.975 of the standard normal distribution

Interval = tuple[float, float]


def score_each_count(probabilities: Tensor, labels: Tensor, support: Sequence[int]) -> dict[int, CountRow]:
    """Score the photos of each count.

    Args:
        probabilities: ``float[N, K]``, rows sum to 1.
        labels: ``int[N]``, all in the support; ``N`` may be 0.
        support: the ``K`` counts, ascending.

    Returns:
        By count, for all of the support.
    """
    # Double precision on the CPU: the digits of metrics.json.
    probabilities, labels = probabilities.detach().to("cpu", torch.float64), labels.detach().to("cpu", torch.int64)
    counts = torch.tensor(list(support))
    right = (counts[probabilities.argmax(1)] == labels).double()
    loss = -clamped_log(probabilities.gather(1, torch.searchsorted(counts, labels)[:, None]).squeeze(1))
    return {int(count): _score(right[labels == count], loss[labels == count]) for count in support}


def _score(right: Tensor, loss: Tensor) -> CountRow:
    if not len(loss):
        return CountRow(scored=0)
    accuracy, cross_entropy = right.mean().item(), loss.mean().item()
    return CountRow(
        scored=len(loss),
        accuracy=accuracy,
        accuracy_interval=_wilson(accuracy, len(right)),
        loss=cross_entropy,
        loss_interval=_student(loss),
    )


def _wilson(share: float, n: int) -> Interval:
    """Interval of a share: it stays in 0-1 and does not vanish at the ends."""
    squared = _NORMAL**2 / n
    middle = share + squared / 2
    half = _NORMAL * (share * (1 - share) / n + squared / (4 * n)) ** 0.5
    return max((middle - half) / (1 + squared), 0.0), min((middle + half) / (1 + squared), 1.0)


def _student(loss: Tensor) -> Interval | None:
    from scipy.special import stdtrit

    n = len(loss)
    if n < FEWEST_FOR_LOSS:
        return None
    mean, half = loss.mean().item(), stdtrit(n - 1, 0.975) * loss.std().item() / n**0.5
    return max(mean - half, 0.0), mean + half


TRAINING_SAMPLE = 2000
"""Training photos scored, at most, as a fair sample of all of them."""

EACH_COUNT = 100
"""Training photos of each count scored at least, or all it has: the fair sample has few of rare counts."""


def training_sample(data: BinDataModule) -> tuple[np.ndarray, Tensor]:
    """Draw the training photos to score; the same ones for the same split.

    Args:
        data: prepared.

    Returns:
        Their positions in ``data.manifest.records``, ``int64[N]``, ascending; and ``bool[N]``, which of them are a fair
        sample of all counts together. The others bring rare counts up to :data:`EACH_COUNT`; within a count, all of
        them are a fair sample.
    """
    training = data.side("training")
    if len(training) <= TRAINING_SAMPLE:
        return training, torch.ones(len(training), dtype=torch.bool)
    rng = np.random.default_rng(0)
    fair = rng.choice(training, TRAINING_SAMPLE, replace=False)
    rest = np.setdiff1d(training, fair)
    rest_counts = np.array([data.manifest.records[i].count for i in rest])
    extra = [
        rng.choice(others, min(max(EACH_COUNT - number, 0), len(others)), replace=False)
        for count, number in data.count_of(fair).items()
        for others in [rest[rest_counts == count]]
    ]
    positions = np.sort(np.concatenate([fair, *extra]))
    return positions, torch.from_numpy(np.isin(positions, fair))


def per_count_rows(
    photos: Mapping[str, Mapping[int, int]], predicted: Mapping[str, ScoredPhotos], counts: Sequence[int]
) -> dict[tuple[int, str], CountRow]:
    """Scores of each count in each of ``train``, ``validation`` and ``test``.

    Args:
        photos: per split and count; those of ``train`` are the photos that the model learnt from, none if unknown.
        predicted: per split, as far as it was scored.
        counts: the support, ascending.
    """
    rows = {}
    for split in SPLITS:
        scored = predicted.get(split)
        by_count = {} if scored is None else score_each_count(scored.probabilities, scored.labels, counts)
        for count in counts:
            known = photos[split].get(count, 0) if photos[split] else None
            rows[count, split] = replace(by_count.get(count, CountRow(scored=0)), photos=known)
    return {(count, split): rows[count, split] for count in counts for split in SPLITS}


# Names in metrics.json and in split.csv of the sides in predictions.csv.
SIDES = {"val": "validation", "test": "test"}


def fabric_for(trainer: Mapping[str, Any], watching: Sequence[L.Callback] = ()) -> L.Fabric:
    """One device with the precision a Trainer of this configuration would use.

    Args:
        trainer: its configuration.
        watching: callbacks of the scoring, as far as they have these methods: ``on_scoring_start(model, side)`` before
            each side, ``on_scoring_batch_start(model, side)``, ``on_scoring_batch_end(model, side, count)`` with
            ``int[B]``, and ``on_scoring_end()`` after all of them.
    """
    accelerator = trainer["accelerator"]
    precision: Any = resolve_precision(trainer.get("precision"), accelerator)
    return L.Fabric(accelerator=accelerator, devices=1, precision=precision, callbacks=list(watching))


@torch.inference_mode()
def predict(model: BinCounter, data: BinDataModule, positions: np.ndarray, fabric: L.Fabric, side: str) -> ScoredPhotos:
    """Predict photos at ``positions`` of ``data.manifest.records``, in that order.

    Args:
        model: in evaluation mode, on the device of ``fabric``.
        data: prepared.
        positions: ``int64[N]``, N > 0.
        fabric: gives device and precision.
        side: ``val``, ``test`` or ``train``.
    """
    loader = data.scoring_loader(positions)
    ids: list[str] = []
    labels, probabilities = [], []
    fabric.call("on_scoring_start", model, side)
    for batch in track(loader, f"Scoring {SIDES.get(side, 'a training sample')}", len(loader)):
        moved = data.on_after_batch_transfer(fabric.to_device(batch), 0)
        fabric.call("on_scoring_batch_start", model, side)
        with fabric.autocast():
            probabilities.append(model.predict_step(moved, 0)["probabilities"].float().cpu())
        fabric.call("on_scoring_batch_end", model, side, moved["count"])
        labels.append(batch["count"].cpu())
        ids += batch["id"]
    return ScoredPhotos(ids, torch.cat(labels), torch.cat(probabilities))


def score_run(
    folder: Path,
    model: BinCounter,
    data: BinDataModule,
    fabric: L.Fabric,
    *,
    sides: list[str],
    train_counts: Mapping[int, int],
) -> dict[str, Any]:
    """Score a model and write ``metrics.json``, ``predictions.csv`` and ``per_count.csv``.

    Args:
        folder: of the run.
        model: in evaluation mode.
        data: prepared, with a support that the model knows.
        fabric: gives device and precision.
        sides: which of ``val``, ``test`` and ``train`` to score; ``train`` is a sample.
        train_counts: photos per count that the model was trained on, for the baselines.

    Returns:
        The content of ``metrics.json``.
    """
    model = fabric.to_device(model).eval()  # type: ignore[assignment]
    metrics: dict[str, Any] = {}
    predicted: dict[str, ScoredPhotos] = {}
    for side in sides:
        positions, fair = _positions(data, side)
        if not len(positions):
            continue
        answers = predicted[SIDES.get(side, side)] = predict(model, data, positions, fabric, side)
        metrics[side] = score(answers.probabilities[fair], answers.labels[fair], model.counts, train_counts)
    fabric.call("on_scoring_end")
    photos = {"train": train_counts, **{name: data.count_of(data.side(name)) for name in SIDES.values()}}
    write_per_count(folder, per_count_rows(photos, predicted, model.counts))
    write_predictions(folder, {split: predicted[split] for split in SIDES.values() if split in predicted}, model.counts)
    write_metrics(folder, metrics)  # last: a run with metrics is a finished one
    return metrics


def _positions(data: BinDataModule, side: str) -> tuple[np.ndarray, Tensor]:
    """Return the photos to score, ``int64[N]``, and which of them count for the scores of the side, ``bool[N]``."""
    if side == "train":
        return training_sample(data)
    positions = data.side(SIDES[side])
    return positions, torch.ones(len(positions), dtype=torch.bool)


def print_scores(metrics: Mapping[str, Any]) -> None:
    """Print the headline scores with their intervals and the baselines beside them."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for side in (side for side in SIDES if side in metrics):
        table.add_column(f"{SIDES[side]} ({metrics[side]['n']:,} photos)", justify="right")
    scored = [metrics[side] for side in SIDES if side in metrics]
    for name in ("accuracy", "within_one", "rmse", "mae"):
        table.add_row(name, *(_with_interval(scores, name) for scores in scored))
    for name in ("macro_f1", "ece", "cross_entropy"):
        table.add_row(name, *(f"{scores[name]:.3f}" for scores in scored))
    table.add_row("majority baseline, accuracy", *(_or_dash(scores["majority_accuracy"]) for scores in scored))
    table.add_row("mean baseline, rmse", *(_or_dash(scores["mean_rmse"]) for scores in scored))
    Console().print(table)


def _with_interval(scores: Mapping[str, Any], name: str) -> str:
    low, high = scores["intervals"][name]
    return f"{scores[name]:.3f} ({low:.3f}-{high:.3f})"


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
