"""Scoring of a run on one device: predictions, metrics, scores per count."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from bincounter.data.datamodule import BinDataModule
from bincounter.data.records import SPLITS
from bincounter.errors import UserError
from bincounter.files import write_json
from bincounter.model.answer import positions
from bincounter.model.counter import BinCounter
from bincounter.model.objectives import clamped_log, temper
from bincounter.model.scores import negative_log_likelihood, score
from bincounter.number_format import BASELINES, SCORES, format_interval, format_score, score_name
from bincounter.progress import track
from bincounter.training.calibration import calibrate
from bincounter.training.per_count_table import CountRow, write_per_count
from bincounter.training.results import HELD_OUT, SPLIT_OF_SIDE, write_predictions
from bincounter.training.trainer import TRUE_PRECISIONS, resolve_precision

log = logging.getLogger(__name__)


class ScoredPhotos:
    """Predictions of a model for labelled photos.

    Attributes:
        ids: ids of the photos ``[N]``.
        labels: true counts, ``int64[N]``.
        probabilities, log_probabilities: ``float32[N, K]``.
    """

    def __init__(self, ids: list[str], labels: Tensor, probabilities: Tensor, log_probabilities: Tensor) -> None:
        self.ids, self.labels = ids, labels
        self.probabilities, self.log_probabilities = probabilities, log_probabilities

    def tempered(self, temperature: float) -> "ScoredPhotos":
        """The same photos at another temperature, see :func:`bincounter.model.objectives.temper`."""
        logarithms = temper(self.log_probabilities, temperature)
        return ScoredPhotos(self.ids, self.labels, logarithms.exp(), logarithms)

    def rows(self, split: str, counts: Sequence[int], answer: str) -> Iterable[list[Any]]:
        """Yield the rows of ``predictions.csv``."""
        support = self.probabilities.new_tensor(list(counts))
        expected = (self.probabilities * support).sum(dim=1).tolist()
        answers = positions(self.probabilities, answer).tolist()
        for id_, label, k, mean, row in zip(
            self.ids, self.labels.tolist(), answers, expected, self.probabilities.tolist(), strict=True
        ):
            yield [id_, split, label, counts[k], f"{mean:.4f}", *(f"{p:.6g}" for p in row)]


FEWEST_FOR_LOSS = 5
"""Minimum number of photos for the interval of a mean loss: the spread of fewer is too uncertain."""

_NORMAL = 1.959964  # quantile 0.975 of the standard normal distribution

Interval = tuple[float, float]


def score_each_count(
    probabilities: Tensor,
    labels: Tensor,
    support: Sequence[int],
    log_probabilities: Tensor | None = None,
    answer: str = "mode",
) -> dict[int, CountRow]:
    """Score the photos of each count.

    Args:
        probabilities: ``float[N, K]``, rows sum to 1.
        labels: ``int[N]``, all in the support; ``N`` may be 0.
        support: the ``K`` counts, ascending.
        log_probabilities: ``float[N, K]``; by default the clamped logarithms of ``probabilities``.
        answer: which count is answered, see :mod:`bincounter.model.answer`.

    Returns:
        A row for each count of the support.
    """
    # Double precision on the CPU, as in metrics.json.
    probabilities, labels = probabilities.detach().to("cpu", torch.float64), labels.detach().to("cpu", torch.int64)
    counts = torch.tensor(list(support))
    right = (counts[positions(probabilities, answer)] == labels).double()
    logarithms = clamped_log(probabilities) if log_probabilities is None else log_probabilities
    loss = negative_log_likelihood(logarithms.to("cpu", torch.float64), torch.searchsorted(counts, labels))
    return {int(count): _score(right[labels == count], loss[labels == count]) for count in support}


def _score(right: Tensor, loss: Tensor) -> CountRow:
    if not len(loss):
        return CountRow(scored=0)
    accuracy, cross_entropy = right.mean().item(), loss.mean().item()
    return CountRow(
        scored=len(loss),
        accuracy=accuracy,
        accuracy_interval=wilson_interval(accuracy, len(right)),
        loss=cross_entropy,
        loss_interval=_student(loss),
    )


def wilson_interval(share: float, n: int) -> Interval:
    """Wilson's 95 % interval of a fraction of ``n`` photos, which stays in 0-1 and has a width also at 0 and 1."""
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
"""Maximum size of the random sample of training photos to score."""

EACH_COUNT = 100
"""Minimum number of scored training photos per count (or all): the random sample has few of rare counts."""


def training_sample(data: BinDataModule) -> tuple[np.ndarray, Tensor]:
    """Draw the training photos to score, the same ones for the same split.

    Args:
        data: prepared data module.

    Returns:
        Positions in ``data.manifest.records``, ``int64[N]``, ascending; and ``bool[N]``, True for the random sample of
        all training photos. The others bring rare counts up to :data:`EACH_COUNT`; within a count, all are a random
        sample.
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
    photos: Mapping[str, Mapping[int, int]], predicted: Mapping[str, ScoredPhotos], counts: Sequence[int], answer: str
) -> dict[tuple[int, str], CountRow]:
    """Return the rows of ``per_count.csv`` by count and split.

    Args:
        photos: number of photos by split and count; of ``train`` the model's training photos, empty if unknown.
        predicted: predictions by scored split.
        counts: the support, ascending.
        answer: which count is answered, see :mod:`bincounter.model.answer`.
    """
    rows = {}
    for split in SPLITS:
        scored = predicted.get(split)
        by_count = (
            {}
            if scored is None
            else score_each_count(scored.probabilities, scored.labels, counts, scored.log_probabilities, answer)
        )
        for count in counts:
            known = photos[split].get(count, 0) if photos[split] else None
            rows[count, split] = replace(by_count.get(count, CountRow(scored=0)), photos=known)
    return {(count, split): rows[count, split] for count in counts for split in SPLITS}


def fabric_for(trainer: Mapping[str, Any], watching: Sequence[L.Callback] = ()) -> L.Fabric:
    """Return one device with the precision of a Trainer.

    Args:
        trainer: the node ``trainer`` as plain containers.
        watching: callbacks of the scoring, with any of these methods: ``on_scoring_start(model, side)`` before each
            side, ``on_scoring_batch_start(model, side)``, ``on_scoring_batch_end(model, side, count)`` with
            ``int[B]``, and ``on_scoring_end()`` after all sides.
    """
    accelerator = trainer["accelerator"]
    precision: Any = resolve_precision(trainer.get("precision"), accelerator)
    return L.Fabric(accelerator=accelerator, devices=1, precision=precision, callbacks=list(watching))


@torch.inference_mode()
def predict(model: BinCounter, data: BinDataModule, positions: np.ndarray, fabric: L.Fabric, side: str) -> ScoredPhotos:
    """Predict photos at ``positions`` of ``data.manifest.records``, in that order.

    Args:
        model: model in evaluation mode, on the device of ``fabric``.
        data: prepared data module.
        positions: ``int64[N]``, N > 0.
        fabric: device and precision.
        side: ``val``, ``test`` or ``train``.

    Raises:
        UserError: the model's output for a photo is not finite.
    """
    loader = data.scoring_loader(positions)
    ids: list[str] = []
    labels, probabilities, logarithms = [], [], []
    fabric.call("on_scoring_start", model, side)
    for batch in track(loader, f"Scoring {HELD_OUT.get(side, 'a training sample')}", len(loader)):
        moved = data.on_after_batch_transfer(fabric.to_device(batch), 0)
        fabric.call("on_scoring_batch_start", model, side)
        with fabric.autocast():
            answers = model.predict_step(moved, 0)
        fabric.call("on_scoring_batch_end", model, side, moved["count"])
        probabilities.append(answers["probabilities"].cpu())
        logarithms.append(answers["log_probabilities"].cpu())
        labels.append(batch["count"].cpu())
        ids += batch["id"]
    scored = ScoredPhotos(ids, torch.cat(labels), torch.cat(probabilities), torch.cat(logarithms))
    broken = (~scored.log_probabilities.isfinite().all(1)).nonzero().flatten().tolist()
    if broken:
        raise UserError(
            f"The model returns NaN for {len(broken):,} of {len(ids):,} photos, {ids[broken[0]]} first: score another "
            "checkpoint, or this one with trainer.precision=32-true"
        )
    return scored


def score_run(
    folder: Path,
    model: BinCounter,
    data: BinDataModule,
    fabric: L.Fabric,
    *,
    precision: str,
    sides: list[str],
    train_counts: Mapping[int, int],
    seen: Mapping[str, int],
    caveats: Sequence[str],
    calibrated: Path | None = None,
) -> dict[str, Any]:
    """Score a model and write ``metrics.json``, ``predictions.csv`` and ``per_count.csv``.

    Args:
        folder: the run's folder.
        model: model in evaluation mode.
        data: prepared data module, with a support that the model knows.
        fabric: device and precision.
        precision: precision by Lightning's name.
        sides: sides to score: ``val``, ``test``, and ``train`` (a sample).
        train_counts: number of training photos per count, for the baselines.
        seen: number of photos that the model was trained on, by side.
        caveats: sentences on the limits of the scores, stored with them.
        calibrated: checkpoint of the model, to be calibrated on the validation photos; its scores are of the calibrated
            model. ``None`` for one that stays as it is.

    Returns:
        The content of ``metrics.json``.
    """
    # Weights in the precision of the validation.
    model = fabric.to_device(model).to(TRUE_PRECISIONS.get(precision, torch.float32)).eval()  # type: ignore[assignment]
    if calibrated is not None:
        model.objective.calibration_temperature = 1.0
    drawn = {side: _positions(data, side) for side in sides}
    predicted = {
        SPLIT_OF_SIDE[side]: predict(model, data, positions, fabric, side)
        for side, (positions, _) in drawn.items()
        if len(positions)
    }
    fabric.call("on_scoring_end")
    model.float()
    calibration = {}
    if calibrated is not None and "validation" in predicted:
        photos = predicted["validation"]
        calibration = {"calibration": calibrate(model, photos.log_probabilities, photos.labels, calibrated)}
        temperature = model.objective.calibration_temperature
        predicted = {split: answers.tempered(temperature) for split, answers in predicted.items()}
    metrics: dict[str, Any] = {}
    for side, (_, fair) in drawn.items():
        if answers := predicted.get(SPLIT_OF_SIDE[side]):
            kept = answers.probabilities[fair], answers.labels[fair]
            metrics[side] = score(*kept, model.counts, train_counts, answers.log_probabilities[fair], model.answer)
    by_split = {"train": train_counts, **{name: data.count_of(data.side(name)) for name in HELD_OUT.values()}}
    write_per_count(folder, per_count_rows(by_split, predicted, model.counts, model.answer))
    rows = (predicted[each].rows(each, model.counts, model.answer) for each in HELD_OUT.values() if each in predicted)
    write_predictions(folder, chain.from_iterable(rows), model.counts)
    metrics |= {"seen_in_training": dict(seen), "caveats": list(caveats), **calibration}
    write_json(folder / "metrics.json", metrics)  # last: a run with metrics is finished
    return metrics


def _positions(data: BinDataModule, side: str) -> tuple[np.ndarray, Tensor]:
    """Return positions of the photos to score, ``int64[N]``, and True for those in the side's scores, ``bool[N]``."""
    if side == "train":
        return training_sample(data)
    positions = data.side(HELD_OUT[side])
    return positions, torch.ones(len(positions), dtype=torch.bool)


def print_scores(metrics: Mapping[str, Any]) -> None:
    """Print scores with their intervals and baselines, then the caveats."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for side in (side for side in HELD_OUT if side in metrics):
        table.add_column(f"{HELD_OUT[side]} ({metrics[side]['n']:,} photos)", justify="right")
    scored = [metrics[side] for side in HELD_OUT if side in metrics]
    for name in SCORES:
        table.add_row(score_name(name, unit=True), *(_with_interval(scores, name) for scores in scored))
        if name in BASELINES:
            key, baseline = BASELINES[name]
            values = (format_score(name, scores[key]) for scores in scored)
            table.add_row(f"  {baseline} baseline", *values)
    Console().print(table)
    for caveat in metrics["caveats"]:
        Console(highlight=False, markup=False, soft_wrap=True).print(f"Note: {caveat}")


def _with_interval(scores: Mapping[str, Any], name: str) -> str:
    interval = scores["intervals"].get(name)
    value = format_score(name, scores[name])
    return f"{value} ({format_interval(name, interval)})" if interval else value
