"""Photos that an archive or an export is compared, scored and calibrated on."""

import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from bincounter.data.demo import scene
from bincounter.data.demo.layout import DemoBins
from bincounter.data.layouts.abid import PHOTOS
from bincounter.data.layouts.base import PHOTO_SUFFIXES
from bincounter.data.photo_bounds import PhotoError, cleaned
from bincounter.data.photos import read_photos
from bincounter.data.preprocessing import decode
from bincounter.data.records import PhotoFile
from bincounter.data.s3.address import is_remote, parse_address
from bincounter.data.s3.mirror import local_folder
from bincounter.data.shards.index import INDEX_FILE, Shards, is_index
from bincounter.data.source import expand_folder, list_photos
from bincounter.errors import DataError
from bincounter.names import escape_name
from bincounter.training.results import CheckpointOrigin, RunResults

log = logging.getLogger(__name__)

_CALIBRATION = 128  # photos; more hardly move the ranges
_SCORED = 1000  # photos at most: a minute of a ResNet50
_SEED = 6
_MOST_ITEMS = 5
_RENDERED_SIZE = 320  # pixels: larger than the input of models, so that resizing is compared too
_ROTATED = 6  # EXIF's orientation of a camera held upright
_ORIENTATION_TAG = 0x0112

_Item = TypeVar("_Item")


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
        files = [file for file, _ in run_photos(origin.run, "test", "validation")]
        if not files:
            log.info("Comparing answers on %d rendered photos: those of the run are not on this machine.", number)
        else:
            own = min(len(files), number)
            log.info("Comparing answers on %d photos of the run and %d rendered ones.", own, number - own)
    spread = spread_evenly(files, number)
    try:
        chosen = {escape_name(file.name): data for file, data in zip(spread, read_photos(spread), strict=True)}
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): make it readable") from error
    if source is None:
        chosen |= _rendered(number - len(chosen))
    return chosen | dict(_odd(_first_readable(chosen.values())))


def run_photos(run: RunResults | None, *splits: str) -> list[tuple[PhotoFile, int]]:
    """Photos of a run's splits that are on this machine, with their counts; nothing is rendered or downloaded."""
    if run is None or not run.split:
        return []
    root = _root(run.config["data"], Path(run.config["paths"]["data_dir"]))
    if root is None:
        return []
    wanted = [(id_, count) for id_, (count, split) in run.split.items() if split in splits]
    if is_index(root / INDEX_FILE):
        with suppress(DataError):  # shards that are damaged or incomplete
            packed = {record.id: record.file for record in Shards().manifest(root).records}
            return [(packed[id_], count) for id_, count in wanted if id_ in packed]
        return []
    return [(PhotoFile(path), count) for id_, count in wanted if (path := _photo(root, id_))]


def calibration_photos(run: RunResults | None) -> list[bytes]:
    """Training photos that the ranges of int8 are taken from.

    Raises:
        DataError: none is on this machine.
    """
    found = run_photos(run, "train")
    chosen = [data for data in _read(spread_evenly(found, _CALIBRATION)) if _is_readable(data)]
    if not chosen:
        raise DataError(
            "precision=int8 is calibrated on training photos, and none of the checkpoint's run are on this machine: "
            "pack it where they are, or remove precision=int8"
        )
    few = "" if len(chosen) == _CALIBRATION else f"; {_CALIBRATION} would give better ranges"
    log.info("Calibrating int8 on %d training photos%s.", len(chosen), few)
    return chosen


def scored_photos(run: RunResults | None) -> list[tuple[bytes, int]]:
    """Validation photos that int8 is scored on, with their counts.

    Raises:
        DataError: none is on this machine.
    """
    chosen = spread_evenly(run_photos(run, "validation"), _SCORED)
    pairs = zip(_read(chosen), chosen, strict=True)
    scored = [(data, count) for data, (_, count) in pairs if _is_readable(data)]
    if not scored:
        raise DataError(
            "precision=int8 is scored on validation photos, and none of the checkpoint's run are on this machine: "
            "pack it where they are, or remove precision=int8"
        )
    return scored


def _read(photos: Sequence[tuple[PhotoFile, int]]) -> list[bytes]:
    try:
        return read_photos([file for file, _ in photos])
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): make it readable") from error


def _is_readable(data: bytes) -> bool:
    with suppress(PhotoError):
        decode(data, 1)
        return True
    return False


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


def spread_evenly(files: Sequence[_Item], number: int) -> list[_Item]:
    """At most ``number`` of the items, at even distances."""
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
