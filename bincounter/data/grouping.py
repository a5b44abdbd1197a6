"""Near-copy groups: which photos show the same scene, so that a split keeps them on one side."""

from collections.abc import Sequence

import numpy as np
import torch

FINGERPRINT_BYTES = 224


def fingerprint(thumb: torch.Tensor) -> np.ndarray:
    """Describe a photo for near-copy detection.

    Args:
        thumb: ``uint8[3, 32, 32]``, the photo stretched to 32 x 32 pixels.

    Returns:
        ``uint8[FINGERPRINT_BYTES]``: a 256-bit perceptual hash, then the colours on an 8 x 8 grid.
    """
    from scipy.fft import dctn

    pixels = thumb.numpy().astype(np.float32)
    grey = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), pixels, 1)
    low = dctn(grey, norm="ortho")[:16, :16].ravel()
    bits = low > np.median(low[1:])
    colours = pixels.reshape(3, 8, 4, 8, 4).mean((2, 4)).round().astype(np.uint8)
    return np.concatenate([np.packbits(bits), colours.ravel()])


def assign_groups(
    items: Sequence[frozenset[str] | None], fingerprints: np.ndarray, content: np.ndarray
) -> np.ndarray:
    """Number the near-copy groups of a data set.

    Args:
        items: for each photo the identifiers of the things in the bin, or ``None`` where they are not known.
        fingerprints: ``uint8[N, FINGERPRINT_BYTES]``, see :func:`fingerprint`.
        content: ``uint64[N]``, a hash of each file's bytes.

    Returns:
        ``int32[N]``, groups numbered from 0 in order of first appearance.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    total = len(items)
    rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    _, first, inverse = np.unique(content, return_index=True, return_inverse=True)
    rows.append(np.arange(total))
    columns.append(first[inverse])
    by_item: dict[str, list[int]] = {}
    for index, known in enumerate(items):
        for item in known or ():
            by_item.setdefault(item, []).append(index)
    for members in by_item.values():
        for a in members:
            for b in members:
                if a < b and 2 * len(items[a] & items[b]) >= len(items[a] | items[b]):  # type: ignore[operator]
                    rows.append(np.array([a]))
                    columns.append(np.array([b]))
    unknown = np.flatnonzero([known is None for known in items])
    bits = np.unpackbits(fingerprints[unknown, :32], axis=1).astype(np.float32) * 2 - 1
    colours = fingerprints[unknown, 32:].astype(np.float32)
    for start in range(0, len(unknown), 512):
        distance = (256 - bits[start : start + 512] @ bits.T) / 2
        for a, b in zip(*np.nonzero(distance <= 40), strict=True):
            if np.abs(colours[start + a] - colours[b]).mean() <= 24:
                rows.append(unknown[[start + a]])
                columns.append(unknown[[b]])
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = coo_array((np.ones(len(row), bool), (row, column)), shape=(total, total))
    _, labels = connected_components(graph, directed=False)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int32)
