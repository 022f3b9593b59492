"""What an image looks like, in a few numbers: mass, place, extent, edges and grey levels.

A network that was trained on digits sees digits everywhere; these numbers do not. They are cheap,
know nothing of labels, and tell how an image was made: how it was framed, with what pen, and by
what resampling.

Grey values are rounded to whole units, so that every sum is exact, in whatever order it is taken:
an image has the same statistics, to the bit, in whatever batch it comes. Rows lie end to end in
memory, and a neighbour is a fixed number of places away: pairs that are none, since they meet
where one row ends and the next begins, have no weight in a sum.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.uncertainty import Array

Pixels = NDArray[np.float32]
Floats = NDArray[np.floating]

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

UNITS = 255 * 16
"""Of white, so that what comes with 8 bits is whole. Four neighbours' sum fits 16 bits."""

TOGETHER = 64
"""Images whose intermediate arrays a processor's cache has room for."""

_INK = LEVELS.index(INK)
_BARELY = 1e-6  # a level's product with the units is not exact

Units = NDArray[np.int16]
Region = NDArray[np.bool_]


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
    if len(pixels) <= TOGETHER:
        return _statistics(pixels)
    starts = range(0, len(pixels), TOGETHER)
    return np.concatenate([_statistics(pixels[start:][:TOGETHER]) for start in starts])


def _statistics(pixels: Pixels) -> Array:
    count, height, width = pixels.shape
    size = height * width
    grey = np.rint(pixels.reshape(count, size) * np.float32(UNITS)).astype(np.int16)
    moments = grey.astype(np.float64) @ _places(height, width)
    mass = np.maximum(moments[:, 0], UNITS * 1e-6)
    row, column, rows, columns, both, middle = moments[:, 1:].T / mass
    above = grey[:, None] > _units(*LEVELS)[:, None]
    counts = _counts(above)
    ink, area = above[:, _INK], np.maximum(counts[:, _INK], 1)
    border = _counts(ink[:, width:] != ink[:, :-width])
    border += _counts((ink[:, 1:] != ink[:, :-1]) & _inside(height, width, right=1)[:-1])
    once = _erode(ink, width)
    twice = _erode(once, width)
    falling, stepping = grey[:, width:] - grey[:, :-width], grey[:, 1:] - grey[:, :-1]
    centre, *neighbours = _cross(grey, width)
    laplacian = 4 * centre
    for neighbour in neighbours:
        laplacian -= neighbour
    seen = (grey.reshape(pixels.shape) > _units(TRACE)).astype(np.float32)
    levels = counts / size
    levels[:, :-1] -= levels[:, 1:]
    alone = [
        moments[:, 0] / (UNITS * size),
        row / height,
        column / width,
        (rows - row**2) / height**2,
        (columns - column**2) / width**2,
        (both - row * column) / size,
        _sums(np.abs(falling), _weights(height - 1, width)) / mass,
        _sums(np.abs(stepping), _weights(height, width, right=1)[:-1]) / mass,
        _sums(np.abs(laplacian), _weights(height - 2, width, 1, 1)) / mass,
        1 - middle,
        border / area,
        _counts(once & _inside(height - 2, width, 1, 1)) / area,
        _counts(twice & _inside(height - 4, width, 2, 2)) / area,
        _counts(seen @ _ones(width) > 0) / height,
        _counts(_ones(height) @ seen > 0) / width,
    ]
    statistics: Array = np.concatenate([np.array(alone).T, levels], axis=1)
    return statistics


def _units(*levels: float) -> Units:
    """The most units that are not above each level."""
    return np.floor(np.array(levels) * UNITS + _BARELY).astype(np.int16)


def _cross(values: NDArray[Any], width: int) -> list[NDArray[Any]]:
    """Values [B, n − 2 w] without the first row and the last; and those around, on four sides."""
    left = max(values.shape[1] - 2 * width, 0)
    starts = (width, 0, 2 * width, width - 1, width + 1)
    return [values[:, start : start + left] for start in starts]


def _erode(region: Region, width: int) -> Region:
    """Pixels of regions [B, n] whose four neighbours belong to them too, [B, n − 2 w]."""
    centre, *neighbours = _cross(region, width)
    left: Region = centre.copy()
    for neighbour in neighbours:
        left &= neighbour
    return left


def _sums(values: Units, weights: Floats) -> Array:
    """Σ of whole values [m, n] with weights 0 and 1, [m]: exact below 2²⁴ or 2⁵³."""
    return (values.astype(weights.dtype) @ weights).astype(np.float64)


def _counts(regions: Region) -> Array:
    """How many pixels regions [..., n] have, [...]."""
    ones = np.bitwise_count(np.packbits(regions, axis=-1)).astype(np.float32)
    return (ones @ _ones(ones.shape[-1])).astype(np.float64)  # exact: there are no 2²⁴ pixels


@lru_cache(maxsize=64)
def _ones(count: int) -> NDArray[np.float32]:
    return np.ones(count, dtype=np.float32)


@lru_cache(maxsize=64)
def _inside(height: int, width: int, left: int = 0, right: int = 0) -> Region:
    """Whether pixels lie not in so many columns at the left and right, [h w]."""
    inside = np.zeros((max(height, 0), width), dtype=np.bool_)
    inside[:, left : width - right] = True
    return inside.ravel()


@lru_cache(maxsize=64)
def _weights(height: int, width: int, left: int = 0, right: int = 0) -> Floats:
    """1 for such pixels and 0 for the others, [h w]."""
    exact = np.float32 if 4 * UNITS * height * width < 2**24 else np.float64
    return _inside(height, width, left, right).astype(exact)


@lru_cache(maxsize=64)
def _places(height: int, width: int) -> Array:
    """Of each pixel 1, row, column, their squares, product, and if it is in no margin, [h w, 7]."""
    row, column = (place.ravel().astype(np.float64) for place in np.indices((height, width)))
    top, left = round(MARGIN * height), round(MARGIN * width)
    middle = (row >= top) & (row < height - top) & (column >= left) & (column < width - left)
    return np.stack([row**0, row, column, row**2, column**2, row * column, middle], axis=1)
