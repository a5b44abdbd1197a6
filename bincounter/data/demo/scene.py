"""One demo photo from a seed: a bin, its items, packing paper and bands, and the camera."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from bincounter.data.demo import surroundings
from bincounter.data.demo.items import KINDS, paint
from bincounter.data.demo.placement import Item, arrange
from bincounter.data.demo.textures import smooth_light

VISIBLE_FLOOR = 0.62  # least share of an item's own pixels that neither the bin nor other items hide
_SOLID = [0] * 128 + [255] * 128  # maps a soft mask to a hard one

Sprite = tuple[Image.Image, tuple[int, int]]  # RGBA image, and the position of its upper left corner on the canvas


@dataclass(frozen=True, slots=True)
class DemoPhoto:
    """A rendered photo and its ground truth.

    Attributes:
        image: RGB, ``size`` x ``size`` pixels.
        count: items in the bin.
        visible: for each item the share of its own pixels that neither other items nor the bin hide.
        filled: bool [2 * size, 2 * size], items and packing paper on the canvas before the camera.
    """

    image: Image.Image
    count: int
    visible: tuple[float, ...]
    filled: np.ndarray


def compose(seed: int, index: int, count: int, size: int) -> DemoPhoto:
    """Render one photo.

    Args:
        seed: of the whole set.
        index: of the photo in it; with the seed and the count it determines every pixel.
        count: items in the bin.
        size: width and height in pixels.
    """
    rng = np.random.default_rng((seed, index, count))
    a_bin = surroundings.choose_bin(rng, unit=2 * size / 256)  # drawn at twice the size, so that edges are smooth
    items_area, paper_area = _shares(rng, count)
    interior = surroundings.inside(rng, a_bin)
    filled = Image.new("L", interior.size)
    if paper_area > 0:
        filled = surroundings.paper(rng, a_bin, interior, paper_area)
    cover, opening = surroundings.front(rng, a_bin)
    sprites, visible = _arranged(rng, a_bin, opening, count, items_area) if count else ([], ())
    for sprite, corner in sprites:
        _cast_shadow(interior, sprite, corner, a_bin.unit)
        interior.paste(sprite, corner, sprite)
        filled.paste(255, corner, sprite.getchannel("A"))
    _darken(rng, interior, a_bin)
    image = Image.composite(interior, cover, opening)
    surroundings.bands(rng, a_bin, image)
    covered = np.asarray(ImageChops.darker(filled, opening)) > 127
    return DemoPhoto(_photograph(rng, image, size), count, visible, covered)


def _shares(rng: np.random.Generator, count: int) -> tuple[float, float]:
    """Draw the shares of the opening for items and for paper; empty bins are filled as much as others."""
    items = rng.uniform(0.28, 0.48)
    paper = rng.uniform(0.15, 0.5) if rng.random() < 0.5 else 0.0
    if count == 0:
        return 0.0, items + 0.55 * paper if rng.random() < 0.9 else 0.0
    return items, paper


def _arranged(
    rng: np.random.Generator, a_bin: surroundings.Bin, opening: Image.Image, count: int, area: float
) -> tuple[list[Sprite], tuple[float, ...]]:
    """Place items until each is visible enough by exact masks; returns sprites from back to front, and visibilities."""
    while True:
        sprites = [_sprite(item, a_bin) for item in arrange(rng, a_bin.space, count, area)]
        visible = _visible(sprites, opening)
        if min(visible) >= VISIBLE_FLOOR:
            return sprites, visible


def _sprite(item: Item, a_bin: surroundings.Bin) -> Sprite:
    """Paint an item; returns its image and the position of its upper left corner on the canvas."""
    unit, (left, _, right, _) = a_bin.unit, a_bin.space.front
    side = float(np.clip(((left + right) / 2 - item.x) / (right - left) * 2, -1, 1))
    size = max(3, round(item.width * unit)), max(3, round(item.height * unit))
    sprite = paint(KINDS[item.kind], item.design, size, unit, side)
    if abs(item.angle) > 1e-3:
        sprite = sprite.rotate(item.angle, Image.Resampling.BILINEAR, expand=True)
    sprite = sprite.crop(sprite.getchannel("A").getbbox())  # so that round outlines touch the floor, too
    x = round(item.x * unit - sprite.width / 2)
    return sprite, (x, round(item.base * unit) - sprite.height)


def _visible(sprites: list[Sprite], opening: Image.Image) -> tuple[float, ...]:
    owner = Image.new("L", opening.size)
    for number, (sprite, corner) in enumerate(sprites, start=1):
        owner.paste(number, corner, sprite.getchannel("A").point(_SOLID))
    counts = np.bincount(np.asarray(owner)[np.asarray(opening) > 0], minlength=len(sprites) + 1)
    own = [sum(sprite.getchannel("A").histogram()[128:]) for sprite, _ in sprites]
    return tuple(float(counts[number] / max(own[number - 1], 1)) for number in range(1, len(sprites) + 1))


def _cast_shadow(canvas: Image.Image, sprite: Image.Image, corner: tuple[int, int], unit: float) -> None:
    """Draw a soft shadow around an item's outline, strongest below it."""
    margin = round(12 * unit)
    small = (sprite.width + 2 * margin) // 4 + 1, (sprite.height + 2 * margin) // 4 + 1
    soft = Image.new("L", small)
    shape = sprite.getchannel("A").resize((max(1, sprite.width // 4), max(1, sprite.height // 4)), Image.Resampling.BOX)
    soft.paste(shape.point([round(v * 0.62) for v in range(256)]), (margin // 4, margin // 4))
    soft = soft.filter(ImageFilter.GaussianBlur(1.3 * unit)).resize(
        (small[0] * 4, small[1] * 4), Image.Resampling.BILINEAR
    )
    canvas.paste((24, 18, 12), (corner[0] - margin + round(2 * unit), corner[1] - margin + round(3 * unit)), soft)


def _darken(rng: np.random.Generator, interior: Image.Image, a_bin: surroundings.Bin) -> None:
    """Draw the shadow of the roof in the bin, darker on one side."""
    size = interior.width
    y = np.arange(size, dtype=np.float32)[:, None] / a_bin.unit
    x = np.arange(size, dtype=np.float32)[None, :] / size
    roof = np.exp(-(y - a_bin.space.front[1]) / rng.uniform(18, 60)).clip(0, 1)
    shadow = 255 * (rng.uniform(0.3, 0.65) * roof + rng.uniform(0.0, 0.3) * np.abs(x - rng.choice([0, 1])))
    interior.paste((14, 12, 12), (0, 0), Image.fromarray(shadow.clip(0, 255).astype(np.uint8)))


def _photograph(rng: np.random.Generator, image: Image.Image, size: int) -> Image.Image:
    """Simulate the camera: perspective jitter, uneven light, defocus and sensor noise."""
    image = image.reduce(2)
    side = image.width
    jitter = rng.uniform(-0.02, 0.02, (4, 2)) * side + rng.uniform(-0.015, 0.015, 2) * side
    corners = np.array([(0, 0), (0, side), (side, side), (side, 0)]) + jitter
    corners = side / 2 + (corners - side / 2) * 0.93  # so that the canvas fills the frame
    quad = tuple(corners.ravel().tolist())
    image = image.transform((side, side), Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
    sharpness = rng.random()
    if sharpness < 0.22:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 0.95) * size / 128))
    elif sharpness < 0.3:
        image = image.filter(ImageFilter.BoxBlur((rng.uniform(0.4, 1.3) * size / 128, 0.2)))
    exposure = np.exp(rng.normal(0, 0.16)) * rng.normal(1, 0.04, 3)
    light = smooth_light(rng, size, 3, 0.11)[..., None] * exposure.astype(np.float32)
    noise = rng.standard_normal((size, size, 3), dtype=np.float32) * rng.uniform(1.5, 6)
    pixels = np.asarray(image, dtype=np.float32) * light + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
