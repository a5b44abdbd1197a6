"""From a checkpoint and photos to predictions and scores, on one device, each photo once."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from bincounter.data.datamodule import BinDataModule
from bincounter.model.counter import BinCounter
from bincounter.model.scores import score
from bincounter.progress import track
from bincounter.training.folder import Predicted, RunFolder
from bincounter.training.per_count import training_sample, write_per_count
from bincounter.training.precision import resolved

log = logging.getLogger(__name__)

# As metrics.json and as split.csv call the sides that predictions.csv has.
SIDES = {"val": "validation", "test": "test"}


def fabric_for(trainer: Mapping[str, Any], watching: Sequence[L.Callback] = ()) -> L.Fabric:
    """One device with the precision a Trainer of this configuration would use.

    Args:
        trainer: its configuration.
        watching: what is told of a scoring where it has these methods: ``on_scoring_start(model, side)`` before each
            side, ``on_scoring_batch_start(model, side)``, ``on_scoring_batch_end(model, side, count)`` with
            ``int[B]``, and ``on_scoring_end()`` after all of them.
    """
    accelerator = trainer["accelerator"]
    precision: Any = resolved(trainer.get("precision"), accelerator)
    return L.Fabric(accelerator=accelerator, devices=1, precision=precision, callbacks=list(watching))


@torch.inference_mode()
def predict(model: BinCounter, data: BinDataModule, positions: np.ndarray, fabric: L.Fabric, side: str) -> Predicted:
    """Answer for photos at ``positions`` of ``data.manifest.records``, in that order.

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
    return Predicted(ids, torch.cat(labels), torch.cat(probabilities))


def score_run(
    folder: RunFolder,
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
        What ``metrics.json`` holds.
    """
    model = fabric.to_device(model).eval()  # type: ignore[assignment]
    metrics: dict[str, Any] = {}
    answered: dict[str, Predicted] = {}
    for side in sides:
        positions, fair = _positions(data, side)
        if not len(positions):
            continue
        predicted = answered[SIDES.get(side, side)] = predict(model, data, positions, fabric, side)
        metrics[side] = score(predicted.probabilities[fair], predicted.labels[fair], model.counts, train_counts)
    fabric.call("on_scoring_end")
    photos = {"train": train_counts, **{name: data.count_of(data.side(name)) for name in SIDES.values()}}
    write_per_count(folder, photos, answered, model.counts)
    folder.write_predictions({split: answered[split] for split in SIDES.values() if split in answered}, model.counts)
    folder.write_json("metrics.json", metrics)  # last: a run with metrics is a finished one
    return metrics


def _positions(data: BinDataModule, side: str) -> tuple[np.ndarray, Tensor]:
    """Photos to score, ``int64[N]``, and which of them the scores of a whole side are of, ``bool[N]``."""
    if side == "train":
        return training_sample(data)
    positions = data.side(SIDES[side])
    return positions, torch.ones(len(positions), dtype=torch.bool)


def show(metrics: Mapping[str, Any]) -> None:
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
