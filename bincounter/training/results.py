"""Result files of a run, written and read; the run of a checkpoint."""

import csv
import filecmp
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml

from bincounter.config.checks import METRICS
from bincounter.errors import ConfigError, UserError
from bincounter.files import Parsed, check_mapping, checkpoint_file, read_file, write_table
from bincounter.names import read_cell
from bincounter.training.per_count_table import CountRow, parse_per_count

HELD_OUT = {"val": "validation", "test": "test"}
SPLIT_OF_SIDE = HELD_OUT | {"train": "train"}
"""Names of the splits in ``metrics.json``, and in ``split.csv`` and ``predictions.csv``."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """Columns of ``predictions.csv``.

    Attributes:
        ids: photo ids ``[N]``.
        splits: ``validation`` or ``test`` ``[N]``.
        counts: true counts, int ``[N]``.
        predicted: answered counts, int ``[N]``.
        probabilities: float ``[N, K]``.
        support: counts of the columns of ``probabilities``, ascending ``[K]``.
    """

    ids: np.ndarray
    splits: np.ndarray
    counts: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    support: tuple[int, ...]

    def of(self, split: str) -> "Predictions":
        """Keep the rows of one split."""
        return self.rows(np.flatnonzero(self.splits == split))

    def rows(self, indices: np.ndarray) -> "Predictions":
        """Keep the rows at ``indices``, in that order."""
        columns = "ids", "splits", "counts", "predicted", "probabilities"
        return replace(self, **{name: getattr(self, name)[indices] for name in columns})

    def probability_of_truth(self) -> np.ndarray:
        """Probability of the true count, float ``[N]``; 0 for a count outside the support."""
        column = {count: k for k, count in enumerate(self.support)}
        at = np.array([column.get(int(count), -1) for count in self.counts], dtype=int)
        return np.where(at >= 0, self.probabilities[np.arange(len(at)), at], 0.0)


@dataclass(frozen=True, slots=True)
class RunResults:
    """Results of a run, read back; those of a killed run are incomplete.

    Attributes:
        path: the run's folder.
        config: ``config.yaml``.
        overrides: lines of ``overrides.txt``.
        provenance: ``provenance.json``.
        metrics: ``metrics.json``: scores by ``val``, ``test`` and ``train``.
        seen: number of photos of each side that the model was trained on, from ``metrics.json``.
        caveats: sentences on the limits of the scores, from ``metrics.json``.
        temperature: of the calibration, from ``metrics.json``; ``None`` without one.
        predictions: ``predictions.csv``, or ``None``.
        per_count: ``per_count.csv``: ``{(count, split): row}``; empty in runs of older versions.
        split: ``split.csv``: ``{id: (count, split)}``.
        quarantine: ``quarantine.csv``: ``[(path, reason)]``, or ``None``.
        log: ``logs/metrics.csv``: ``{name: [(epoch, step, value)]}``.
    """

    path: Path
    config: Mapping[str, Any]
    overrides: list[str]
    provenance: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    seen: Mapping[str, int]
    caveats: list[str]
    temperature: float | None
    predictions: Predictions | None
    per_count: Mapping[tuple[int, str], CountRow]
    split: Mapping[str, tuple[int, str]]
    quarantine: list[tuple[str, str]] | None
    log: Mapping[str, list[tuple[float, float, float]]]

    @property
    def headline_side(self) -> str:
        """Side of the headline scores: ``test`` if it was scored, else ``val``."""
        return "test" if self.metrics.get("test") else "val"

    @property
    def model(self) -> str:
        """Name of the backbone."""
        backbone = (self.config.get("model") or {}).get("backbone") or {}
        return str(backbone.get("name") or str(backbone.get("_target_", "A model")).rpartition(".")[2])

    @property
    def epochs(self) -> tuple[int, int | None]:
        """Number of begun epochs (0 without training) and of planned ones (``None`` if unknown)."""
        if self.config.get("train") is False:  # scored alone
            return 0, None
        logged = [epoch + 1 for epoch, _, _ in self.log.get("train/loss_epoch", ())]
        planned = self.provenance.get("planned_epochs") or (self.config.get("trainer") or {}).get("max_epochs")
        return self.provenance.get("epochs") or int(max(logged, default=0)), planned

    @property
    def learnt(self) -> int:
        """Number of photos that the run trained on, with those of ``data.learn_above``; 0 if it only scored."""
        trained = self.config.get("train", True)
        return sum(self.photos("train").values()) + (self.provenance.get("learnt_above") or 0) if trained else 0

    def photos(self, split: str) -> dict[int, int]:
        """Photos per count of one split (``train``, ``validation`` or ``test``), by ascending count."""
        return dict(sorted(Counter(count for count, side in self.split.values() if side == split).items()))


def read_results(path: Path, *, predictions: bool = True) -> RunResults:
    """Read a run's folder.

    Args:
        path: the folder.
        predictions: read also ``predictions.csv``, by far its largest file.

    Raises:
        UserError: the folder is not a run's, or one of its files is corrupt.
    """
    config = _read(path / "config.yaml", _config)
    if config is None and (path / "0" / "config.yaml").is_file():
        raise UserError(f"{path} is the folder of a sweep: name its runs, such as {path / '0'}")
    if config is None:
        raise UserError(f"{path} is not a run's folder (it has no config.yaml): name the folder that the run printed")
    provenance = _read(path / "provenance.json", _provenance) or {}
    metrics = read_metrics(path)
    seen = provenance.get("photos_seen_in_training")  # in place of metrics.json's caveats in older versions
    before = [f"The model was trained on {seen} of these photos: their scores are too good."] if seen else []
    return RunResults(
        path=path,
        config=config,
        overrides=_read(path / "overrides.txt", lambda file: file.read().splitlines()) or [],
        provenance=provenance,
        metrics={side: scores for side, scores in metrics.items() if side in SPLIT_OF_SIDE},
        seen=metrics.get("seen_in_training", {}),
        caveats=[str(caveat) for caveat in metrics.get("caveats", before)],
        temperature=metrics.get("calibration", {}).get("temperature"),
        predictions=_read(path / "predictions.csv", _predictions) if predictions else None,
        per_count=_read(path / "per_count.csv", parse_per_count) or {},
        split=_read(path / "split.csv", _split) or {},
        quarantine=_read(path / "quarantine.csv", _quarantine),
        log=read_log(path),
    )


def read_log(run: Path) -> dict[str, list[tuple[float, float, float]]]:
    """Read ``logs/metrics.csv`` of a run, empty if missing; raise :class:`UserError` if it is corrupt."""
    return _read(run / "logs" / "metrics.csv", _log) or {}


def read_metrics(run: Path) -> dict[str, Any]:
    """Read ``metrics.json`` of a run, empty if missing; raise :class:`UserError` if it is corrupt."""
    return _read(run / "metrics.json", _metrics) or {}


def best_value(folder: Path, metric: str, mode: str) -> float | None:
    """Read the best value of a metric that a run logged, which a sweep optimises.

    Args:
        folder: of the run.
        metric: such as ``val/accuracy``.
        mode: ``max`` or ``min``.

    Raises:
        UserError: a file of the run is corrupt.
    """
    values = [value for _, _, value in read_log(folder).get(metric, ())]
    if values:
        return (max if mode == "max" else min)(values)
    # Without the CSV logger: the scores of the best checkpoint.
    return read_metrics(folder).get("val", {}).get(metric.removeprefix("val/"))


def _read(path: Path, parse: Callable[[IO[str]], Parsed]) -> Parsed | None:
    """Parse a file of a run; ``None`` if it is missing."""
    return read_file(path, parse, "restore it, or score the run's checkpoint again")


def _config(file: IO[str]) -> dict[str, Any]:
    config = check_mapping(yaml.safe_load(file))
    groups = [config.get(group) or {} for group in ("model", "data", "trainer", "paths", "profiler")]
    for node in (*groups, groups[0].get("backbone") or {}, groups[1].get("layout") or {}):
        check_mapping(node)
    str.strip(groups[1].get("source") or "")  # a TypeError unless it is a text
    return config


_NUMBERS = ("seconds", "epochs", "planned_epochs", "resumed_at_epoch", "learnt_above")  # of provenance.json
_ROWS = {
    "per_count": ("count", "n", "accuracy", "rmse"),
    "reliability": ("confidence", "accuracy", "n"),
    "coverage": ("coverage", "confidence", "accuracy", "n"),
}


def _provenance(file: IO[str]) -> dict[str, Any]:
    provenance = check_mapping(json.load(file))
    check_mapping(provenance.get("versions", {}))
    int(sum(provenance.get(name) or 0 for name in _NUMBERS))
    return provenance


def _metrics(file: IO[str]) -> dict[str, Any]:
    """Parse scores, with a check of the types of those present."""
    metrics = check_mapping(json.load(file))
    for side in metrics.keys() & SPLIT_OF_SIDE:
        scores = check_mapping(metrics[side])
        int(scores["n"])
        for name in (*METRICS, "majority_accuracy", "mean_rmse"):
            float(scores.get(name) or 0)
        for low, high in check_mapping(scores.get("intervals", {})).values():
            float(low), float(high)
        for table, keys in _ROWS.items():
            for row in scores.get(table, ()):
                sum(value or 0 for value in [*row.values(), *(row[key] for key in keys)])
        confusion, counts = scores.get("confusion", ()), scores.get("counts", ())
        sum(counts) + sum(sum(row) for _, row in zip(counts, confusion, strict=bool(confusion)))
    for numbers in ("seen_in_training", "calibration"):
        sum(check_mapping(metrics.get(numbers, {})).values())
    return metrics


def _split(file: IO[str]) -> dict[str, tuple[int, str]]:
    return {read_cell(row["id"]): (int(row["count"]), row["split"]) for row in csv.DictReader(file)}


def _quarantine(file: IO[str]) -> list[tuple[str, str]]:
    return [(read_cell(row["path"]), read_cell(row["reason"])) for row in csv.DictReader(file)]


def _predictions(file: IO[str]) -> Predictions | None:
    rows = list(csv.DictReader(file))
    if not rows:
        return None
    names = [name for name in rows[0] if name.startswith("p_")]
    return Predictions(
        ids=np.array([read_cell(row["id"]) for row in rows]),
        splits=np.array([row["split"] for row in rows]),
        counts=np.array([int(row["count"]) for row in rows]),
        predicted=np.array([int(row["predicted"]) for row in rows]),
        probabilities=np.array([[float(row[name]) for name in names] for row in rows]),
        support=tuple(int(name.removeprefix("p_")) for name in names),
    )


def _log(file: IO[str]) -> dict[str, list[tuple[float, float, float]]]:
    """Parse the CSV log, without an incomplete line of a killed run."""
    series: dict[str, list[tuple[float, float, float]]] = {}
    for row in csv.DictReader(file):
        for name, text in row.items():
            if name in {"epoch", "step"} or not text:
                continue
            with suppress(KeyError, TypeError, ValueError):
                point = (float(row["epoch"] or "nan"), float(row["step"]), float(text))
                series.setdefault(name, []).append(point)
    return series


def write_predictions(run: Path, rows: Iterable[Sequence[Any]], counts: Sequence[int]) -> None:
    """Write ``predictions.csv``, one row per scored photo.

    Args:
        run: the run's folder.
        rows: cells of each photo.
        counts: the support, ascending.
    """
    header = ["id", "split", "count", "predicted", "expected_count", *(f"p_{count}" for count in counts)]
    write_table(run / "predictions.csv", header, rows)


@dataclass(frozen=True)
class CheckpointOrigin:
    """A checkpoint's file and the results of its run, ``None`` for a checkpoint without a run."""

    checkpoint: Path
    run: RunResults | None

    @property
    def folder(self) -> Path:
        """Folder of the run, else of the checkpoint."""
        return self.run.path if self.run else self.checkpoint.parent


def find_run_of_checkpoint(checkpoint: Path) -> CheckpointOrigin:
    """Find the run of a checkpoint: the parent of ``checkpoints/``, or ``paths.model_dir`` with its copies.

    Args:
        checkpoint: a file, or a run's folder for its best checkpoint.

    Raises:
        UserError: a file of the run is corrupt.
    """
    checkpoint = checkpoint_file(checkpoint)
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    config = _read(folder / "config.yaml", yaml.safe_load)
    run = read_results(folder) if isinstance(config, dict) and "task_name" in config else None  # else another tool's
    return CheckpointOrigin(checkpoint, run)


def confidence_threshold(origin: CheckpointOrigin, coverage: float) -> float:
    """Return the confidence that a share of the validation photos reached, between known shares by interpolation.

    Args:
        origin: of the checkpoint.
        coverage: the share, above 0, at most 1.

    Raises:
        ConfigError: ``coverage`` is not a share, or a smaller one than those known.
        UserError: the checkpoint has no run beside it, or one without its scores.
    """
    if not isinstance(coverage, int | float) or not 0 < coverage <= 1:
        raise ConfigError(f"coverage={coverage!r} is not a share of the photos: use a number above 0, at most 1")
    rows = ((origin.run.metrics if origin.run else {}).get("val") or {}).get("coverage")
    if not rows:
        raise UserError(
            f"coverage needs the confidences of validation photos, and {origin.folder} has none: leave it out, or "
            "train the model again with this version"
        )
    best, given = checkpoint_file(origin.folder), origin.checkpoint
    scored = best.is_file() and given.is_file() and (given.samefile(best) or filecmp.cmp(given, best, shallow=False))
    if not scored and given.is_file():  # a missing one is refused when it is loaded
        raise UserError(
            f"coverage needs the confidences of {given}, and {origin.folder} has those of its best.ckpt: leave it out, "
            "or name best.ckpt"
        )
    if coverage < rows[0]["coverage"]:
        raise ConfigError(
            f"coverage={coverage} is below {rows[0]['coverage']}, the least share whose confidence is known: use that"
        )
    shares, confidences = zip(*((row["coverage"], row["confidence"]) for row in rows), strict=True)
    return float(np.interp(coverage, shares, confidences)) if coverage < 1 else 0.0
