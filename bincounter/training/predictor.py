"""Predicted counts of unlabelled photos: one photo, a folder, or a bucket."""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import lightning as L
import torch

from bincounter.data.layouts.base import PHOTO_SUFFIXES, find_photos
from bincounter.data.photo_bounds import PhotoError
from bincounter.data.photos import failure_clause, retry
from bincounter.data.preprocessing import Normalize, decode
from bincounter.data.s3.address import is_remote, parse_address
from bincounter.data.s3.sync import fetch
from bincounter.errors import DataError
from bincounter.files import atomic_write, checkpoint_file
from bincounter.model.build import load_counter
from bincounter.model.counter import BinCounter
from bincounter.names import TableWriter, escape_name

_BATCH = 32


@dataclass(frozen=True)
class Prediction:
    """Prediction for one photo.

    Attributes:
        path: of the photo.
        probabilities: one for each count of the model's support; empty when the photo could not be read.
        reason: why it could not be read, else empty.
    """

    path: Path
    probabilities: tuple[float, ...] = ()
    reason: str = ""


class Predictor:
    """A checkpoint that predicts counts.

    Args:
        checkpoint: of a run, or the run's folder.
        trusted: dotted prefixes of foreign callables the checkpoint may be built from.

    Attributes:
        failures: number of photos that were not read for a reason outside of them, such as a lack of memory.

    Raises:
        UserError: the checkpoint cannot be used.
    """

    def __init__(self, checkpoint: str | Path, trusted: Sequence[str] = ()) -> None:
        model, description = load_counter(checkpoint_file(Path(checkpoint)), trusted)
        self._fabric = L.Fabric(accelerator="auto", devices=1)
        self._model: BinCounter = self._fabric.to_device(model)  # type: ignore[assignment]
        self._normalize = self._fabric.to_device(Normalize())
        self._size: int = description["image_size"]
        self.failures = 0

    @property
    def counts(self) -> tuple[int, ...]:
        """The counts it can predict, ascending."""
        return self._model.counts

    def answers(self, photos: Iterable[Path]) -> Iterator[Prediction]:
        """Yield a prediction for each photo, in order; unreadable ones have a reason."""
        remaining = iter(photos)
        with ThreadPoolExecutor() as pool:
            while batch := list(islice(remaining, _BATCH)):
                yield from self._batch(batch, list(pool.map(self._read, batch)))

    def _read(self, path: Path) -> torch.Tensor | Prediction:
        try:
            return retry(lambda: decode(path.read_bytes(), self._size))
        except PhotoError as error:
            return Prediction(path, reason=str(error))
        except (MemoryError, OSError) as error:
            self.failures += 1
            return Prediction(path, reason=failure_clause(error))

    @torch.inference_mode()
    def _batch(self, paths: Sequence[Path], read: Sequence[torch.Tensor | Prediction]) -> Iterator[Prediction]:
        photos = [photo for photo in read if isinstance(photo, torch.Tensor)]
        rows: Iterator[list[float]] = iter(())
        if photos:
            images = self._normalize(self._fabric.to_device(torch.stack(photos)))
            rows = iter(self._model.probabilities(images).tolist())
        for path, photo in zip(paths, read, strict=True):
            if isinstance(photo, Prediction):
                yield photo
            else:
                row = tuple(next(rows))
                finite = all(map(math.isfinite, row))
                yield Prediction(path, row) if finite else Prediction(path, reason="the model returns NaN for it")


def list_photos(source: str, data_dir: Path) -> list[Path]:
    """List the photos of ``source``; the number of other files in a folder is logged.

    Args:
        source: a photo, a folder (searched through), or the ``s3://`` URI of either.
        data_dir: folder for local copies of a bucket.

    Raises:
        DataError: it does not exist, or has no photo.
    """
    root = _fetched(source, data_dir) if is_remote(source) else Path(source)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise DataError(f"{escape_name(source)} is neither a photo nor a folder: correct the path, or use an s3:// URI")
    return find_photos(root)


def _fetched(source: str, data_dir: Path) -> Path:
    """Local copy of an object, where the address is that of a photo, else of the folder."""
    folder, _, name = source.rpartition("/")
    if Path(name).suffix.lower() in PHOTO_SUFFIXES and parse_address(source)[1]:
        with suppress(DataError):  # a folder may have such a name, too; its listing finds the reason
            return fetch(folder, data_dir, names=[name]) / name
    return fetch(source, data_dir)


def write_predictions_csv(path: Path, counts: Sequence[int], answers: Iterable[Prediction]) -> int:
    """Write predictions as CSV (``path, predicted, expected_count, p_<k>..., reason``); return how many were read.

    Names are written as :mod:`bincounter.names` says.
    """
    counted = 0
    with atomic_write(path) as file:
        writer = TableWriter(file)
        writer.writerow(["path", "predicted", "expected_count", *(f"p_{count}" for count in counts), "reason"])
        for answer in answers:
            if not answer.probabilities:
                writer.writerow([answer.path, "", "", *("" for _ in counts), answer.reason])
                continue
            counted += 1
            predicted, expected = summary(counts, answer)
            cells = (f"{probability:.6g}" for probability in answer.probabilities)
            writer.writerow([answer.path, predicted, f"{expected:.4f}", *cells, ""])
    return counted


def summary(counts: Sequence[int], answer: Prediction) -> tuple[int, float]:
    """Return the most likely count, the smallest of equally likely ones as in the scores, and the mean."""
    likeliest = answer.probabilities.index(max(answer.probabilities))
    expected = sum(probability * count for probability, count in zip(answer.probabilities, counts, strict=True))
    return counts[likeliest], expected


def print_predictions(answers: Iterable[tuple[Prediction, Sequence[int]]]) -> int:
    """Print a line per photo, unreadable ones on stderr.

    Args:
        answers: predictions, each with the counts of its probabilities.

    Returns:
        How many photos have a count.
    """
    counted = 0
    for answer, counts in answers:
        if not answer.probabilities:
            print(f"{escape_name(answer.path)}: {answer.reason}", file=sys.stderr)
            continue
        counted += 1
        predicted, expected = summary(counts, answer)
        sure = f"{max(answer.probabilities):.0%} sure"
        print(f"{escape_name(answer.path)}\t{predicted}\t({sure}, {expected:.2f} expected)", flush=True)
    return counted
