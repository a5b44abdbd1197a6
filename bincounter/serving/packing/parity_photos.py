"""The photos that training and an archive have to agree on: real ones where they are at hand, and odd ones."""

import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image

from bincounter.data import demo
from bincounter.data.layouts import PHOTO_SUFFIXES
from bincounter.data.layouts.abid import PHOTOS
from bincounter.data.preprocessing import PhotoError, decode
from bincounter.data.s3.address import is_remote, parse
from bincounter.inspect.run_folder import Run
from bincounter.serving.packing.origin import Origin
from bincounter.training.predicting import photos_of

log = logging.getLogger(__name__)

_SEED = 6
_MOST_ITEMS = 5
_RENDERED_SIZE = 320  # pixels: larger than what models see, so that resizing is compared too
_ROTATED = 6  # EXIF's orientation of a camera held upright
_ORIENTATION_TAG = 0x0112


def parity_photos(origin: Origin, number: int, *, source: str | None, data_dir: Path) -> dict[str, bytes]:
    """Choose photos by name.

    Args:
        origin: the checkpoint and its run, whose own photos are taken where they lie on this machine.
        number: of photos, the odd ones not counted.
        source: a photo, a folder or an ``s3://`` URI to take them from instead.
        data_dir: where a bucket's photos are kept.

    Returns:
        ``number`` photos, or as many as the source has, and a few made of the first one in other formats.

    Raises:
        DataError: ``source`` is no such thing.
    """
    if source is not None:
        paths = photos_of(source, data_dir)
        log.info("Comparing answers on photos of %s.", source)
    else:
        paths = _own_photos(origin.run)
        own = min(len(paths), number)
        log.info("Comparing answers on %d photos of the run and %d rendered ones.", own, number - own)
    chosen = {str(path): path.read_bytes() for path in _spread(paths, number)}
    if source is None:
        chosen |= _rendered(number - len(chosen))
    return chosen | dict(_odd(_first_readable(chosen.values())))


def _own_photos(run: Run | None) -> list[Path]:
    """Test and validation photos of a run, as far as they lie here; nothing is downloaded."""
    if run is None or run.config["data"]["source"] is None:
        return []
    root = _local(run.config["data"]["source"], Path(run.config["paths"]["data_dir"]))
    unseen = (id_ for id_, (_, split) in run.split.items() if split in ("test", "validation"))
    return [path for id_ in unseen if (path := _photo(root, id_))]


def _local(source: str, data_dir: Path) -> Path:
    if not is_remote(source):
        return Path(source)
    bucket, folder = parse(source)
    return data_dir / "s3" / bucket / folder


def _photo(root: Path, id_: str) -> Path | None:
    """An id is a path in bin folders, and a file's stem in ABID's layout."""
    places = [root / id_, *(root / PHOTOS / f"{id_}{suffix}" for suffix in sorted(PHOTO_SUFFIXES))]
    return next((path for path in places if path.is_file()), None)


def _spread(paths: Sequence[Path], number: int) -> list[Path]:
    step = max(1, len(paths) / number)
    return [paths[int(index * step)] for index in range(min(number, len(paths)))]


def _rendered(number: int) -> dict[str, bytes]:
    bins = [demo.compose(_SEED, index, index % (_MOST_ITEMS + 1), _RENDERED_SIZE) for index in range(number)]
    return {f"demo bin {index}": _encoded(photo.image, "JPEG", quality=90) for index, photo in enumerate(bins)}


def _first_readable(photos: Iterable[bytes]) -> Image.Image:
    for photo in [*photos, *_rendered(1).values()]:
        with suppress(PhotoError):
            decode(photo, 1)  # what it reads, Pillow opens
            return Image.open(io.BytesIO(photo)).convert("RGB")
    raise AssertionError("a rendered photo can be read")


def _odd(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """What cameras and programs write besides plain colour JPEGs, and a file that was cut short."""
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
