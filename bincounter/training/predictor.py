"""Predicted counts of unlabelled photos: one photo, a list, a folder, or a bucket."""

import io
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Self, overload

import lightning as L
import numpy as np
import torch
from PIL import Image

from bincounter.config.checks import Bound
from bincounter.data.photo_bounds import PhotoError
from bincounter.data.photo_decoder import pillow_verdict
from bincounter.data.photos import failure_clause, retry
from bincounter.data.preprocessing import Normalize, decode
from bincounter.data.source import list_photos
from bincounter.errors import ConfigError, DataError, ResourceError, first_line
from bincounter.files import atomic_write, checkpoint_file, expand_user
from bincounter.model.answer import position
from bincounter.model.build import load_counter
from bincounter.model.counter import BinCounter
from bincounter.names import TableWriter, escape_name
from bincounter.parallel import count_cpus
from bincounter.training.results import confidence_threshold, find_run_of_checkpoint

Photo = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray
"""A photo: its path, its file's bytes, that file opened as binary, an image of Pillow, or pixels ``uint8[H, W, 3]``."""


@dataclass(frozen=True)
class Prediction:
    """Prediction for one photo.

    Attributes:
        photo: path of the photo; of bytes and pixels their index in the list.
        count: the answer, the most likely count or the median as the model was trained; ``None`` with an error.
        expected_count: mean of the distribution; ``None`` with an error.
        probabilities: probability of each count, ascending; empty with an error.
        error: the reason if the photo could not be counted, else empty.
        needs_person: the model is less sure than it was of the chosen share of validation photos; ``None`` if no share
            was chosen.
        passing: the reason is outside of the photo, such as a lack of memory: another try may succeed.
    """

    photo: str
    count: int | None = None
    expected_count: float | None = None
    probabilities: Mapping[int, float] = field(default_factory=dict)
    error: str = ""
    needs_person: bool | None = None
    passing: bool = False

    @classmethod
    def of(cls, photo: str, probabilities: Mapping[int, float], count: int, least: float | None = None) -> Self:
        """Summarise a distribution over counts.

        Args:
            photo: its path.
            probabilities: by ascending count.
            count: the answer.
            least: confidence below which a person is needed; ``None``: no word of that.

        Raises:
            KeyError: the count has no probability.
        """
        expected = sum(probability * count for count, probability in probabilities.items())
        sure = probabilities[count]
        unsure = None if least is None else sure < least
        return cls(photo, count, expected, probabilities, needs_person=unsure)

    @classmethod
    def of_answer(cls, photo: str, answer: Mapping[str, Any]) -> Self:
        """Take over an endpoint's answer for a photo.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is not an answer of bincounter.
        """
        probabilities = {int(count): float(share) for count, share in answer["probabilities"].items()}
        return replace(cls.of(photo, probabilities, answer["count"]), needs_person=answer.get("needs_person"))


class Predictor:
    """Model of a checkpoint, which predicts the counts of photos.

    Args:
        checkpoint: checkpoint of a run, the run's folder, or ``hf://owner/name``.
        trust: modules or packages of your own that may define the checkpoint's model.
        device: ``auto`` for a GPU if there is one, or torch's name of a device, such as ``cpu`` and ``cuda:1``.
        batch_size: photos per batch.
        coverage: share of photos to be answered without a person, 0-1, by the confidences of the validation photos;
            ``None``: all, without a word.

    Attributes:
        counts: the support: counts the model can predict, ascending.
        answer: which of them is answered, ``mode`` or ``median``.
        checkpoint: path of its file.
        description: of the checkpoint, see :func:`bincounter.model.build.checkpoint_metadata`.
        failures: number of unread photos for reasons outside of them, such as a lack of memory.

    Raises:
        ConfigError: the device is not available, the batch size is below 1, or the coverage is not a share.
        UserError: the checkpoint cannot be used, or a coverage is given and its run has no scores.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        trust: Sequence[str] = (),
        *,
        device: str = "auto",
        batch_size: int = 32,
        coverage: float | None = None,
    ) -> None:
        if not isinstance(batch_size, int):
            raise ConfigError(f"batch_size={batch_size!r} is not a whole number: write one, such as 32")
        Bound(ge=1).check("batch_size", batch_size)
        self._device, self._batch_size = _device(device), batch_size
        self.checkpoint = file = checkpoint_file(Path(expand_user(str(checkpoint))))
        self._least = None if coverage is None else confidence_threshold(find_run_of_checkpoint(file), coverage)
        model, self.description = load_counter(file, [trust] if isinstance(trust, str) else trust)
        self._model: BinCounter = model.to(self._device)
        self._normalize = Normalize().to(self._device)
        self._size: int = self.description["image_size"]
        self.counts: tuple[int, ...] = self._model.counts
        self.answer: str = self._model.answer
        self.failures = 0

    @overload
    def predict(self, photos: bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray) -> Prediction: ...
    @overload
    def predict(self, photos: str | os.PathLike[str]) -> Any: ...
    @overload
    def predict(self, photos: Sequence[Photo]) -> list[Prediction]: ...
    def predict(self, photos: Any) -> Prediction | list[Prediction]:
        """Count the items in photos.

        Args:
            photos: one photo; a list of them; a folder, searched recursively; or the ``s3://`` URI of a photo or a
                folder.

        Returns:
            A prediction for one photo, else a list in the order of the photos, those of a folder sorted by name; in a
            list, a photo that cannot be counted has an ``error``.

        Raises:
            DataError: a single photo cannot be counted, or a folder is missing or has no photo.
            ResourceError: a single photo cannot be read for lack of memory or permission, or the network failed.
        """
        if isinstance(photos, str | os.PathLike):
            if not os.fspath(photos):
                raise DataError("the path of a photo is empty: name a photo or a folder")
            source = expand_user(os.fspath(photos))
            paths = list_photos(source, Path("data"))
            if Path(source).is_dir() or [path.name for path in paths] != [Path(source).name]:
                return list(self.answers(paths))
            photos = paths[0]
        elif isinstance(photos, Iterable) and not (isinstance(photos, _ONE) or hasattr(photos, "read")):
            return list(self.answers(photos))
        failures = self.failures
        (answer,) = self.answers([photos])
        if answer.count is None:
            kind = DataError if failures == self.failures else ResourceError
            raise kind(f"photo {escape_name(answer.photo)} cannot be counted ({answer.error}): replace it")
        return answer

    def answers(self, photos: Iterable[Photo]) -> Iterator[Prediction]:
        """Yield a prediction for each photo, in order, with an error if it cannot be counted."""
        remaining = ((_name(photo, number), photo) for number, photo in enumerate(photos))
        with ThreadPoolExecutor(min(32, count_cpus() + 4)) as pool:  # Python's default knows no CPU quota
            while batch := list(islice(remaining, self._batch_size)):
                yield from self._batch([name for name, _ in batch], list(pool.map(self._read, batch)))

    def _read(self, named: tuple[str, Photo]) -> torch.Tensor | Prediction:
        name, photo = named
        try:
            return retry(lambda: decode(_content(photo), self._size))
        except PhotoError as error:
            return Prediction(name, error=str(error))
        except (MemoryError, OSError) as error:
            self.failures += 1
            return Prediction(name, error=failure_clause(error), passing=True)

    @torch.inference_mode()
    def _batch(self, names: Sequence[str], read: Sequence[torch.Tensor | Prediction]) -> Iterator[Prediction]:
        photos = [photo for photo in read if isinstance(photo, torch.Tensor)]
        rows: Iterator[list[float]] = iter(())
        if photos:
            images = self._normalize(torch.stack(photos).to(self._device))
            rows = iter(self._model.probabilities(images).tolist())
        for name, photo in zip(names, read, strict=True):
            if isinstance(photo, Prediction):
                yield photo
            else:
                row = dict(zip(self.counts, next(rows), strict=True))
                finite = all(map(math.isfinite, row.values()))
                yield (
                    Prediction.of(name, row, self.counts[position([*row.values()], self.answer)], self._least)
                    if finite
                    else Prediction(name, error="the model returns NaN for it")
                )


def _device(name: str) -> torch.device:
    try:
        value = torch.zeros(1, device=L.Fabric(accelerator="auto", devices=1).device if name == "auto" else name)
        value.item()  # a device without storage, such as meta, raises
        return value.device
    except (AssertionError, RuntimeError, NotImplementedError, TypeError) as error:
        if name == "auto":
            old = "no kernel image" in str(error)  # of a GPU that this torch is not built for
            free = "install a torch that is built for it" if old else "free its memory"
            raise ConfigError(
                f"the GPU cannot be used ({first_line(error)}): hide it by CUDA_VISIBLE_DEVICES=, or {free}"
            ) from error
        raise ConfigError(f"device={name} is not available here: use auto, cpu, or a GPU such as cuda:0") from error


def _name(photo: Photo, number: int) -> str:
    return os.fspath(photo) if isinstance(photo, str | os.PathLike) else str(number)


def _content(photo: Photo) -> bytes:
    """Bytes of a photo's file; pixels are encoded as PNG, without loss, to be decoded like any other photo."""
    if isinstance(photo, str | os.PathLike):
        if not os.fspath(photo):
            raise PhotoError("an empty path")
        try:
            return Path(expand_user(os.fspath(photo))).read_bytes()
        except ValueError as error:  # it has a NUL
            raise PhotoError(f"not a path ({error})") from error
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
            raise PhotoError(f"an array of {photo.dtype}{list(photo.shape)}, not of uint8[H, W, 3]")
        photo = Image.fromarray(photo)
    if isinstance(photo, Image.Image):
        return _png(photo)
    if hasattr(photo, "read"):
        try:
            photo = photo.read()
        except ValueError as error:  # it is closed, or opened for writing
            raise PhotoError(f"a file that cannot be read ({error})") from error
        if isinstance(photo, str):
            raise PhotoError("a file opened as text: open it as 'rb'")
    if isinstance(photo, bytes | bytearray | memoryview):
        return bytes(photo)
    raise PhotoError(f"not a path, bytes, a file, an image of Pillow or an array, but of type {type(photo).__name__}")


def _png(photo: Image.Image) -> bytes:
    if photo.mode == "F":  # of any scale
        raise PhotoError(f"an image of float32[{photo.height}, {photo.width}], not of uint8[H, W, 3]")
    file = io.BytesIO()
    try:
        mode = _PNG_MODES.get(photo.mode, "RGB")
        image = photo if mode == photo.mode else photo.convert(mode)
        image.save(file, "PNG", compress_level=1, exif=photo.getexif())
    except ValueError as error:  # it is closed, empty, or of a mode without colours
        raise PhotoError(f"an image without readable pixels ({error})") from error
    except Exception as error:  # broken bytes, which Pillow decodes only now
        raise pillow_verdict(error, photo.width * photo.height) from error
    return file.getvalue()


_ONE = (bytes, bytearray, memoryview, Image.Image, np.ndarray)
_PNG_MODES = {mode: mode for mode in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")}
_PNG_MODES |= {"I": "I;16", "PA": "RGBA", "RGBa": "RGBA"}  # RGB clips at 255, and has no transparency


def write_predictions_csv(
    path: Path, counts: Sequence[int], answers: Iterable[Prediction], *, marked: bool = False
) -> int:
    """Write predictions as CSV (``path, predicted, expected_count, p_<k>..., reason``); return how many have a count.

    Names are escaped, see :mod:`bincounter.names`. If they are ``marked``, a last column ``needs_person`` holds ``yes``
    or ``no``.
    """
    counted = 0
    with atomic_write(path) as file:
        writer = TableWriter(file)
        header = ["path", "predicted", "expected_count", *(f"p_{count}" for count in counts), "reason"]
        writer.writerow([*header, "needs_person"] if marked else header)
        for answer in answers:
            if answer.count is None:
                row = [answer.photo, "", "", *("" for _ in counts), answer.error]
            else:
                counted += 1
                cells = (f"{probability:.6g}" for probability in answer.probabilities.values())
                row = [answer.photo, str(answer.count), f"{answer.expected_count:.4f}", *cells, ""]
            unsure = "yes" if answer.needs_person or answer.count is None else "no"
            writer.writerow([*row, unsure] if marked else row)
    return counted


def print_predictions(answers: Iterable[Prediction]) -> int:
    """Print a line per photo, those with an error on stderr.

    Returns:
        The exit code: 0; 1, a photo was not counted for a reason outside of it; else 2 if none was counted.
    """
    counted, passing = 0, False
    for answer in answers:
        if answer.count is None:
            print(f"{escape_name(answer.photo)}: {answer.error}", file=sys.stderr)
            passing |= answer.passing
            continue
        counted += 1
        sure = f"({answer.probabilities[answer.count]:.0%} sure, {answer.expected_count:.2f} expected)"
        person = "\tneeds a person" if answer.needs_person else ""
        print(f"{escape_name(answer.photo)}\t{answer.count}\t{sure}{person}", flush=True)
    return 1 if passing else 0 if counted else 2
