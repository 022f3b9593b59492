"""What an image looks like, in a few numbers: mass, place, extent, edges and grey levels.

A network that was trained on digits sees digits everywhere; these numbers do not. They are cheap,
know nothing of labels, and tell how an image was made: how it was framed, with what pen, and by
what resampling.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from models.uncertainty import Array

Pixels = NDArray[np.float32]

LEVELS = (0.02, 0.25, 0.5, 0.75, 0.95)
STATISTICS = (
    "mass",
    "row",
    "column",
    "row_variance",
    "column_variance",
    "covariance",
    "row_edges",
    "column_edges",
    "curvature",
    "margin",
    "perimeter",
    "eroded",
    "eroded_twice",
    "height",
    "width",
    *(f"above_{level:g}" for level in LEVELS),
)
MARGIN = 1 / 7
INK = 0.5
TRACE = 0.3

_INK = LEVELS.index(INK)
_THRESHOLDS = np.array(LEVELS, dtype=np.float32)[:, None, None]


def shape_statistics(pixels: Pixels) -> Array:
    """The `STATISTICS` [B, 20] of grey images [B, H, W] with values from 0 to 1.

    mass                  mean value m
    row, column           centre of mass, as a share of the image's size
    *variance, covariance second moments of mass about it, as a share of the size squared
    row_, column_edges    Σ|∂x| / Σx down and across; curvature: Σ|∇²x| / Σx
    margin                share of the mass in a margin of 1/7 of the size
    perimeter             edges of the region above 0.5, per pixel of it
    eroded, eroded_twice  share of that region left by erosions with a cross
    height, width         share of rows and columns with a value above 0.3
    above_l               share of pixels with a value above l, and not above the next level
    """
    height, width = pixels.shape[1:]
    grey = pixels.astype(np.float64)
    rows, columns = grey.sum(axis=2), grey.sum(axis=1)
    total = rows.sum(axis=1)
    mass = np.maximum(total, 1e-6)
    down, across = np.arange(height) / height, np.arange(width) / width
    row, column = (rows * down).sum(axis=1) / mass, (columns * across).sum(axis=1) / mass
    mixed = ((grey * down[:, None]).sum(axis=1) * across).sum(axis=1) / mass
    falling, stepping = grey[:, 1:] - grey[:, :-1], grey[:, :, 1:] - grey[:, :, :-1]
    beside = grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    neighbours = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + beside
    laplacian = 4 * grey[:, 1:-1, 1:-1] - neighbours
    top, left = round(MARGIN * height), round(MARGIN * width)
    middle = grey[:, top : height - top, left : width - left]
    masks = pixels[:, None] > _THRESHOLDS
    counts = _count(masks.reshape(-1, height, width)).reshape(-1, len(LEVELS))
    ink, area = masks[:, _INK], np.maximum(counts[:, _INK], 1)
    border = _count(ink[:, 1:] != ink[:, :-1]) + _count(ink[:, :, 1:] != ink[:, :, :-1])
    once = _erode(ink)
    seen = pixels > TRACE
    above = counts / (height * width)
    levels = above.copy()
    levels[:, :-1] -= above[:, 1:]
    alone = [
        total / (height * width),
        row,
        column,
        (rows * down**2).sum(axis=1) / mass - row**2,
        (columns * across**2).sum(axis=1) / mass - column**2,
        mixed - row * column,
        _total(np.abs(falling, out=falling)) / mass,
        _total(np.abs(stepping, out=stepping)) / mass,
        _total(np.abs(laplacian, out=laplacian)) / mass,
        1 - _total(middle) / mass,
        border / area,
        _count(once) / area,
        _count(_erode(once)) / area,
        seen.any(axis=2).mean(axis=1),
        seen.any(axis=1).mean(axis=1),
    ]
    statistics: Array = np.concatenate([np.stack(alone, axis=1), levels], axis=1)
    return statistics


def _erode(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of regions [B, H, W] whose four neighbours belong to them too, [B, H − 2, W − 2]."""
    left: NDArray[np.bool_] = (
        region[:, 1:-1, 1:-1]
        & region[:, :-2, 1:-1]
        & region[:, 2:, 1:-1]
        & region[:, 1:-1, :-2]
        & region[:, 1:-1, 2:]
    )
    return left


def _count(region: NDArray[np.bool_]) -> Array:
    """Number of pixels of regions [B, H, W]: a product with ones, exact below 2²⁴, is fastest."""
    flat = region.reshape(len(region), -1)
    return (flat.astype(np.float32) @ _ones(flat.shape[1])).astype(np.float64)


@lru_cache(maxsize=64)
def _ones(size: int) -> NDArray[np.float32]:
    return np.ones(size, dtype=np.float32)


def _total(values: Array) -> Array:
    total: Array = values.reshape(len(values), -1).sum(axis=1)
    return total
