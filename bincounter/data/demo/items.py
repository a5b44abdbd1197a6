"""Items of a demo bin, each drawn upright on a transparent ground and then rotated.

Prints are sized in canvas units rather than relative to the item, so that a large item carries as many edges per area
as several small ones: edge density must not reveal the count.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bincounter.data.demo.textures import crinkles, shade

Colour = tuple[int, int, int]
WHITE: Colour = (244, 243, 238)
INK: Colour = (34, 32, 36)
CARDBOARD: Colour = (176, 134, 92)
WORDS = (
    *("NOVA", "Terra", "LUMO", "Oak & Co", "Pixel", "BRIO", "Maple", "Zephyr", "KIDO", "Alto", "ORBIT", "Fjord"),
    *("Sunny", "ECHO", "Moss", "Tinker", "VELA", "Hush", "Polar", "Quill", "RUSK", "Ember", "Drift", "Ponto"),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of item.

    Attributes:
        draw: paints one upright item of a given width and height in pixels.
        aspect: smallest and largest width divided by height when upright.
        fullness: share of its bounding rectangle that it fills.
        flat: other items can lie on top of it.
        lies: probability that it lies on its side.
    """

    draw: Callable[["Pen", float], None]
    aspect: tuple[float, float]
    fullness: float
    flat: bool
    lies: float


@dataclass(slots=True)
class Pen:
    """Drawing tools of one item: a transparent sheet, its own random numbers, and pixels per canvas unit."""

    sheet: Image.Image
    rng: np.random.Generator
    unit: float

    @property
    def draw(self) -> ImageDraw.ImageDraw:
        """A drawing context on the sheet."""
        return ImageDraw.Draw(self.sheet)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet in pixels."""
        return self.sheet.size

    def between(self, low: float, high: float) -> float:
        """A uniform random number."""
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)

    def word(self) -> str:
        """An invented brand."""
        return WORDS[self.rng.integers(len(WORDS))]

    def colour(self, saturation: tuple[float, float] = (0.25, 0.8), value: tuple[float, float] = (0.3, 0.9)) -> Colour:
        """A random colour, in hue, saturation and value."""
        rgb = colorsys.hsv_to_rgb(self.rng.random(), self.between(*saturation), self.between(*value))
        return int(rgb[0] * 255), int(rgb[1] * 255), int(rgb[2] * 255)


def paint(kind: Kind, design: int, size: tuple[int, int], unit: float, side: float) -> Image.Image:
    """Paint one upright item.

    Args:
        kind: of the item.
        design: seed of its colours and prints; items of one design look alike.
        size: width and height in pixels.
        unit: pixels per canvas unit (1/256 of the canvas).
        side: visible side wall of a box, from -1 (left) to 1 (right).

    Returns:
        RGBA image of that size.
    """
    pen = Pen(Image.new("RGBA", size), np.random.default_rng(design), unit)
    kind.draw(pen, side)
    return pen.sheet


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font at a size in pixels: no font has to be installed."""
    return ImageFont.load_default(size)


def tint(colour: Colour, factor: float) -> Colour:
    """A lighter (factor > 1) or darker shade."""
    return tuple(min(255, max(0, round(c * factor))) for c in colour)  # type: ignore[return-value]


def _contrast(colour: Colour) -> Colour:
    return INK if 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 135 else WHITE


def _label_text(pen: Pen, box: tuple[float, float, float, float], colour: Colour, upright: bool = True) -> None:
    """Write a brand as large as the box allows; along the height of the box when not upright."""
    left, top, right, bottom = box
    width, height = (right - left, bottom - top) if upright else (bottom - top, right - left)
    word = pen.word()
    size = int(min(height * 0.9, width / (0.58 * len(word)), 34 * pen.unit))
    if size < 5:
        return
    if upright:
        pen.draw.text(((left + right) / 2, (top + bottom) / 2), word, colour, font(size), anchor="mm")
        return
    line = Image.new("L", (max(1, int(width)), max(1, int(height))))
    ImageDraw.Draw(line).text((width / 2, height / 2), word, 255, font(size), anchor="mm")
    pen.sheet.paste((*colour, 255), (int(left), int(top)), line.transpose(Image.Transpose.ROTATE_270))


def _small_print(pen: Pen, box: tuple[float, float, float, float], colour: Colour) -> None:
    """Lines of text too small to read."""
    left, top, right, bottom = box
    draw, step = pen.draw, 4.2 * pen.unit
    for y in np.arange(top, bottom - step / 2, step):
        end = left + (right - left) * pen.between(0.45, 1.0)
        draw.rectangle((left, y, max(left, end), y + 1.3 * pen.unit), fill=colour)


def _barcode(pen: Pen, x: float, y: float) -> None:
    width, height, draw = 22 * pen.unit, 13 * pen.unit, pen.draw
    draw.rectangle((x, y, x + width, y + height), fill=WHITE)
    offsets = np.cumsum(pen.rng.uniform(1.2, 3.4, 9)) * pen.unit
    for offset in offsets[offsets < width - 2 * pen.unit]:
        draw.rectangle((x + offset, y + pen.unit, x + offset + pen.unit * 0.8, y + height - 2 * pen.unit), fill=INK)


def _picture(pen: Pen, box: tuple[float, float, float, float]) -> None:
    """A printed picture: a ground with discs, wedges or stripes."""
    left, top, right, bottom = box
    width, height, draw = right - left, bottom - top, pen.draw
    if width < 4 or height < 4:
        return
    draw.rectangle(box, fill=pen.colour())
    for _ in range(1 + int(width * height / (900 * pen.unit**2))):
        x, y = left + pen.between(0, 1) * width, top + pen.between(0, 1) * height
        radius = min(pen.between(4, 14) * pen.unit, x - left, right - x, y - top, bottom - y)
        if radius < 1:
            continue
        bounds = (x - radius, y - radius, x + radius, y + radius)
        if pen.chance(0.6):
            draw.ellipse(bounds, fill=pen.colour())
        else:
            draw.polygon([(x - radius, y + radius), (x, y - radius), (x + radius, y + radius)], fill=pen.colour())


def _printed_face(pen: Pen, box: tuple[float, float, float, float], ground: Colour) -> None:
    """The front of a retail box: a brand, a picture, small print and perhaps a bar code."""
    left, top, right, bottom = box
    width, height, margin = right - left, bottom - top, 4 * pen.unit
    split = top + height * pen.between(0.2, 0.4)
    if pen.chance(0.5):
        pen.draw.rectangle((left, top, right, split), fill=pen.colour())
    _label_text(pen, (left + margin, top + margin, right - margin, split), _contrast(ground))
    if pen.chance(0.75):
        edge = left + width * pen.between(0.4, 0.95)
        _picture(pen, (left + margin, split + margin, edge - margin, bottom - margin))
        if right - edge > 12 * pen.unit:
            _small_print(pen, (edge, split + margin, right - margin, bottom - margin), _contrast(ground))
    else:
        _small_print(pen, (left + margin, split + margin, right - margin, bottom - margin), _contrast(ground))
    if width > 50 * pen.unit and height > 45 * pen.unit and pen.chance(0.6):
        _barcode(pen, right - 26 * pen.unit, bottom - 17 * pen.unit)


def _carton_face(pen: Pen, box: tuple[float, float, float, float]) -> None:
    """The front of a shipping carton: packing tape and an address label."""
    left, top, right, bottom = box
    middle, half = (left + right) / 2, min(7 * pen.unit, (right - left) / 8)
    if pen.chance(0.7):
        pen.draw.rectangle((middle - half, top, middle + half, bottom), fill=tint(CARDBOARD, pen.between(1.1, 1.3)))
    width, height = min(right - left, 60 * pen.unit) * 0.55, min(bottom - top, 50 * pen.unit) * 0.5
    x, y = left + (right - left - width) * pen.between(0.1, 0.9), top + (bottom - top - height) * pen.between(0.2, 0.9)
    pen.draw.rectangle((x, y, x + width, y + height), fill=WHITE)
    _small_print(pen, (x + 2 * pen.unit, y + 3 * pen.unit, x + width - 2 * pen.unit, y + height), INK)


def _box(pen: Pen, side: float) -> None:
    width, height = pen.size
    depth_x, depth_y = width * min(0.22, 0.1 + 0.2 * abs(side)) * (abs(side) > 0.15), height * pen.between(0.04, 0.14)
    carton = pen.chance(0.35)
    ground = tint(CARDBOARD, pen.between(0.8, 1.1)) if carton else pen.colour() if pen.chance(0.7) else WHITE
    draw = pen.draw
    left, right = (0.0, width - depth_x) if side > 0 else (depth_x, float(width))
    far_left, far_right = (depth_x, float(width)) if side > 0 else (0.0, width - depth_x)
    draw.polygon([(left, depth_y), (far_left, 0), (far_right, 0), (right, depth_y)], fill=tint(ground, 1.18))
    near, far = (right, far_right) if side > 0 else (left, far_left)
    flank = [(near, depth_y), (far, 0), (far, height - depth_y), (near, height)]
    draw.polygon(flank, fill=tint(ground, 0.62))
    front = (left, depth_y, right, float(height))
    draw.rectangle(front, fill=ground)
    if carton:
        _carton_face(pen, front)
    else:
        _printed_face(pen, front, ground)
    draw.line([(left, depth_y), (right, depth_y)], fill=tint(ground, 1.3), width=max(1, round(pen.unit)))
    shade(pen.sheet, np.linspace(1.06, 0.86, height, dtype=np.float32)[:, None])


def _book(pen: Pen, side: float) -> None:
    """A book on the shelf: the spine with its title, or the pages between two covers."""
    width, height = pen.size
    ground, draw, unit = pen.colour(value=(0.2, 0.9)), pen.draw, pen.unit
    draw.rectangle((0, 0, width, height), fill=ground)
    if pen.chance(0.3):
        cover = max(2 * unit, width * 0.13)
        draw.rectangle((cover, 2 * unit, width - cover, height), fill=(226, 217, 196))
        for x in np.arange(cover, width - cover, 2.6 * unit):
            draw.line([(x, 2 * unit), (x, height)], fill=(188, 178, 156), width=1)
    else:
        band, accent = height * pen.between(0.05, 0.16), pen.colour()
        draw.rectangle((0, band, width, band + max(2 * unit, height * pen.between(0.02, 0.1))), fill=accent)
        draw.rectangle((0, height - band - 3 * unit, width, height - band), fill=accent)
        _label_text(pen, (width * 0.1, height * 0.22, width * 0.9, height * 0.8), _contrast(ground), upright=False)
    rounding = 1 - 0.4 * np.abs(np.linspace(-1, 1, width, dtype=np.float32)) ** 2.5 + 0.08 * side
    shade(pen.sheet, rounding[None, :])


def _cylinder(width: int, gloss: float) -> np.ndarray:
    """Brightness across a standing cylinder that is lit from the left: float32 [1, width]."""
    x = np.linspace(-1, 1, width, dtype=np.float32)
    body = 0.42 + 0.72 * np.sqrt(np.clip(1 - 0.93 * (x + 0.18) ** 2, 0, 1))
    return (body + gloss * np.exp(-(((x + 0.45) / 0.1) ** 2)))[None, :]


def _bottle(pen: Pen, side: float) -> None:
    width, height = pen.size
    ground, cap, draw = pen.colour(value=(0.35, 0.95)), pen.colour((0.0, 0.7), (0.15, 0.95)), pen.draw
    neck, cap_end = width * pen.between(0.14, 0.26), height * pen.between(0.08, 0.15)
    shoulder = height * pen.between(0.24, 0.4)
    steps = np.linspace(0, 1, 9)
    outline = [(width / 2 - neck + (neck - width / 2) * np.sin(t * np.pi / 2) ** 1.5, 0) for t in steps]
    left = [(max(0.0, x), cap_end + (shoulder - cap_end) * t) for (x, _), t in zip(outline, steps, strict=True)]
    left += [(0.0, height * 0.97), (width * 0.06, float(height))]
    draw.polygon(left + [(width - x, y) for x, y in reversed(left)], fill=ground)
    draw.rectangle((width / 2 - neck * 1.08, 0, width / 2 + neck * 1.08, cap_end), fill=cap)
    paper = pen.colour((0.0, 0.8), (0.6, 1.0))
    top, bottom = shoulder + height * 0.06, height * pen.between(0.75, 0.9)
    draw.rectangle((0, top, width, bottom), fill=paper)
    _label_text(pen, (width * 0.12, top, width * 0.88, top + (bottom - top) * 0.5), _contrast(paper))
    _small_print(pen, (width * 0.2, top + (bottom - top) * 0.55, width * 0.8, bottom - pen.unit), _contrast(paper))
    shade(pen.sheet, _cylinder(width, 0.35))


def _can(pen: Pen, side: float) -> None:
    width, height = pen.size
    ground, draw, metal = pen.colour(), pen.draw, (196, 198, 202)
    lid = min(width * 0.16, height * 0.25)
    draw.ellipse((0, height - lid, width - 1, height - 1), fill=metal)
    draw.rectangle((0, lid / 2, width, height - lid / 2), fill=ground)
    draw.ellipse((0, height - lid * 1.35, width - 1, height - lid * 0.35), fill=ground)
    middle = lid + (height - 2 * lid) * pen.between(0.1, 0.3)
    panel = middle + (height - 2 * lid) * pen.between(0.35, 0.6)
    draw.rectangle((0, middle, width, panel), fill=pen.colour((0, 0.8), (0.5, 1.0)))
    _label_text(pen, (width * 0.1, middle, width * 0.9, panel), INK)
    _small_print(pen, (width * 0.25, panel + 3 * pen.unit, width * 0.75, height - lid * 1.2), _contrast(ground))
    shade(pen.sheet, _cylinder(width, 0.3))
    draw.ellipse((0, 0, width - 1, lid), fill=tint(metal, 0.8))
    draw.ellipse((width * 0.07, lid * 0.14, width * 0.93, lid * 0.86), fill=tint(metal, 1.12))
    draw.ellipse((width * 0.4, lid * 0.3, width * 0.6, lid * 0.55), fill=tint(metal, 0.9))


def _bag(pen: Pen, side: float) -> None:
    """A plastic bag with something soft in it: a wobbling outline, creases and a label."""
    width, height = pen.size
    ground, draw = pen.colour((0.05, 0.75), (0.35, 0.95)), pen.draw
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    wobble = np.ones_like(turn)
    for waves in (2, 3, 5, 8):
        wobble += pen.between(0, 0.05) * np.sin(waves * turn + pen.between(0, 6.3))
    cosine, sine = np.cos(turn), np.sin(turn)
    reach = wobble / np.max(wobble) / (np.abs(cosine) ** 3.2 + np.abs(sine) ** 3.2) ** (1 / 3.2)
    outline = np.stack([width / 2 * (1 + reach * cosine), height / 2 * (1 + reach * sine)], axis=1)
    draw.polygon([(float(x), float(y)) for x, y in outline], fill=ground)
    if pen.chance(0.65):
        x, y = width * pen.between(0.2, 0.4), height * pen.between(0.2, 0.45)
        label = (x, y, x + min(width * 0.5, 60 * pen.unit), y + min(height * 0.38, 40 * pen.unit))
        paper = pen.colour((0.0, 0.6), (0.7, 1.0))
        draw.rectangle(label, fill=paper)
        _label_text(pen, (label[0], label[1], label[2], (label[1] + label[3]) / 2), _contrast(paper))
        _small_print(pen, (label[0] + pen.unit, (label[1] + label[3]) / 2, label[2] - pen.unit, label[3]), INK)
    u, v = np.linspace(-1, 1, width, dtype=np.float32)[None, :], np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    bulge = 1.12 - 0.3 * (u**2 + v**2) - 0.12 * v - 0.08 * u
    creases = crinkles(pen.rng, (height, width), pen.unit)
    shade(pen.sheet, bulge + 0.28 * creases + 1.2 * np.clip(creases - 0.62, 0, 1))


KINDS: dict[str, Kind] = {
    "box": Kind(_box, (0.6, 1.7), 1, True, 0.0),
    "book": Kind(_book, (0.2, 0.42), 1, True, 0.35),
    "bottle": Kind(_bottle, (0.32, 0.5), 0.88, False, 0.2),
    "can": Kind(_can, (0.6, 1.05), 1, False, 0.15),
    "bag": Kind(_bag, (0.75, 1.6), 0.88, False, 0.0),
}
