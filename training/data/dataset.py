"""What a data set is once it is in memory: pixels, labels, class names and a digest of both."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


class DataError(Exception):
    """Data that cannot be used. The message is one line: what was wrong, and what to do."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, as read from disk: no scaling, no augmentation.

    Make one with `from_arrays`, `load` or `load_folder`, which check it and fill in the digest.
    Both arrays are read-only, so that the digest stays true; indexing with an array, or `.copy()`,
    gives a writable one.

    Attributes:
        name: what the set is called in reports and in a bundle's provenance.
        images: pixels, uint8 [N, H, W, C], 0 to 255; C is 1 for grey and 3 for RGB.
        labels: index into `classes`, int64 [N].
        classes: class names, K of them.
        sha256: hexadecimal sha256 of the bytes of `images` (row-major) followed by the bytes of
            `labels` (little-endian int64). The names are no part of it.
    """

    name: str
    images: NDArray[np.uint8] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    classes: tuple[str, ...]
    sha256: str

    def __len__(self) -> int:
        """Number of images, N."""
        return len(self.labels)

    def select(self, indices: NDArray[np.integer[Any]]) -> Dataset:
        """The images at these positions, in this order, as a data set with a digest of its own.

        Args:
            indices: positions in 0 to N - 1, integers [n], n at least 1.

        Raises:
            DataError: no positions, a position out of range, or not a list of integers.
        """
        positions = np.asarray(indices)
        if positions.ndim != 1 or not np.issubdtype(positions.dtype, np.integer):
            raise DataError(
                f"cannot pick from {self.name!r}: positions have shape {positions.shape} and "
                f"dtype {positions.dtype}, give a list of integers"
            )
        if positions.size == 0:
            raise DataError(f"cannot pick from {self.name!r}: give at least one position")
        if positions.min() < 0 or positions.max() >= len(self):
            raise DataError(
                f"cannot pick from {self.name!r}: positions reach from {positions.min()} to "
                f"{positions.max()}, keep them in 0 to {len(self) - 1}"
            )
        return from_arrays(
            self.images[positions], self.labels[positions], self.classes, name=self.name
        )


def from_arrays(
    images: NDArray[Any],
    labels: NDArray[Any],
    classes: Sequence[str],
    *,
    name: str = "arrays",
) -> Dataset:
    """Check any pair of arrays and make a data set of copies of them.

    Args:
        images: uint8 [N, H, W, C], or [N, H, W] for grey; N, H, W and C at least 1.
        labels: any integer dtype [N], each in 0 to K - 1. Not every class needs an image.
        classes: K distinct, non-empty names.
        name: what to call the set.

    Raises:
        DataError: a dtype, shape, label or class name that does not fit.
    """
    if isinstance(classes, str):
        raise DataError(f"{name!r}: classes is one string {classes!r}, give a list of names")
    pixels = np.asarray(images)
    targets = np.asarray(labels)
    _check_images(name, pixels)
    _check_classes(name, tuple(classes))
    _check_labels(name, targets, num_images=len(pixels), num_classes=len(classes))

    pixels = np.array(pixels.reshape(*pixels.shape[:3], -1), dtype=np.uint8, order="C")
    targets = np.array(targets, dtype=np.int64, order="C")
    pixels.setflags(write=False)
    targets.setflags(write=False)
    return Dataset(
        name=name,
        images=pixels,
        labels=targets,
        classes=tuple(classes),
        sha256=_content_digest(pixels, targets),
    )


def _check_images(name: str, images: NDArray[Any]) -> None:
    if images.dtype != np.uint8:
        raise DataError(
            f"{name!r}: images have dtype {images.dtype}, scale them to 0 to 255 and give uint8"
        )
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(
            f"{name!r}: images have shape {images.shape}, give [N, H, W, C] or [N, H, W] with no "
            "empty axis"
        )


def _check_classes(name: str, classes: tuple[str, ...]) -> None:
    if not classes:
        raise DataError(f"{name!r}: there are no classes, name at least one")
    for label in classes:
        if not isinstance(label, str) or not label:
            raise DataError(f"{name!r}: class name {label!r} is not a non-empty string, rename it")
    if len(set(classes)) != len(classes):
        twice = next(label for label in classes if classes.count(label) > 1)
        raise DataError(f"{name!r}: class name {twice!r} appears twice, make the names distinct")


def _check_labels(name: str, labels: NDArray[Any], *, num_images: int, num_classes: int) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{name!r}: labels have dtype {labels.dtype}, give integers")
    if labels.shape != (num_images,):
        raise DataError(
            f"{name!r}: labels have shape {labels.shape}, give one for each of the "
            f"{num_images} images"
        )
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise DataError(
            f"{name!r}: label {labels[first]} of image {first} is outside 0 to {num_classes - 1}, "
            "correct it or name more classes"
        )


def _content_digest(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    digest = hashlib.sha256(images.data)
    digest.update(labels.astype("<i8").data)
    return digest.hexdigest()
