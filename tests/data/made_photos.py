"""Photos made on the fly: a sheet of coloured noise per seed, so that no two are near-copies."""

import io
import json
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def photo_bytes(seed: int = 0, width: int = 60, height: int = 40, form: str = "JPEG") -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, form)
    return buffer.getvalue()


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def bin_folders(root: Path, photos: int = 6, counts: int = 3) -> Path:
    """``<root>/<count>/<index>.jpg``, counts in turn."""
    for index in range(photos):
        write(root / str(index % counts) / f"{index}.jpg", photo_bytes(index))
    return root


def metadata(count: object, *items: str) -> str:
    return json.dumps({"BIN_FCSKU_DATA": {item: {"quantity": 1} for item in items}, "EXPECTED_QUANTITY": count})


def abid_bin(root: Path, name: str, count: int, *items: str) -> None:
    write(root / "bin-images" / f"{name}.jpg", photo_bytes(zlib.crc32(name.encode())))
    write(root / "metadata" / f"{name}.json", metadata(count, *items))
