"""Labels of a data set that are most likely wrong, by the predictions of runs that held the photos out.

Method: confident learning (Northcutt, Jiang, Chuang, 2021, "Confident Learning: Estimating Uncertainty in Dataset
Labels", JAIR 70, arXiv:1911.00068). The threshold of a count is the mean probability of it over the photos with this
label. A photo is confidently of the most probable count among those that reach their thresholds. Photos by label and
confident count, scaled to the number of photos with each label, are the confident joint, which gives
p(label | true count). The probability of a wrong label follows by Bayes:
p(true | photo, label) ~ p(true | photo) p(label | true). It ranks; as a number it is too large unless the models are
right on most photos, since the mistakes of a model count as wrong labels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bincounter.audit.audit_columns import audit_columns
from bincounter.data.records import BinRecord
from bincounter.errors import UserError
from bincounter.files import atomic_write
from bincounter.model.answer import position
from bincounter.names import TableWriter, escape_name
from bincounter.training.results import HELD_OUT, Predictions, read_results


class HeldOut:
    """Predictions for photos that a run did not train on, averaged over several runs.

    Args:
        runs: folders of the runs, or their predictions.csv.

    Attributes:
        support: counts that the models know, ascending.
        answer: which count the first run answers, see :mod:`bincounter.model.answer`.

    Raises:
        UserError: a run has no predictions, trained on what it scored, may have trained on near-copies of it, or knows
            other counts than the first.
    """

    def __init__(self, runs: Sequence[Path]) -> None:
        self.support: tuple[int, ...] = ()
        self.answer = ""
        self._sums: dict[str, np.ndarray] = {}
        self._runs: dict[str, int] = {}
        for run in runs:
            self._add(run, run.parent if run.name == "predictions.csv" else run)

    def _add(self, name: Path, folder: Path) -> None:
        results = read_results(folder)
        found = results.predictions
        if found is None:
            raise UserError(f"{escape_name(name)} has no predictions.csv: name the folder of a run that was scored")
        split = (results.config.get("data") or {}).get("split") or {}
        if (method := split.get("method", "grouped")) != "grouped":
            raise UserError(
                f"{escape_name(name)} was split by data.split.method={method}, so it may have trained on near-copies "
                "of the photos that it held out: name runs with data.split.method=grouped"
            )
        seen = sum(results.seen.get(side, 0) for side in HELD_OUT)
        if seen:
            raise UserError(f"{escape_name(name)} was trained on {seen:,} of the photos it scored: name another run")
        if self.support and found.support != self.support:
            raise UserError(f"{escape_name(name)} knows other counts than the first run: name runs of one data.counts")
        self.support = found.support
        self.answer = self.answer or (results.config.get("model") or {}).get("answer", "mode")
        for split in HELD_OUT.values():
            self._count(found.of(split))

    def _count(self, rows: Predictions) -> None:
        for id_, row in zip(rows.ids.tolist(), rows.probabilities, strict=True):
            self._sums[id_] = self._sums.get(id_, 0.0) + row
            self._runs[id_] = self._runs.get(id_, 0) + 1

    def probabilities(self, id_: str) -> np.ndarray | None:
        """Distribution over :attr:`support` for a photo, ``float[K]``; ``None`` if no run held it out."""
        return self._sums[id_] / self._runs[id_] if id_ in self._sums else None


def wrong_label_posterior(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Distribution of each photo's true count, given its label and its photo; see the module.

    Args:
        labels: ``int[N]``, positions of the labels in the support.
        probabilities: ``float[N, K]``, out of fold.

    Returns:
        ``float[N, K]``; 1 minus the value at the label is the probability that the label is wrong.
    """
    photos, size = probabilities.shape
    each = np.arange(photos)
    numbers = np.bincount(labels, minlength=size)
    own = np.bincount(labels, weights=probabilities[each, labels], minlength=size)
    thresholds = np.where(numbers > 0, own / np.maximum(numbers, 1), np.inf)  # of a count without photos: never reached
    reached = np.where(probabilities >= thresholds, probabilities, 0.0)
    confident = np.flatnonzero(reached.any(axis=1))
    joint = np.zeros((size, size))
    np.add.at(joint, (labels[confident], reached[confident].argmax(axis=1)), 1)
    joint[np.diag_indices(size)] += 1  # a label without a confident photo is taken as right
    joint *= (numbers / joint.sum(axis=1))[:, None]
    given_true = (joint + 1e-9) / (joint + 1e-9).sum(axis=0)  # p(label | true), by column
    posterior = (probabilities + 1e-12) * given_true[labels]
    return posterior / posterior.sum(axis=1, keepdims=True)


def write_suspicious(path: Path, records: Sequence[BinRecord], root: Path, runs: Sequence[Path]) -> int:
    """Write the table that ``bincounter review`` reads: the labels most likely wrong first.

    Args:
        path: of the table.
        records: photos of the data set.
        root: their folder.
        runs: folders of runs that held some of them out.

    Returns:
        Number of photos that were held out.

    Raises:
        UserError: see :class:`HeldOut`; or the runs held out no photo of the data set.
    """
    held_out = HeldOut(runs)
    column = {count: k for k, count in enumerate(held_out.support)}
    found = [(record, held_out.probabilities(record.id)) for record in records]
    judged = [(record, row) for record, row in found if row is not None and record.count in column]
    if not judged:
        raise UserError(
            f"none of the {len(records):,} photos was held out by these runs: name runs of this data set, with other "
            "seeds of data.split"
        )
    labels = np.array([column[record.count] for record, _ in judged])
    rows = np.stack([row for _, row in judged])
    posterior = wrong_label_posterior(labels, rows)
    wrong = 1 - posterior[np.arange(len(labels)), labels]
    support = np.array(held_out.support)
    with atomic_write(path) as file:
        writer = TableWriter(file)
        writer.writerow(audit_columns(held_out.support))
        for k in np.argsort(-wrong, kind="stable").tolist():
            record, off = judged[k][0], float(posterior[k] @ support) - judged[k][0].count
            below = posterior[k][support < record.count].sum()
            direction = "missing" if below >= posterior[k][support > record.count].sum() else "extra"
            predicted = int(support[position(rows[k].tolist(), held_out.answer)])
            facts = [record.count, predicted, f"{rows[k] @ support:.4f}"]
            shares = [f"{share:.6g}" for share in rows[k].tolist()]
            writer.writerow(
                [record.id, _name(record, root), *facts, *shares, f"{wrong[k]:.6g}", direction, f"{off:.4f}", ""]
            )
        for record, row in found:
            if row is None or record.count not in column:
                reason = "held out by no run" if row is None else "a count that the runs do not know"
                empty = [""] * (len(support) + 5)
                writer.writerow([record.id, _name(record, root), record.count, *empty, reason])
    return len(judged)


def is_single_file(record: BinRecord, root: Path) -> bool:
    """Return True if a photo is a file of its own below the root, which ``bincounter review`` can show."""
    file = record.file
    return file.size is None and file.bucket is None and file.path.is_relative_to(root)


def _name(record: BinRecord, root: Path) -> str:
    """Path of a photo below the root; its id if it is no file there."""
    return record.file.path.relative_to(root).as_posix() if is_single_file(record, root) else record.id
