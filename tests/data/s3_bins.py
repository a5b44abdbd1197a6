"""Bins in a bucket, and what has become of them here."""

import random
from pathlib import Path

from s3_server import S3Server


def bins(number: int, size: int = 2000) -> dict[str, bytes]:
    """Objects below ``bins/``, in several folders."""
    return {f"{each % 7}/{each}.jpg": random.Random(each).randbytes(size) for each in range(number)}


def put(server: S3Server, objects: dict[str, bytes]) -> None:
    server.put("shop", {f"bins/{name}": body for name, body in objects.items()})


def files(data_dir: Path) -> dict[str, bytes]:
    folder = data_dir / "s3" / "shop" / "bins"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def inodes(data_dir: Path) -> dict[str, int]:
    return {name: (data_dir / "s3/shop/bins" / name).stat().st_ino for name in files(data_dir)}


def assert_nothing_half_done(data_dir: Path) -> None:
    assert not (data_dir / "s3/.sync/shop.parts").exists()
