"""Where an image has edges, and in which direction: histograms of oriented gradients.

After Dalal & Triggs (CVPR 2005), with four directions and without blocks: the magnitudes of the
gradient's components along 0°, 45°, 90° and 135° are summed over square cells, and the square root
of each sum is kept, so that bold strokes do not drown faint ones.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from models.shape import Pixels

CELLS = 7
DIAGONAL = np.float32(np.sqrt(0.5))


def oriented_gradients(pixels: Pixels) -> NDArray[np.float32]:
    """Square roots of 4 sums in each of 7 × 7 cells, [B, 196], of grey images [B, H, W]."""
    count, height, width = pixels.shape
    components = np.zeros((count, 4, height, width), dtype=np.float32)
    across, down, falling, rising = (components[:, index] for index in range(4))
    np.subtract(pixels[:, :, 2:], pixels[:, :, :-2], out=across[:, :, 1:-1])
    np.subtract(pixels[:, 2:], pixels[:, :-2], out=down[:, 1:-1])
    np.add(across, down, out=falling)
    np.subtract(across, down, out=rising)
    np.multiply(components[:, 2:], DIAGONAL, out=components[:, 2:])
    np.abs(components, out=components)
    sums = np.asarray(_cells(height).T @ components @ _cells(width), dtype=np.float32)
    np.sqrt(sums, out=sums)
    return sums.reshape(len(pixels), -1)


@lru_cache(maxsize=64)
def _cells(size: int) -> NDArray[np.float32]:
    """Share of each of `size` pixels in each of the cells, [size, 7]."""
    edges = np.arange(CELLS + 1) * size / CELLS
    first, last = np.arange(size)[:, None], np.arange(1, size + 1)[:, None]
    overlap = np.minimum(last, edges[1:]) - np.maximum(first, edges[:-1])
    share: NDArray[np.float32] = np.maximum(overlap, 0).astype(np.float32)
    return share
