"""Near-copy groups: photos that show the same bin, so that a split can keep them on one side.

Three rules link two photos; groups are the connected components of all links.

1. Identical files are always linked.
2. If the items of a bin are known, two bins are one scene when their item sets have a Jaccard similarity of at least
   one half. A bin known to be empty is a scene of its own.
3. If they are not known, photos are compared. A fingerprint is a colour thumbnail in the frequency domain,
   its spectrum flattened (natural images fall off with 1/f) and compressed, so that no single edge or lamp outweighs
   the rest; two fingerprints are compared by their cosine. It is a perceptual hash that keeps magnitudes (Zauner, 2010,
   "Implementation and benchmarking of perceptual image hash functions"). Copies of a file - re-encoded, resized,
   brightened, cropped by a percent - reach ``COPY`` and are always linked. Another photograph of a bin
   reaches no value that different bins do not reach as well, so the lower threshold ``SCENE`` applies only to photos
   with names that end in consecutive numbers, such as ``00017`` and ``00018``: cameras number consecutive photos.

Groups that the data source gives, as the ``split.csv`` of prepared bins does, are used as they are and joined by rule 1
alone; photos without a given group are compared with all others.

Measured against the item sets of the 9,847 photos of ABID's ``resized-224`` sample (``pytest
tests/data/test_grouping.py -m photos`` asserts floors on 4,000 of them): rule 3 puts 64 % of the pairs that rule 2
links into one group; of the pairs in one group (bins known to hold something) 93 % share an item; its largest group has
6 photos. A split of counts 1-5 into 80/10/10 then leaves 20 % of the test photos with a scene of theirs in training; by
copies alone, or at random, it is 55 %; by rule 2 none. Of 400 photos, each is linked to its original, and to itself at
JPEG quality 30, at 64 pixels, cropped by 1 % on each side, a fifth brighter or 30 % darker; 99 % when cropped by 2 %.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from scipy.fft import dctn
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

_GREY_SIDE, _COLOUR_SIDE = 12, 7  # lowest frequencies kept per axis, of brightness and of either colour difference
_COARSE = 31  # leading coefficients that preselect pairs: an eighth of the arithmetic leaves one pair in 10,000
_SPECTRUM = _GREY_SIDE**2 - 1 + 2 * _COLOUR_SIDE**2
FINGERPRINT_BYTES = _SPECTRUM + 3

JACCARD = 0.5
COPY = 0.85  # cosine of two fingerprints from which any two photos are copies
SCENE = 0.4  # cosine from which two photos taken in a row show the same bin, if other bins look less alike
_CHANCE = 0.01  # share of the pairs of other bins that may look as alike; ABID needs 0.42 for it, uniform bins more
_COARSE_COPY = 0.8  # cosine of the coarse parts below which no pair is compared in full
_IN_A_ROW = 2  # numbers apart; ABID holds a bin's photographs under id, id + 1 and id + 2
_SAMPLED, _FAR = 50_000, 64  # pairs of other bins that are compared, and their least distance in the series
_SAME_NUMBER = 64  # photos looked at after each in a series: numbers that repeat more often are ignored
_SHARING, _COMPARED = 4_000_000, 65_536  # pairs at a time: those that share an item, those of whole spectra
_ROWS, _COLUMNS = 2048, 8192  # photos on the sides of a tile of pairs
_FLAT = 8.0  # root mean square of a spectrum below which there is only sensor and JPEG noise; ABID has 118 or more
_BRIGHTNESS, _TINT = 64, 12  # largest differences of the mean colours of two copies, in grey levels

# ITU-R BT.601: brightness and the two colour differences of an RGB pixel.
_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]], np.float32)
_RADIUS = np.hypot(*np.indices((_GREY_SIDE, _GREY_SIDE))).astype(np.float32)
_LOW_TO_HIGH = np.argsort(_RADIUS, axis=None, kind="stable")[1:]  # without the mean
_NUMBERED = re.compile(r"(.*?)([0-9]{1,18})", re.DOTALL)

Pairs = tuple[np.ndarray, np.ndarray]


def fingerprint(thumb: torch.Tensor) -> np.ndarray:
    """Compute the fingerprint of a photo, by which near-copies are found.

    Args:
        thumb: ``uint8[3, 32, 32]``, RGB, the photo stretched to 32 x 32 pixels.

    Returns:
        ``uint8[FINGERPRINT_BYTES]``: the compressed spectrum as ``int8``, brightness first and from low to high
        frequencies, then the mean colour (Y, Cb + 128, Cr + 128). The spectrum of a flat photo is all zeros.
    """
    pixels = np.tensordot(_YCBCR, thumb.numpy().astype(np.float32), 1)
    spectrum = dctn(pixels, axes=(1, 2), norm="ortho")
    grey = (spectrum[0, :_GREY_SIDE, :_GREY_SIDE] * _RADIUS).ravel()[_LOW_TO_HIGH]
    colour = (spectrum[1:, :_COLOUR_SIDE, :_COLOUR_SIDE] * np.hypot(1, _RADIUS[:_COLOUR_SIDE, :_COLOUR_SIDE])).ravel()
    levels = np.concatenate([_compress(grey), _compress(colour)])
    mean = pixels.mean((1, 2)) + np.array([0, 128, 128])
    return np.concatenate(
        [np.rint(127 * levels).astype(np.int8).view(np.uint8), mean.round().clip(0, 255).astype(np.uint8)]
    )


def assign_groups(
    items: Sequence[frozenset[str] | None],
    fingerprints: np.ndarray,
    content: np.ndarray,
    names: Sequence[str] | None = None,
    given: Sequence[int | None] | None = None,
) -> np.ndarray:
    """Number the near-copy groups of a data set by the rules above.

    Memory grows with the photos, not with their pairs; time with the pairs of photos without known items: 535,234
    photos take 8 CPU minutes and 1.6 GB, and as many with known items 1.5 minutes.

    Args:
        items: for each photo the identifiers of the items in its bin, or ``None`` if they are not known.
        fingerprints: ``uint8[N, FINGERPRINT_BYTES]``, see :func:`fingerprint`.
        content: ``uint64[N]``, a hash of each file's bytes.
        names: ids or relative paths of the photos, with or without suffix; numbers at their ends identify photos
            that were taken in a row. Without them only copies are found among photos without known items.
        given: the group that the data source gives for each photo, or ``None``.

    Returns:
        ``int32[N]``, groups numbered from 0 in order of first appearance; given ones keep their numbers, a joined one
        has the smallest of its numbers, and the others follow.
    """
    total = len(items)
    links = [_same_content(content), *_similar_items(items)]
    unknown = np.flatnonzero([item_set is None for item_set in items])
    numbers = np.array([-1 if group is None else group for group in given or [None] * total], np.int64)
    if (numbers[unknown] < 0).any():
        photos = _Fingerprints(fingerprints[unknown])
        pairs = list(_copies(photos))
        if names is not None:
            pairs.append(_same_scenes(photos, _in_series([names[i] for i in unknown.tolist()])))
        for left, right in ((unknown[left], unknown[right]) for left, right in pairs):
            free = (numbers[left] < 0) | (numbers[right] < 0)
            links.append((left[free], right[free]))
    known = np.flatnonzero(numbers >= 0)
    _, first, inverse = np.unique(numbers[known], return_index=True, return_inverse=True)
    links.append((known, known[first[inverse]]))
    components = _components(links, total)
    _, first, inverse = np.unique(components, return_index=True, return_inverse=True)
    return _numbered(np.argsort(np.argsort(first))[inverse], numbers).astype(np.int32)


def _numbered(groups: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Name groups, numbered from 0, by the smallest number that was given (not -1) to one of their photos."""
    after = given.max(initial=-1) + 1
    names = np.full(groups.max(initial=-1) + 1, after)
    np.minimum.at(names, groups[given >= 0], given[given >= 0])
    others = names == after
    names[others] += np.arange(others.sum())
    return names[groups]


def _compress(coefficients: np.ndarray) -> np.ndarray:
    """Compress coefficients to -1..1 relative to their root mean square; noise becomes zero."""
    scale = np.sqrt(np.mean(coefficients**2))
    return np.tanh(2 * coefficients / scale) if scale >= _FLAT else np.zeros_like(coefficients)


def _components(links: Sequence[Pairs], total: int) -> np.ndarray:
    left, right = (np.concatenate([pair[side] for pair in links]) for side in (0, 1))
    graph = coo_array((np.ones(len(left), np.uint8), (left, right)), shape=(total, total))
    return connected_components(graph, directed=False)[1]


def _same_content(content: np.ndarray) -> Pairs:
    _, first, inverse = np.unique(content, return_index=True, return_inverse=True)
    return np.arange(len(content)), first[inverse]


def _similar_items(items: Sequence[frozenset[str] | None]) -> Iterator[Pairs]:
    """Link photos of similar item sets."""
    sets: dict[frozenset[str], int] = {}  # each distinct set and the photo that stands for it
    twins = [(i, sets.setdefault(known, i)) for i, known in enumerate(items) if known]
    if not twins:
        return
    yield tuple(np.array(twins).T)
    column: dict[str, int] = {}
    indices = np.array([column.setdefault(item, len(column)) for known in sets for item in sorted(known)])
    sizes = np.array([len(known) for known in sets])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    member = csr_array((np.ones(len(indices), np.int32), indices, starts), shape=(len(sets), len(column)))
    transposed = member.T.tocsr()
    sharing = np.add.reduceat(np.bincount(indices)[indices], starts[:-1])
    stands_for = np.fromiter(sets.values(), np.int64)
    edges = np.flatnonzero(np.diff(np.cumsum(sharing) // _SHARING)) + 1
    for start, stop in pairwise([0, *edges.tolist(), len(sharing)]):
        shared = (member[start:stop] @ transposed).tocoo()
        left, right = shared.row + start, shared.col
        similar = shared.data >= JACCARD * (sizes[left] + sizes[right] - shared.data)
        yield stands_for[left[similar]], stands_for[right[similar]]


class _Series(NamedTuple):
    """Photos with names that end in a number, sorted: series, number in the series, and position, ``int64[N]`` each."""

    line: np.ndarray
    number: np.ndarray
    photo: np.ndarray


def _in_series(names: Sequence[str]) -> _Series:
    lines: dict[tuple[str, int], int] = {}
    numbered = []
    for index, name in enumerate(names):
        if match := _NUMBERED.fullmatch(PurePosixPath(name).stem):
            prefix, digits = match.groups()
            key = (prefix, len(digits) if digits.startswith("0") else 0)  # 1 and 00001 are different bins
            numbered.append((lines.setdefault(key, len(lines)), int(digits), index))
    return _Series(*np.array(sorted(numbered), np.int64).reshape(-1, 3).T)


def _same_scenes(photos: "_Fingerprints", series: _Series) -> Pairs:
    """Link similar photos taken in a row; the threshold is set by the similarity of photos taken far apart."""
    total = len(series.photo)
    if total < 2:
        return series.photo[:0], series.photo[:0]
    places = np.random.default_rng(0).integers(0, total, (2, _SAMPLED))
    left, right = series.photo[places[:, np.abs(places[0] - places[1]) > _FAR]]
    by_chance = np.quantile(photos.cosine(left, right), 1 - _CHANCE) if len(left) else 0.0
    return photos.alike(_taken_in_a_row(series), max(SCENE, float(by_chance)))


def _taken_in_a_row(series: _Series) -> Pairs:
    line, number, photo = series
    left, right = [photo[:0]], [photo[:0]]
    for shift in range(1, min(_SAME_NUMBER, len(photo) - 1) + 1):
        apart = number[shift:] - number[:-shift]
        near = (line[shift:] == line[:-shift]) & (apart <= _IN_A_ROW)
        left.append(photo[:-shift][near & (apart > 0)])
        right.append(photo[shift:][near & (apart > 0)])
        if not near.any():
            break
    return np.concatenate(left), np.concatenate(right)


class _Fingerprints:
    """Fingerprints of photos, compared pair by pair.

    Attributes:
        coarse: ``float32[N, _COARSE]``, unit vectors; zeros for flat photos.
    """

    def __init__(self, fingerprints: np.ndarray) -> None:
        self.raw = fingerprints
        self._spectrum = np.ascontiguousarray(fingerprints[:, :_SPECTRUM]).view(np.int8)
        coarse = self._spectrum[:, :_COARSE].astype(np.float32)
        self.coarse = coarse / np.maximum(np.linalg.norm(coarse, axis=1, keepdims=True), 1)
        self._mean = fingerprints[:, _SPECTRUM:].astype(np.int16)

    def alike(self, pairs: Pairs, threshold: float) -> Pairs:
        """Select the pairs with a cosine of at least ``threshold``."""
        left, right = pairs
        starts = range(0, len(left), _COMPARED)
        cosines = [self.cosine(left[at : at + _COMPARED], right[at : at + _COMPARED]) for at in starts]
        alike = np.concatenate([np.zeros(0, np.float32), *cosines]) >= threshold
        return left[alike], right[alike]

    def coloured_alike(self, pairs: Pairs) -> Pairs:
        """Select the pairs with mean colours that differ by no more than lighting and encoding."""
        difference = np.abs(self._mean[pairs[0]] - self._mean[pairs[1]])
        alike = (difference <= [_BRIGHTNESS, _TINT, _TINT]).all(axis=1)
        return pairs[0][alike], pairs[1][alike]

    def cosine(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """``float32[P]``: cosine of the whole spectra, pair by pair; 0 with a flat photo."""
        a, b = self._spectrum[left].astype(np.float32), self._spectrum[right].astype(np.float32)
        size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return np.einsum("ij,ij->i", a, b) / np.maximum(size, 1)


def _copies(photos: _Fingerprints) -> Iterator[Pairs]:
    """Link copies: every pair is compared, tile by tile; photos already linked are not compared again."""
    _, first, inverse = np.unique(photos.raw, axis=0, return_index=True, return_inverse=True)
    yield np.arange(len(inverse)), first[inverse.ravel()]
    order = np.sort(first[photos.coarse[first].any(axis=1)])  # flat photos have nothing more to compare
    coarse = photos.coarse[order]
    component = np.arange(len(order))
    for top in range(0, len(order), _ROWS):
        for start in range(top, len(order), _COLUMNS):
            cosine = coarse[top : top + _ROWS] @ coarse[start : start + _COLUMNS].T
            row, column = np.divmod(np.flatnonzero(cosine >= _COARSE_COPY), cosine.shape[1])
            row, column = row + top, column + start
            fresh = (row < column) & (component[row] != component[column])
            left, right = photos.alike(photos.coloured_alike((order[row[fresh]], order[column[fresh]])), COPY)
            if len(left):
                yield left, right
                joined = (component[np.searchsorted(order, left)], component[np.searchsorted(order, right)])
                component = _components([joined], len(order))[component]
