"""A tiny data set to learn from: bright squares on noise, as many as the count says."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COUNTS = (0, 1, 2, 3)


def square_bins(root: Path, photos: int = 96) -> Path:
    """Write ``<root>/<count>/<name>.png``; every photo is a scene of its own."""
    generator = np.random.default_rng(0)
    for index in range(photos):
        count = COUNTS[index % len(COUNTS)]
        pixels = generator.integers(0, 90, (32, 32, 3), dtype=np.uint8)
        for place in generator.permutation(16)[:count]:
            top, left = divmod(int(place), 4)
            side = int(generator.integers(4, 7))
            pixels[top * 8 : top * 8 + side, left * 8 : left * 8 + side] = generator.integers(150, 256, 3)
        path = root / str(count) / f"{generator.integers(10**9):09d}-{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="session")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 photos of 0 to 3 squares, for all tests that leave them as they are."""
    return square_bins(tmp_path_factory.mktemp("bins"))
