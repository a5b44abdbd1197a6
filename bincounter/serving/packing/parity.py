"""Parity gate: training's code and the packed archive must predict the same for the same photos.

The unpacked archive runs in a process of its own that can import no bincounter but the archive's code. Both sides
compute on the CPU, training in single precision.
"""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bincounter.data.demo import scene
from bincounter.data.demo.layout import DemoBins
from bincounter.data.layouts.abid import PHOTOS
from bincounter.data.layouts.base import PHOTO_SUFFIXES
from bincounter.data.photo_bounds import PhotoError, cleaned
from bincounter.data.photos import read_photos
from bincounter.data.preprocessing import Normalize, decode
from bincounter.data.records import PhotoFile
from bincounter.data.s3.address import is_remote, parse_address
from bincounter.data.s3.mirror import local_folder
from bincounter.data.shards.index import INDEX_FILE, Shards, is_index
from bincounter.data.source import expand_folder
from bincounter.errors import DataError, ResourceError, UserError
from bincounter.model.build import load_counter
from bincounter.names import escape_name
from bincounter.serving.packing.tarball import unpack
from bincounter.training.predictor import list_photos
from bincounter.training.results import CheckpointOrigin, RunResults

log = logging.getLogger(__name__)


BOUNDS = {"fp32": 1e-4, "bf16": 2e-2}
"""Largest allowed difference between probabilities, by the archive's precision."""

_BATCH = 16
_PROBE = Path(__file__).with_name("archive_probe.py")
_LOADING_SECONDS, _PHOTO_SECONDS = 120.0, 30.0  # that the archive's process may take
_SEED = 6
_MOST_ITEMS = 5
_RENDERED_SIZE = 320  # pixels: larger than the input of models, so that resizing is compared too
_ROTATED = 6  # EXIF's orientation of a camera held upright
_ORIENTATION_TAG = 0x0112
_REFUSED = range(400, 500)
_ADVICE = "nothing is served: package the checkpoint again with action=package, by the bincounter that trained it"


@dataclass(frozen=True)
class ParityResult:
    """Result of a comparison that passed.

    Attributes:
        photos: number of photos compared.
        largest: largest difference between two probabilities.
        near_ties: photos with two largest probabilities so close that the count may differ.
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
    expected, counts = _trained(checkpoint, photos, trusted)
    with tempfile.TemporaryDirectory(prefix="bincounter-parity-") as folder:
        replies, precision = archive_answers(unpack(archive, Path(folder) / "archive"), photos)
    bound = BOUNDS[precision]
    differences = [
        _difference(name, probabilities, replies[name], counts, bound)
        for name, probabilities in expected.items()
        if probabilities is not None
    ]
    for name, probabilities in expected.items():
        if probabilities is None and replies[name].status not in _REFUSED:
            raise UserError(f"{name} is rejected by training and counted by the archive; {_ADVICE}")
    near = sum(_near_tie(row, bound) for row in expected.values() if row is not None)
    return ParityResult(len(photos), max(differences, default=0.0), near, bound)


def _trained(
    checkpoint: Path, photos: Mapping[str, bytes], trusted: Sequence[str]
) -> tuple[dict[str, Tensor | None], tuple[int, ...]]:
    """``float32[K]`` for each photo as training computes it, ``None`` for unreadable ones; and the counts."""
    counter, description = load_counter(checkpoint, trusted)
    normalize, size = Normalize(), description["image_size"]
    read = {name: _decoded(data, size) for name, data in photos.items()}
    names = [name for name, pixels in read.items() if pixels is not None]
    answers: dict[str, Tensor | None] = dict.fromkeys(read)
    with torch.inference_mode():
        for start in range(0, len(names), _BATCH):
            batch = names[start : start + _BATCH]
            pixels = torch.stack([pixels for name in batch if (pixels := read[name]) is not None])
            answers |= dict(zip(batch, counter.probabilities(normalize(pixels)), strict=True))
    return answers, counter.counts


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
        ResourceError: the process was killed, took too long, or could not be started.
    """
    with tempfile.TemporaryDirectory(prefix="bincounter-parity-") as folder:
        inputs, out = Path(folder) / "photos", Path(folder) / "answers.json"
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


def _difference(name: str, trained: Tensor, reply: ArchiveAnswer, counts: Sequence[int], bound: float) -> float:
    """Return the largest difference between two probabilities of a photo.

    Raises:
        UserError: it exceeds the bound, or the counts differ and are not a near-tie.
    """
    answer = reply.body
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
    count = counts[int(trained.argmax())]
    if answer["count"] != count and not _near_tie(trained, bound):
        raise UserError(f"{name} counts {count} in training and {answer['count']} in the archive; {_ADVICE}")
    return float(differences[worst])


def _near_tie(probabilities: Tensor, bound: float) -> bool:
    first, second = probabilities.topk(2).values
    return bool(first - second < 2 * bound)


def parity_photos(origin: CheckpointOrigin, number: int, *, source: str | None, data_dir: Path) -> dict[str, bytes]:
    """Choose the photos to compare.

    Args:
        origin: the checkpoint and its run; the run's photos are used if they are on this machine.
        number: of photos, besides those in other formats.
        source: a photo, a folder or an ``s3://`` URI to use instead.
        data_dir: folder of downloaded photos.

    Returns:
        Contents by name: ``number`` photos, or as many as the source has, and the first one in other formats.

    Raises:
        DataError: ``source`` does not exist or has no photos.
    """
    if source is not None:
        files = [PhotoFile(path) for path in list_photos(source, data_dir)]
        log.info("Comparing answers on photos of %s.", source)
    else:
        files = _own_photos(origin.run)
        if not files:
            log.info("Comparing answers on %d rendered photos: those of the run are not on this machine.", number)
        else:
            own = min(len(files), number)
            log.info("Comparing answers on %d photos of the run and %d rendered ones.", own, number - own)
    spread = _spread(files, number)
    try:
        chosen = {escape_name(file.name): data for file, data in zip(spread, read_photos(spread), strict=True)}
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): make it readable") from error
    if source is None:
        chosen |= _rendered(number - len(chosen))
    return chosen | dict(_odd(_first_readable(chosen.values())))


def _own_photos(run: RunResults | None) -> list[PhotoFile]:
    """Test and validation photos of a run that are on this machine; nothing is rendered or downloaded."""
    if run is None or not run.split:
        return []
    root = _root(run.config["data"], Path(run.config["paths"]["data_dir"]))
    if root is None:
        return []
    unseen = [id_ for id_, (_, split) in run.split.items() if split in ("test", "validation")]
    if is_index(root / INDEX_FILE):
        with suppress(DataError):  # shards that are damaged or incomplete
            packed = {record.id: record.file for record in Shards().manifest(root).records}
            return [packed[id_] for id_ in unseen if id_ in packed]
        return []
    return [PhotoFile(path) for id_ in unseen if (path := _photo(root, id_))]


def _root(data: Mapping[str, Any], data_dir: Path) -> Path | None:
    """Folder that a run's photos were read from, by its ``data`` settings; ``None`` for a renderer that is not ours."""
    if data["source"] is None:
        settings = dict(data["layout"])
        is_demo = settings.pop("_target_") == f"{DemoBins.__module__}.{DemoBins.__name__}"
        return DemoBins(**settings).folder(data_dir) if is_demo else None
    source = data["source"]
    return local_folder(data_dir, *parse_address(source)) if is_remote(source) else expand_folder(source)


def _photo(root: Path, id_: str) -> Path | None:
    """Path of a photo: its id is a path in bin folders, and a file's stem in ABID's layout."""
    suffixes = [each for suffix in sorted(PHOTO_SUFFIXES) for each in (suffix, suffix.upper())]
    places = [root / id_, *(root / PHOTOS / f"{id_}{suffix}" for suffix in suffixes)]
    return next((path for path in places if path.is_file()), None)


def _spread(files: Sequence[PhotoFile], number: int) -> list[PhotoFile]:
    step = max(1, len(files) / number)
    return [files[int(index * step)] for index in range(min(number, len(files)))]


def _rendered(number: int) -> dict[str, bytes]:
    bins = [scene.compose(_SEED, index, index % (_MOST_ITEMS + 1), _RENDERED_SIZE) for index in range(number)]
    return {f"demo bin {index}": _encoded(photo.image, "JPEG", quality=90) for index, photo in enumerate(bins)}


def _first_readable(photos: Iterable[bytes]) -> Image.Image:
    for photo in [*photos, *_rendered(1).values()]:
        with suppress(PhotoError):
            decode(photo, 1)  # readable photos stay readable for Pillow after cleaned()
            return Image.open(io.BytesIO(cleaned(photo).data)).convert("RGB")
    raise AssertionError("a rendered photo can be read")


def _odd(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Yield a photo in formats other than a plain colour JPEG, and truncated."""
    rotated = Image.Exif()
    rotated[_ORIENTATION_TAG] = _ROTATED
    see_through = image.copy()
    see_through.putalpha(Image.linear_gradient("L").resize(image.size))
    whole = _encoded(image, "JPEG")
    yield "a grey JPEG", _encoded(image.convert("L"), "JPEG")
    yield "a CMYK JPEG", _encoded(image.convert("CMYK"), "JPEG")
    yield "a rotated JPEG", _encoded(image, "JPEG", exif=rotated)
    yield "a transparent PNG", _encoded(see_through, "PNG")
    yield "a WebP", _encoded(image, "WEBP")
    yield "a truncated JPEG", whole[: len(whole) // 2]


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
