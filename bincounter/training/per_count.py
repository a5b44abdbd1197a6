"""Which training photos are scored beside the unseen ones, and ``per_count.csv``: photos and losses count by count."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from bincounter.data.datamodule import BinDataModule
from bincounter.data.splits import SPLITS
from bincounter.model.per_count import CountScore, score_each_count
from bincounter.training.folder import Predicted, RunFolder

TRAINING_SAMPLE = 2000
"""Training photos scored, at most, as a fair sample of all of them."""

EACH_COUNT = 100
"""Training photos of each count scored at least, or all that it has: rare counts would hardly be in the fair sample."""

COLUMNS = (
    "count",
    "split",
    "photos",
    "scored",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "cross_entropy",
    "cross_entropy_low",
    "cross_entropy_high",
)


def training_sample(data: BinDataModule) -> tuple[np.ndarray, Tensor]:
    """Draw the training photos to score; the same ones for the same split.

    Args:
        data: prepared.

    Returns:
        Their positions in ``data.manifest.records``, ``int64[N]``, ascending; and ``bool[N]``, which of them are a fair
        sample of all counts together. The others bring rare counts up to :data:`EACH_COUNT`. Of each count, all are a
        fair sample.
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


def write_per_count(
    folder: RunFolder, photos: Mapping[str, Mapping[int, int]], answered: Mapping[str, Predicted], counts: Sequence[int]
) -> None:
    """Write ``per_count.csv``: for each count a row for each of ``train``, ``validation`` and ``test``.

    Its columns: ``count``; ``split``; ``photos``, of that count in that split, of ``train`` those that the model
    learnt from, empty where nobody knows; ``scored``, how many of them the rest of the row is of; ``accuracy``, 0-1;
    ``cross_entropy``, mean in nats of the final model on unchanged photos; ``_low`` and ``_high``, their 95 %
    intervals, see :class:`bincounter.model.per_count.CountScore`. What was not scored is empty.

    Args:
        folder: of the run.
        photos: per split and count.
        answered: per split, as far as it was scored.
        counts: the support, ascending.
    """
    unscored = dict.fromkeys(counts, CountScore(0))
    scores = {
        split: score_each_count(answered[split].probabilities, answered[split].labels, counts)
        if split in answered
        else unscored
        for split in SPLITS
    }
    rows = (
        [count, split, photos[split].get(count, 0) if photos[split] else "", *_cells(scores[split][count])]
        for count in counts
        for split in SPLITS
    )
    folder.write_rows("per_count.csv", COLUMNS, rows)


def _cells(score: CountScore) -> list[int | str]:
    accuracy, loss = score.accuracy_interval or (None, None), score.cross_entropy_interval or (None, None)
    numbers = (score.accuracy, *accuracy, score.cross_entropy, *loss)
    return [score.n, *("" if number is None else f"{number:.6g}" for number in numbers)]
