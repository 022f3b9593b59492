"""Ambiguous images, made of familiar ones: two classes at once, and strokes like any other's.

A mean of two pictures is a double exposure, unless they nearly coincide: then it is one picture in
which the strokes they share are drawn full, and those that tell them apart are drawn faint. How
nearly two images a and b of grey values coincide, their overlap says,

    o(a, b) = 2 a·b / (‖a‖² + ‖b‖²) = 1 − ‖a − b‖² / (‖a‖² + ‖b‖²),

Dice's coefficient (1945) of grey pictures: 1 for equal ones, 0 where no stroke meets another.
Unlike the distance alone it does not favour thin strokes. No network has a part in the choice, so
that what one says of these images was not put into them. Dirty-MNIST has the same aim, and decodes
its images from a variational autoencoder (Mukhoti et al. 2023, arXiv 2102.11582).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.data import DataError, Dataset, from_arrays
from training.metrics import Labels

Images = NDArray[np.uint8]

IMAGES_A_PAIR = 10
BLOCK = 500


def ambiguous(dataset: Dataset) -> tuple[Dataset, Labels]:
    """The images between the nearest pairs of different classes, a pair for every ten images.

    Each image is paired with the one of another class that it overlaps most; the pairs are taken
    in falling order of overlap, none of whose images was taken before. Equal data give equal pairs
    on every machine: sums of products of whole numbers are exact in double precision.

    Args:
        dataset: familiar images, centred alike, light strokes on a dark ground.

    Returns:
        The images, labelled with one of their classes, and both classes of each, [n, 2].

    Raises:
        DataError: all images are of one class.
    """
    if len(np.unique(dataset.labels)) < 2:
        raise DataError(f"{dataset.name!r}: ambiguous images need images of two classes")
    partners, overlaps = _nearest_of_another_class(dataset.images, dataset.labels)
    free = np.ones(len(dataset), dtype=bool)
    pairs: list[tuple[int, int]] = []
    for first in np.argsort(-overlaps, kind="stable"):
        second = partners[first]
        if free[first] and free[second]:
            free[[first, second]] = False
            pairs.append((first, second))
    chosen = np.array(pairs[: max(1, len(dataset) // IMAGES_A_PAIR)])
    images = blend(*dataset.images[chosen.T])
    labels = dataset.labels[chosen]
    name = f"{dataset.name}, ambiguous"
    return from_arrays(images, labels[:, 0], dataset.classes, name=name), labels


def blend(first: Images, second: Images) -> Images:
    """Images [n, H, W, C] halfway between two, with edges as steep as in either.

    The mean m of the grey values, from 0 to 1, softens every edge that does not coincide to the
    pixel; m²(3 − 2m) makes it steeper again, and leaves black, white and the half-grey of a stroke
    that only one of the two has.
    """
    mean = (first.astype(np.float64) + second) / 2 / 255
    return np.rint(255 * mean**2 * (3 - 2 * mean)).astype(np.uint8)


def _nearest_of_another_class(images: Images, labels: Labels) -> tuple[Labels, NDArray[np.float64]]:
    """For each image [N, H, W, C], which one of another class overlaps it most, and how much."""
    pixels = images.reshape(len(images), -1).astype(np.float64)
    squares = np.maximum((pixels**2).sum(axis=1), 1.0)
    partners = np.empty(len(images), dtype=np.int64)
    overlaps = np.empty(len(images))
    for start in range(0, len(images), BLOCK):
        block = slice(start, start + BLOCK)
        overlap = 2 * (pixels[block] @ pixels.T) / (squares[block, None] + squares)
        overlap[labels[block, None] == labels] = -1.0
        partners[block] = overlap.argmax(axis=1)
        overlaps[block] = overlap.max(axis=1)
    return partners, overlaps
