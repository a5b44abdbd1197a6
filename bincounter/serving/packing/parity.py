"""Parity gate: training's code and the packed archive must predict the same for the same photos.

The unpacked archive runs in a process of its own that can import no bincounter but the archive's code. Both sides
compute on the CPU, training in single precision.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bincounter.data.photo_bounds import PhotoError
from bincounter.data.preprocessing import Normalize, decode
from bincounter.errors import ResourceError, UserError
from bincounter.model.answer import position, positions
from bincounter.model.build import load_counter
from bincounter.model.counter import BinCounter
from bincounter.serving.application.answers import AnswerFormat, AnswerFormatter
from bincounter.serving.packing.export import ExportError
from bincounter.serving.packing.tarball import unpack

BOUNDS = {"fp32": 1e-4, "bf16": 2e-2}
"""Largest allowed difference between probabilities, by the archive's precision."""

_MOST_LOST, _MOST_SHIFT = 0.005, 0.05  # accuracy that int8 may lose; mean difference of its expected counts
_BATCH = 16
_PROBE = Path(__file__).with_name("archive_probe.py")
_LOADING_SECONDS, _PHOTO_SECONDS = 120.0, 30.0  # that the archive's process may take
_REFUSED = range(400, 500)
_ADVICE = "nothing is served: package the checkpoint again with action=package, by the bincounter that trained it"


@dataclass(frozen=True)
class ParityResult:
    """Result of a comparison that passed.

    Attributes:
        photos: number of photos compared.
        largest: largest difference between two probabilities.
        near_ties: photos whose distribution is so close to two answers that the count may differ.
        bound: largest allowed difference.
    """

    photos: int
    largest: float
    near_ties: int
    bound: float

    def __str__(self) -> str:
        ties = f", {self.near_ties} of them near-ties" if self.near_ties else ""
        return (
            f"Parity: {self.photos} photos{ties}, largest difference of a probability {self.largest:.1e}, "
            f"bound {self.bound:g}."
        )


@dataclass(frozen=True)
class ArchiveAnswer:
    """Answer of an archive for one photo.

    Attributes:
        status: of HTTP.
        body: parsed JSON.
    """

    status: int
    body: dict[str, Any]


def check_parity(
    checkpoint: Path, archive: Path, photos: Mapping[str, bytes], *, trusted: Sequence[str] = ()
) -> ParityResult:
    """Compare a checkpoint's answers with its archive's.

    Args:
        checkpoint: of a run.
        archive: the ``model.tar.gz`` made of it.
        photos: contents by name; the archive must refuse those that training rejects as unreadable.
        trusted: dotted prefixes of foreign callables the checkpoint may be built from.

    Raises:
        UserError: they differ, or the archive cannot be loaded; the message names the photo and the difference.
        ResourceError: out of memory, disk or time.
    """
    counter, description = load_counter(checkpoint, trusted)
    expected = _trained(counter, photos, description["image_size"])
    with _temporary_folder() as folder:
        replies, precision = archive_answers(unpack(archive, folder / "archive", key="TMPDIR"), photos)
    return _compared(expected, counter, replies, BOUNDS[precision])


@dataclass(frozen=True)
class ScoreResult:
    """Scores of an int8 archive that passed.

    Attributes:
        photos: number of photos scored.
        trained: accuracy of training's code, 0-1.
        served: accuracy of the archive, 0-1.
        shift: mean absolute difference of the expected counts.
    """

    photos: int
    trained: float
    served: float
    shift: float

    def __str__(self) -> str:
        return (
            f"Score of int8 on {self.photos} validation photos: accuracy {100 * self.served:.1f} %, in fp32 "
            f"{100 * self.trained:.1f} %; expected counts differ by {self.shift:.3f} in the mean."
        )


def check_score(
    checkpoint: Path, archive: Path, photos: Sequence[tuple[bytes, int]], *, trusted: Sequence[str] = ()
) -> ScoreResult:
    """Compare the scores of an int8 archive with those of its checkpoint.

    Args:
        checkpoint: of a run.
        archive: the ``model.tar.gz`` made of it.
        photos: readable photos and their counts.
        trusted: as of :func:`check_parity`.

    Raises:
        UserError: the accuracy falls, or the expected counts differ, by more than the bound.
        ResourceError: out of memory, disk or time.
    """
    named = {str(number): data for number, (data, _) in enumerate(photos)}
    counter, description = load_counter(checkpoint, trusted)
    with _temporary_folder() as folder:
        replies, _ = archive_answers(unpack(archive, folder / "archive", key="TMPDIR"), named)
    refused = [reply for reply in replies.values() if reply.status != 200]
    if refused:
        raise UserError(f"A validation photo is refused by the archive ({refused[0].body['error']}); {_ADVICE}")
    rows = _trained(counter, named, description["image_size"]).values()
    trained = torch.stack([row for row in rows if row is not None])
    counts, truth = torch.tensor(counter.counts), torch.tensor([count for _, count in photos])
    served = torch.tensor([reply.body["count"] for reply in replies.values()])
    expected = torch.tensor([reply.body["expected_count"] for reply in replies.values()])
    result = ScoreResult(
        len(photos),
        float((counts[positions(trained, counter.answer)] == truth).float().mean()),
        float((served == truth).float().mean()),
        float((expected - trained @ counts.float()).abs().mean()),
    )
    if result.trained - result.served > _MOST_LOST or not result.shift <= _MOST_SHIFT:
        raise UserError(
            f"{str(result).rstrip('.')}, and {100 * _MOST_LOST:g} points and {_MOST_SHIFT:g} are allowed: nothing is "
            "served; remove precision=int8"
        )
    return result


def check_export(
    counter: BinCounter, forward: Callable[[Tensor], Tensor], photos: Mapping[str, bytes], size: int
) -> ParityResult:
    """Compare a checkpoint's answers with those of an export.

    Args:
        counter: of the checkpoint.
        forward: the export, ``uint8[B, 3, S, S]`` -> ``float32[B, K]``.
        photos: contents by name.
        size: S, in pixels.

    Raises:
        UserError: they differ; the message names the photo and the difference.
        ExportError: the export fails.
    """
    answers, replies = AnswerFormatter("", counter.counts, answer=counter.answer), {}
    try:
        exported = _rows(forward, photos, size)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # each runtime raises its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ExportError(
            f"The exported model fails in its runtime ({reason}): if its code fixes the number of photos of a batch, "
            "such as by len(tensor), write tensor.shape[0] there"
        ) from error
    for name, row in exported.items():
        replies[name] = ArchiveAnswer(422, {"error": "unreadable"})
        if row is not None:
            answer = answers.format([row.tolist()], AnswerFormat(), several=False)
            replies[name] = ArchiveAnswer(200, json.loads(answer))
    return _compared(_trained(counter, photos, size), counter, replies, BOUNDS["fp32"])


def _compared(
    expected: Mapping[str, Tensor | None], counter: BinCounter, replies: Mapping[str, ArchiveAnswer], bound: float
) -> ParityResult:
    differences = [
        _difference(name, probabilities, replies[name], counter, bound)
        for name, probabilities in expected.items()
        if probabilities is not None
    ]
    for name, probabilities in expected.items():
        if probabilities is None and replies[name].status not in _REFUSED:
            raise UserError(f"{name} is rejected by training and counted by the archive; {_ADVICE}")
    near = sum(_near_tie(row, counter.answer, bound) for row in expected.values() if row is not None)
    return ParityResult(len(expected), max(differences, default=0.0), near, bound)


def _trained(counter: BinCounter, photos: Mapping[str, bytes], size: int) -> dict[str, Tensor | None]:
    """``float32[K]`` for each photo as training computes it, ``None`` for unreadable ones."""
    normalize = Normalize()
    return _rows(lambda pixels: counter.probabilities(normalize(pixels)), photos, size)


def _rows(forward: Callable[[Tensor], Tensor], photos: Mapping[str, bytes], size: int) -> dict[str, Tensor | None]:
    read = {name: _decoded(data, size) for name, data in photos.items()}
    names = [name for name, pixels in read.items() if pixels is not None]
    rows: dict[str, Tensor | None] = dict.fromkeys(read)
    with torch.inference_mode():
        for start in range(0, len(names), _BATCH):
            batch = names[start : start + _BATCH]
            pixels = torch.stack([pixels for name in batch if (pixels := read[name]) is not None])
            rows |= dict(zip(batch, forward(pixels), strict=True))
    return rows


def _decoded(data: bytes, size: int) -> Tensor | None:
    try:
        return decode(data, size)
    except PhotoError:
        return None


def archive_answers(
    archive: Path, photos: Mapping[str, bytes], *, python: str = sys.executable
) -> tuple[dict[str, ArchiveAnswer], str]:
    """Count photos by an archive's own code, in a process of its own, on the CPU.

    Args:
        archive: unpacked.
        photos: contents by name.
        python: interpreter of the environment to run in.

    Returns:
        The answers by name, and the archive's precision.

    Raises:
        UserError: the archive cannot be loaded; the message has the last line of the process's stderr.
        ResourceError: the process was killed, took too long, or could not be started; or the disk is full.
    """
    with _temporary_folder() as folder:
        inputs, out = folder / "photos", folder / "answers.json"
        inputs.mkdir()
        files = {name: f"{number:06}" for number, name in enumerate(photos)}
        for name, file in files.items():
            (inputs / file).write_bytes(photos[name])
        seconds = _LOADING_SECONDS + _PHOTO_SECONDS * len(photos)
        try:
            done = subprocess.run(
                [python, "-P", str(_PROBE), str(archive), str(inputs), str(out)],
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
            )
        except OSError as error:
            raise ResourceError(f"No process can be started for the archive ({error}); end others.") from error
        except subprocess.TimeoutExpired as error:
            raise ResourceError(
                f"The archive has not answered within {seconds:.0f} s; free memory and cores."
            ) from error
        if done.returncode < 0:
            name = signal.Signals(-done.returncode).name
            raise ResourceError(f"The archive's process was ended by {name}; free memory.")
        if done.returncode:
            lines = done.stderr.split("\n") if done.stderr.strip() else [f"exit code {done.returncode}"]
            raise UserError(f"The archive cannot be loaded: {next(line for line in reversed(lines) if line.strip())}")
        written = json.loads(out.read_text(encoding="utf-8"))
    answers = {name: ArchiveAnswer(**written["answers"][file]) for name, file in files.items()}
    return answers, written["precision"]


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Make a temporary folder for this block.

    Raises:
        ResourceError: files cannot be written there.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="bincounter-parity-") as folder:
            yield Path(folder)
    except OSError as error:
        raise ResourceError(
            f"Temporary files cannot be written ({(error.strerror or str(error)).lower()}): free disk space, or set "
            "TMPDIR to another folder"
        ) from error


def _difference(name: str, trained: Tensor, reply: ArchiveAnswer, counter: BinCounter, bound: float) -> float:
    """Return the largest difference between two probabilities of a photo.

    Raises:
        UserError: it exceeds the bound, or the counts differ and are not a near-tie.
    """
    answer, counts = reply.body, counter.counts
    if reply.status != 200:
        raise UserError(f"{name} is counted by training and refused by the archive ({answer['error']}); {_ADVICE}")
    served = torch.tensor([answer["probabilities"].get(str(count), float("nan")) for count in counts])
    differences = (served - trained).abs().nan_to_num(nan=torch.inf)
    worst = int(differences.argmax())
    if differences[worst] > bound:
        precise = "; remove precision=bf16, or" if bound > BOUNDS["fp32"] else ";"
        raise UserError(
            f"{name}: the probability of count {counts[worst]} is {trained[worst]:.6f} in training and "
            f"{served[worst]:.6f} in the archive, and they may differ by {bound:g}{precise} {_ADVICE}"
        )
    count = counts[position(trained.tolist(), counter.answer)]
    if answer["count"] != count and not _near_tie(trained, counter.answer, bound):
        raise UserError(f"{name} counts {count} in training and {answer['count']} in the archive; {_ADVICE}")
    return float(differences[worst])


def _near_tie(probabilities: Tensor, answer: str, bound: float) -> bool:
    if answer == "median":
        below = probabilities.double().cumsum(0)
        return bool(((below - 0.5).abs() < len(probabilities) // 2 * bound).any())
    first, second = probabilities.topk(2).values
    return bool(first - second < 2 * bound)
