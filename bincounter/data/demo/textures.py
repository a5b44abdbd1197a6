"""Textures of demo bins: creases, woven cloth and smooth light, cut at random from tiles made once per process."""

from functools import lru_cache

import numpy as np
from PIL import Image

TILE = 512


@lru_cache(maxsize=1)
def _creased_tile() -> np.ndarray:
    """Facets of crumpled foil: float32 [TILE, TILE] in about [-1, 1].

    Crumpling folds a sheet along straight creases, and each fold adds a constant slope on one of its sides; so the
    brightness of a facet is a sum of signs of line equations. Each crease is local, or all facets would be slivers.
    """
    rng = np.random.default_rng(20)
    y, x = np.mgrid[0:TILE, 0:TILE].astype(np.float32) / TILE
    tile = np.zeros((TILE, TILE), np.float32)
    for _ in range(110):
        angle, cx, cy = rng.uniform(0, np.pi), rng.random(), rng.random()
        dx, dy = (x - cx + 0.5) % 1 - 0.5, (y - cy + 0.5) % 1 - 0.5
        across = dx * np.cos(angle) + dy * np.sin(angle)
        near = np.exp(-(dx**2 + dy**2) / (2 * rng.uniform(0.06, 0.18) ** 2))
        tile += rng.choice([-1, 1]) * np.tanh(across * 220) * near
    return np.asarray(tile / (2.2 * tile.std()), dtype=np.float32).clip(-1, 1)


@lru_cache(maxsize=1)
def _woven_tile() -> np.ndarray:
    """Coarse cloth: float32 [TILE, TILE], mean 0, standard deviation 1."""
    noise = np.random.default_rng(21).normal(size=(TILE, TILE)).astype(np.float32)
    threads = noise + np.roll(noise, 1, 0) + np.roll(noise, 2, 0) - np.roll(noise, 1, 1)
    return threads / threads.std()


def _cut(tile: np.ndarray, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Cut a random piece of a tile, mirrored at random; pieces larger than the tile wrap around."""
    rows = (rng.integers(TILE) + np.arange(shape[0])) % TILE
    columns = (rng.integers(TILE) + np.arange(shape[1])) % TILE
    piece = tile.take(rows, 0).take(columns, 1)
    return piece[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]


def crinkles(rng: np.random.Generator, shape: tuple[int, int], unit: float) -> np.ndarray:
    """Creases of a bag or of paper: float32 of the shape in [-1, 1]; ``unit`` is pixels per canvas unit."""
    zoom = max(1.0, 1 / unit)
    piece = _cut(_creased_tile(), rng, (round(shape[0] * zoom), round(shape[1] * zoom)))
    if zoom == 1.0:
        return piece
    return np.asarray(Image.fromarray(np.ascontiguousarray(piece)).resize(shape[::-1], Image.Resampling.BOX))


def weave(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Woven cloth: float32 of the shape, standard deviation 1."""
    return _cut(_woven_tile(), rng, shape)


def smooth_light(rng: np.random.Generator, size: int, cells: int, strength: float) -> np.ndarray:
    """Uneven light: float32 [size, size] around 1, varying over ``cells`` cells by the standard deviation given."""
    coarse = rng.normal(1.0, strength, (cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def shade(image: Image.Image, light: np.ndarray) -> None:
    """Multiply the colours of an RGB or RGBA image, in place, by ``light`` (broadcast to [height, width])."""
    pixels = np.array(image)
    lit = pixels[..., :3] * light[..., None].astype(np.float32, copy=False)
    pixels[..., :3] = lit.clip(0, 255)
    image.paste(Image.fromarray(pixels))
