"""Surroundings of the items in a demo photo: the cloth bin, its labels, packing paper, stains and elastic bands."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from bincounter.data.demo.items import INK, Colour, font, tint
from bincounter.data.demo.placement import Space
from bincounter.data.demo.textures import crinkles, shade, weave

CLOTHS: tuple[Colour, ...] = ((224, 194, 116), (222, 186, 112), (226, 202, 138), (198, 178, 140), (156, 164, 170))
LABELS: tuple[Colour, ...] = ((150, 186, 214), (232, 168, 170), (240, 170, 100), (96, 150, 130), (92, 84, 120))
PAPERS: tuple[Colour, ...] = ((178, 142, 98), (206, 176, 132), (214, 210, 200), (160, 150, 138))


@dataclass(frozen=True, slots=True)
class Bin:
    """An empty bin in front of the camera.

    Attributes:
        space: its inside, in canvas units.
        cloth: its colour.
        unit: pixels per canvas unit.
    """

    space: Space
    cloth: Colour
    unit: float

    @property
    def size(self) -> int:
        """Width and height of the canvas in pixels."""
        return round(256 * self.unit)


def choose_bin(rng: np.random.Generator, unit: float) -> Bin:
    """Draw a bin's shape, as a camera in front of it sees it, and its cloth."""
    left, right = rng.uniform(6, 18), 256 - rng.uniform(6, 18)
    top, bottom = rng.uniform(16, 28), 256 - rng.uniform(26, 38)
    inset = rng.uniform(12, 26)
    shift = rng.uniform(-0.5, 0.5) * inset
    back = (left + inset + shift, top + rng.uniform(2, 10), right - inset + shift, bottom - rng.uniform(18, 36))
    return Bin(Space((left, top, right, bottom), back), CLOTHS[rng.integers(len(CLOTHS))], unit)


def inside(rng: np.random.Generator, a_bin: Bin) -> Image.Image:
    """Paint the walls, the floor and stains on a whole canvas (RGB)."""
    space, cloth, unit, size = a_bin.space, a_bin.cloth, a_bin.unit, a_bin.size
    image = Image.new("RGB", (size, size), cloth)
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = (v * unit for v in space.front)
    b_left, b_top, b_right, b_bottom = (v * unit for v in space.back)
    near, far = 40 * unit, size + 40 * unit  # walls extend past the opening, which crops them
    draw.polygon([(left - near, -near), (b_left, b_top), (b_left, b_bottom), (left - near, far)], tint(cloth, 0.62))
    draw.polygon([(right + near, -near), (b_right, b_top), (b_right, b_bottom), (right + near, far)], tint(cloth, 0.7))
    draw.polygon([(left, top), (right, top), (b_right, b_top), (b_left, b_top)], tint(cloth, 0.4))
    draw.polygon([(left, bottom), (b_left, b_bottom), (b_right, b_bottom), (right, bottom)], tint(cloth, 0.82))
    draw.rectangle((left, bottom, right, size), tint(cloth, 0.82))
    draw.rectangle((b_left, b_top, b_right, b_bottom), tint(cloth, 0.72))
    for _ in range(rng.poisson(1.5)):
        x, y, reach = rng.uniform(left, right), rng.uniform(top, bottom), rng.uniform(6, 26) * unit
        draw.ellipse((x - reach, y - reach * 0.6, x + reach, y + reach * 0.6), tint(cloth, rng.uniform(0.5, 0.75)))
    image = image.filter(ImageFilter.BoxBlur(2.5 * unit))
    if rng.random() < 0.55:
        _ribs(rng, image, a_bin)
    return image


def _ribs(rng: np.random.Generator, image: Image.Image, a_bin: Bin) -> None:
    """Draw ribs or a grid on the back wall: edges that belong to no item."""
    draw = ImageDraw.Draw(image)
    (left, top, right, bottom), unit = a_bin.space.back, a_bin.unit
    line = tint(a_bin.cloth, rng.uniform(0.45, 0.9))
    pitch, width = rng.uniform(7, 18), max(1, round(rng.uniform(1, 2.4) * unit))
    for x in np.arange(left + pitch / 2, right, pitch):
        draw.line([(x * unit, top * unit), (x * unit, bottom * unit)], line, width)
    if rng.random() < 0.4:
        for y in np.arange(top + pitch / 2, bottom, pitch):
            draw.line([(left * unit, y * unit), (right * unit, y * unit)], line, width)


def paper(rng: np.random.Generator, a_bin: Bin, image: Image.Image, filled: float) -> Image.Image:
    """Paint crumpled packing paper from wall to wall, behind the items.

    Args:
        rng: source of every choice.
        a_bin: the bin.
        image: the canvas, changed in place.
        filled: share of the opening that the paper covers.

    Returns:
        Mask of the paper on the canvas (L).
    """
    size, unit = a_bin.size, a_bin.unit
    left, _, right, bottom = a_bin.space.front
    rim = bottom - filled * a_bin.space.area / (right - left)
    steps = np.arange(0.0, 260.0, 8.0)
    waves = sum(rng.uniform(1, 7) * np.sin(steps / 256 * n * 6.3 + rng.uniform(0, 6.3)) for n in (0.7, 1.6, 3.1))
    heights = rim + waves - np.mean(waves) + rng.normal(0, 1.6, len(steps))
    mask = Image.new("L", (size, size))
    edge = [(float(x * unit), float(y * unit)) for x, y in zip(steps, heights, strict=True)]
    ImageDraw.Draw(mask).polygon([(0, size), *edge, (size, size)], fill=255)
    sheet = Image.new("RGB", (size, size), PAPERS[rng.integers(len(PAPERS))])
    folds = crinkles(rng, (size, size), unit)
    fall = np.linspace(0.62, 1.02, size, dtype=np.float32)[:, None]
    shade(sheet, fall * (0.92 + rng.uniform(0.12, 0.45) * folds))
    image.paste(sheet, (0, 0), mask)
    return mask


def front(rng: np.random.Generator, a_bin: Bin) -> tuple[Image.Image, Image.Image]:
    """Paint the front of the bin with its seams and labels.

    Returns:
        The front (RGB) and the mask of the opening in it (L).
    """
    cloth, unit, size = a_bin.cloth, a_bin.unit, a_bin.size
    image = Image.new("RGB", (size, size), cloth)
    left, top, right, bottom = a_bin.space.front
    folds = 0.9 + 0.16 * np.cos((np.arange(size, dtype=np.float32) / unit - bottom - 12) / 14)[:, None]
    shade(image, folds + 0.035 * weave(rng, (size, size)))
    opening = Image.new("L", (size, size))
    xs = np.linspace(left, right, 17)
    bow = 1 - ((xs - left) / (right - left) * 2 - 1) ** 2
    upper, lower = top + rng.uniform(-4, 2) * bow, bottom + rng.uniform(-4, 6) * bow
    outline = [*zip(xs, upper, strict=True), *zip(xs[::-1], lower[::-1], strict=True)]
    ImageDraw.Draw(opening).polygon([(float(x * unit), float(y * unit)) for x, y in outline], fill=255)
    draw = ImageDraw.Draw(image)
    seam = [(float(x * unit), float((y + 5) * unit)) for x, y in zip(xs, lower, strict=True)]
    for start, end in zip(seam[::2], seam[1::2], strict=False):
        draw.line([start, end], tint(cloth, 0.72), max(1, round(unit)))
    draw.line([(float(x * unit), float(y * unit)) for x, y in zip(xs, lower, strict=True)], tint(cloth, 1.12), 2)
    _bin_label(rng, image, bottom + rng.uniform(10, 16), unit)
    _bin_label(rng, image, top - rng.uniform(26, 34), unit)
    return image, opening


def _bin_label(rng: np.random.Generator, image: Image.Image, top: float, unit: float) -> None:
    """Draw a coloured label with the bin's name and a square code on the front."""
    draw, left = ImageDraw.Draw(image), rng.uniform(50, 120)
    width, height = rng.uniform(76, 92), rng.uniform(27, 32)
    box = tuple(v * unit for v in (left, top, left + width, top + height))
    draw.rectangle(box, (238, 236, 228))
    ground = LABELS[rng.integers(len(LABELS))]
    draw.rectangle((box[0] + 2 * unit, box[1] + 2 * unit, (left + width * 0.58) * unit, box[3] - 2 * unit), ground)
    name = f"{rng.integers(1, 6)}{'ABCDEFGHK'[rng.integers(9)]}"
    middle = (top + height / 2) * unit
    draw.text(((left + width * 0.28) * unit, middle), name, INK, font(max(6, int(22 * unit))), anchor="mm")
    code = Image.fromarray((rng.random((7, 7)) > 0.5).astype(np.uint8) * 255)
    side = max(1, int(18 * unit))
    image.paste(
        code.resize((side, side), Image.Resampling.NEAREST), (int((left + width - 28) * unit), int(middle - side / 2))
    )


def bands(rng: np.random.Generator, a_bin: Bin, image: Image.Image) -> None:
    """Draw elastic bands of fine threads across the opening, as in the Amazon Bin Image Dataset."""
    size, unit = a_bin.size, a_bin.unit
    _, top, _, bottom = a_bin.space.front
    veil = Image.new("L", (size, size))
    draw = ImageDraw.Draw(veil)
    for _ in range(rng.choice([0, 1, 2, 2, 3])):
        height = rng.uniform(22, 56)
        start = rng.uniform(top - 8, max(top, bottom - height + 6))
        pitch, slope, haze = rng.uniform(3.2, 5.2), rng.uniform(-5, 5), int(rng.uniform(12, 46))
        draw.polygon(_strip(start, height, slope, unit, size), fill=haze)
        for y in np.arange(start, start + height, pitch):
            tilt = slope + rng.uniform(-1, 1)
            line = [(0, (y - tilt) * unit), (size, (y + tilt) * unit)]
            draw.line(line, fill=int(rng.uniform(70, 150)), width=max(1, round(unit)))
    image.paste((218, 210, 196), (0, 0), veil)


def _strip(start: float, height: float, slope: float, unit: float, size: int) -> list[tuple[float, float]]:
    corners = [(0, start - slope), (256, start + slope), (256, start + height + slope), (0, start + height - slope)]
    return [(x * size / 256, y * unit) for x, y in corners]
