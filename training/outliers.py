"""Unfamiliar images made of familiar ones: what a detector can be chosen by without foreign data.

Every family spoils training images in one way and leaves all else as it was: how things are put
together, with which pen, how sharply, where, or how bright. None was made after a set that the
project reports on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from models.preprocessing import background
from training.views import redraw

Images = NDArray[np.uint8]

TILES = 4
WAVES = 2
AMPLITUDE = 0.12


def spoilt(images: Images, labels: NDArray[np.int64], seed: int) -> dict[str, Images]:
    """Each family of outliers [n, H, W, C], made of images [n, H, W, C] of classes [n].

    halves      upper half of one image over the lower half of one of another class
    sides       the same, side by side
    union       the brighter pixel of two images of different classes
    tiles       a grid of 4 × 4 tiles in random order
    erased      a random half is background
    warped      bent by random waves of 12 % of the size
    bold, thin  the brightest, darkest of 3 × 3 pixels
    blurred     by a Gaussian of 6 % of the size
    binary      black and white
    shrunk      to two thirds, in the middle
    """
    randomness = np.random.default_rng(seed)
    others = images[_strangers(labels, randomness)]
    ground = background(images).astype(np.uint8)
    height, width = images.shape[1:3]
    top, left = np.arange(height) < height // 2, np.arange(width) < width // 2
    half = _halves(len(images), top, left, randomness)
    return {
        "halves": np.where(top[None, :, None, None], images, others),
        "sides": np.where(left[None, None, :, None], images, others),
        "union": np.maximum(images, others),
        "tiles": _tiles(images, randomness),
        "erased": np.where(half, ground, images),
        "warped": _warped(images, randomness),
        "bold": redraw(images, lambda picture: picture.filter(ImageFilter.MaxFilter(3))),
        "thin": redraw(images, lambda picture: picture.filter(ImageFilter.MinFilter(3))),
        "blurred": redraw(
            images, lambda picture: picture.filter(ImageFilter.GaussianBlur(0.06 * height))
        ),
        "binary": np.where(images > 127, np.uint8(255), np.uint8(0)),
        "shrunk": _shrunk(images, ground),
    }


def _strangers(labels: NDArray[np.int64], randomness: np.random.Generator) -> NDArray[np.int64]:
    """For each image the index of a random one of another class."""
    partners = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        same = labels == label
        partners[same] = randomness.choice(np.flatnonzero(~same), same.sum())
    return partners


def _halves(
    count: int,
    top: NDArray[np.bool_],
    left: NDArray[np.bool_],
    randomness: np.random.Generator,
) -> NDArray[np.bool_]:
    """One of the four halves of each image, [n, H, W, 1]."""
    upper = np.broadcast_to(top[:, None], (len(top), len(left)))
    leftmost = np.broadcast_to(left, (len(top), len(left)))
    choices = np.stack([upper, ~upper, leftmost, ~leftmost])
    return choices[randomness.integers(4, size=count)][..., None]


def _tiles(images: Images, randomness: np.random.Generator) -> Images:
    """Tiles in a random order; rows and columns that do not fill a tile stay."""
    count, height, width, channels = images.shape
    h, w = height // TILES, width // TILES
    result = images.copy()
    grid = images[:, : TILES * h, : TILES * w].reshape(count, TILES, h, TILES, w, channels)
    tiles = grid.transpose(0, 1, 3, 2, 4, 5).reshape(count, TILES**2, h, w, channels)
    order = randomness.permuted(np.tile(np.arange(TILES**2), (count, 1)), axis=1)
    mixed = np.take_along_axis(tiles, order[:, :, None, None, None], axis=1)
    mixed = mixed.reshape(count, TILES, TILES, h, w, channels).transpose(0, 1, 3, 2, 4, 5)
    result[:, : TILES * h, : TILES * w] = mixed.reshape(count, TILES * h, TILES * w, channels)
    return result


def _warped(images: Images, randomness: np.random.Generator) -> Images:
    """Rows shifted by a sine of the column and columns by one of the row, nearest pixel."""
    count, height, width, _ = images.shape
    phases = randomness.uniform(0, 2 * np.pi, (2, count, 1))
    rows, columns = np.arange(height), np.arange(width)
    down = AMPLITUDE * height * np.sin(2 * np.pi * WAVES * columns / width + phases[0])
    across = AMPLITUDE * width * np.sin(2 * np.pi * WAVES * rows / height + phases[1])
    row = np.clip(np.rint(rows[None, :, None] + down[:, None, :]), 0, height - 1).astype(np.int64)
    column = np.clip(np.rint(columns + across[:, :, None]), 0, width - 1).astype(np.int64)
    bent: Images = images[np.arange(count)[:, None, None], row, column]
    return bent


def _shrunk(images: Images, ground: Images) -> Images:
    height, width = images.shape[1:3]
    h, w = round(2 * height / 3), round(2 * width / 3)
    small = redraw(images, lambda picture: picture.resize((w, h), Image.Resampling.BOX))
    result = np.broadcast_to(ground, images.shape).copy()
    top, left = (height - h) // 2, (width - w) // 2
    result[:, top : top + h, left : left + w] = small
    return result
