"""Placement of the items of a demo bin: standing, leaning, lying or stacked, each visible enough to be counted.

The filled area is drawn before it is divided among the items, so that it reveals next to nothing of their number.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from bincounter.data.demo.items import KINDS

GRID = 56  # cells per side of the grid on which visibility is estimated
_SPOTS = 8  # places on the floor that are tried for an item; the one that hides least is used
VISIBLE_FLOOR = 0.68  # of an item's outline; above the exact limit, since round corners reduce it

Box = tuple[float, float, float, float]  # left, top, right and bottom


@dataclass(frozen=True, slots=True)
class Space:
    """The inside of a bin, in canvas units (the canvas is 256 units wide and high).

    Attributes:
        front: left, top, right and bottom of the opening.
        back: the same of the back wall.
    """

    front: Box
    back: Box

    @property
    def area(self) -> float:
        """Area of the opening."""
        left, top, right, bottom = self.front
        return (right - left) * (bottom - top)

    def at(self, depth: float) -> Box:
        """Left, top, right and bottom of the room at a depth from 0 (front) to 1 (back wall)."""
        return tuple(f + (b - f) * depth for f, b in zip(self.front, self.back, strict=True))  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Item:
    """One placed item, in canvas units.

    Attributes:
        kind: key of ``items.KINDS``.
        design: seed of its look.
        width: of the upright item.
        height: of the upright item.
        angle: turn against the clock, in degrees.
        x: centre.
        base: lowest point.
        depth: from 0 (front) to 1 (back wall).
    """

    kind: str
    design: int
    width: float
    height: float
    angle: float
    x: float = 0.0
    base: float = 0.0
    depth: float = 0.0

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of the turned item's bounding box."""
        turn = math.radians(self.angle)
        cosine, sine = abs(math.cos(turn)), abs(math.sin(turn))
        return self.width * cosine + self.height * sine, self.width * sine + self.height * cosine

    @property
    def box(self) -> Box:
        """Left, top, right and bottom of the turned item's bounding box."""
        width, height = self.extent
        return self.x - width / 2, self.base - height, self.x + width / 2, self.base

    @property
    def is_platform(self) -> bool:
        """True if another item can lie on top of it."""
        return KINDS[self.kind].flat and min(abs(self.angle), abs(abs(self.angle) - 90)) < 4


def arrange(rng: np.random.Generator, space: Space, count: int, filled: float) -> list[Item]:
    """Place items until each one is visible and together they fill the given area.

    Args:
        rng: source of every choice.
        space: the inside of the bin.
        count: number of items, at least 1.
        filled: the share of the opening that the visible parts of the items cover, within a seventh of it.

    Returns:
        The items from back to front.
    """
    items, scale = _choose(rng, space, count, filled), 1.0
    for attempt in range(1, 10_000):
        if attempt % 40 == 0:  # items that do not fit, such as five tall books
            items, scale = _choose(rng, space, count, filled), 1.0
        placed = _place(rng, space, [_grown(item, scale) for item in items])
        if placed is None:
            continue
        visible, covered = _seen(placed, space)
        if abs(covered / filled - 1) < 0.15 and visible.min() >= VISIBLE_FLOOR:
            return placed
        scale = float(np.clip(scale * np.clip(filled / max(covered, 0.01), 0.6, 1.6) ** 0.5, 0.6, 1.8))
    raise RuntimeError(f"no arrangement of {count} items fills {filled:.2f} of the bin")


def _choose(rng: np.random.Generator, space: Space, count: int, filled: float) -> list[Item]:
    """Draw kinds, designs, shapes and sizes; areas differ by a factor of up to about 3 in one bin."""
    names = list(KINDS)
    shares = rng.uniform(1, 3, count)
    alike = rng.random() < 0.35
    first = _new_item(rng, names[rng.integers(len(names))])
    others = [_new_item(rng, names[rng.integers(len(names))]) for _ in range(count - 1)]
    for number in range(count - 1):
        if alike and rng.random() < 0.75:
            others[number] = replace(first, angle=_turn(rng, first.kind))
            shares[number + 1] = shares[0]
    areas = shares / shares.sum() * filled * space.area * (1.05 + 0.05 * count)
    return [_sized(item, float(area), space) for item, area in zip([first, *others], areas, strict=True)]


def _new_item(rng: np.random.Generator, kind: str) -> Item:
    """An item of unit area."""
    low, high = KINDS[kind].aspect
    aspect = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    return Item(kind, int(rng.integers(2**31)), aspect**0.5, aspect**-0.5, _turn(rng, kind))


def _turn(rng: np.random.Generator, kind: str) -> float:
    """Draw the angle in degrees: mostly standing, else lying or leaning."""
    upright = rng.normal(0, 1.5)
    if rng.random() < KINDS[kind].lies:
        return float(upright + rng.choice([-90, 90]))
    return float(rng.choice([-1, 1]) * rng.uniform(6, 24)) if rng.random() < 0.22 else float(upright)


def _sized(item: Item, area: float, space: Space) -> Item:
    """Scale an item to an area, limited to the height and width of the bin."""
    left, top, right, bottom = space.front
    item = _grown(item, float(np.sqrt(area / KINDS[item.kind].fullness)))
    width, height = item.extent
    return replace(
        item,
        width=item.width * min(1.0, 0.92 * (right - left) / width),
        height=item.height * min(1.0, 0.95 * (bottom - top) / height),
    )


def _grown(item: Item, scale: float) -> Item:
    return replace(item, width=item.width * scale, height=item.height * scale)


def _place(rng: np.random.Generator, space: Space, items: list[Item]) -> list[Item] | None:
    """Place each item on the floor or on another one, from back to front; ``None`` once one would hide another."""
    placed: list[Item] = []
    order = rng.permutation(len(items))
    depths = np.sort(rng.uniform(0.0, 0.85, len(items)))[::-1]
    for index, depth in zip(order, depths, strict=True):
        item = items[index]
        support = _platform(rng, placed, item, space)
        if support is not None:
            width = max(support.extent[0] - 0.6 * item.extent[0], 1.0) / 2
            x = support.x + rng.uniform(-width, width)
            placed.append(replace(item, x=x, base=support.base - support.extent[1] + 2, depth=support.depth))
            continue
        left, _, right, floor = space.at(float(depth))
        width, height = item.extent
        low, high = left + width / 2 - 3, right - width / 2 + 3
        xs = rng.uniform(low, high, _SPOTS).tolist() if high > low else [(left + right) / 2]
        base = floor - rng.uniform(0, 3)
        boxes = [under.box for under in placed]
        spots = [(x - width / 2, base - height, x + width / 2, base) for x in xs]
        hidden = [max((_hidden(under, spot) for under in boxes), default=0.0) for spot in spots]
        if min(hidden) > 1 - VISIBLE_FLOOR:
            return None
        placed.append(replace(item, x=xs[hidden.index(min(hidden))], base=base, depth=float(depth)))
    return placed


def _hidden(behind: Box, ahead: Box) -> float:
    """Share of one bounding box that another one covers."""
    left, top, right, bottom = behind
    across = min(right, ahead[2]) - max(left, ahead[0])
    upward = min(bottom, ahead[3]) - max(top, ahead[1])
    return across * upward / ((right - left) * (bottom - top)) if across > 0 and upward > 0 else 0.0


def _platform(rng: np.random.Generator, placed: list[Item], item: Item, space: Space) -> Item | None:
    """Choose a placed item that the item can lie on below the bin's roof, or None."""
    fitting = [
        under
        for under in placed
        if under.is_platform
        and under.extent[0] > 0.7 * item.extent[0]
        and under.base - under.extent[1] - 0.9 * item.extent[1] > space.front[1]
    ]
    return fitting[rng.integers(len(fitting))] if fitting and rng.random() < 0.55 else None


def _seen(items: list[Item], space: Space) -> tuple[np.ndarray, float]:
    """Visible share of each item, and the share of the opening that they cover together."""
    cell = 256 / GRID
    centres = (np.arange(GRID, dtype=np.float32) + 0.5) * cell
    left, top, right, bottom = space.front
    columns, rows = (centres > left) & (centres < right), (centres > top) & (centres < bottom)
    inside = np.stack([_outline(item, centres[columns][None, :], centres[rows][:, None]) for item in items])
    hidden = np.logical_or.accumulate(inside[::-1])[::-1][1:]  # by any item before it
    inside[:-1] &= ~hidden
    seen = inside.sum((1, 2)) * cell**2
    own = [item.width * item.height * KINDS[item.kind].fullness for item in items]
    return seen / np.array(own), float(seen.sum() / space.area)


def _outline(item: Item, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cells inside the item's outline, a turned rectangle or a turned oval with blunt corners: bool [rows, columns]."""
    turn = math.radians(item.angle)
    cosine, sine = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    dx, dy = x - np.float32(item.x), y - np.float32(item.base - item.extent[1] / 2)
    along = (dx * cosine - dy * sine) * np.float32(2 / item.width)
    across = (dx * sine + dy * cosine) * np.float32(2 / item.height)
    along *= along
    across *= across
    if KINDS[item.kind].fullness == 1:
        return np.maximum(along, across) < 1
    return along * along + across * across < 1
