"""The USPS test set from LIBSVM's text, framed as MNIST frames its digits."""

from __future__ import annotations

import bz2
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.dataset import DataError
from training.data.idx import content_sha256

_EDGE = 16
_MAX_TEXT = 32 << 20

# A value can lie exactly between two grey levels, where the order of the arithmetic decides.
_ROUNDINGS: tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], ...] = (
    lambda value: np.rint((value + 1.0) / 2.0 * 255.0),
    lambda value: np.rint((value + 1.0) * 127.5),
    lambda value: np.floor((value + 1.0) * 127.5 + 0.5),
)


def read_values(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Read `usps.t.bz2`: on each line a label 1 to 10, then `index:value` for 256 pixels.

    Args:
        path: the file.

    Returns:
        The pixels as they stand, -1 to 1, float64 [N, 16, 16], and the digits (label 1 is 0),
        int64 [N].

    Raises:
        DataError: damaged, or not text of this form. Names the file and the line.
    """
    try:
        with bz2.open(path) as stream:
            text = stream.read(_MAX_TEXT + 1)
    except (OSError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}): replace it") from error
    if len(text) > _MAX_TEXT:
        raise DataError(f"{path} expands to more than {_MAX_TEXT} bytes: replace it")
    values: list[list[float]] = []
    labels: list[int] = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            label, pixels = _parse(line)
        except ValueError as error:
            raise DataError(
                f"{path} line {number} is not a label and {_EDGE * _EDGE} pixels: replace it"
            ) from error
        labels.append(label)
        values.append(pixels)
    if not labels:
        raise DataError(f"{path} is empty: replace it")
    return np.array(values).reshape(-1, _EDGE, _EDGE), np.array(labels, dtype=np.int64)


def frame(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put 16 x 16 digits into MNIST's frame: 20 x 20 by bilinear interpolation, 4 pixels around.

    Args:
        images: uint8 [N, 16, 16].

    Returns:
        uint8 [N, 28, 28].
    """
    framed = np.zeros((len(images), 28, 28), dtype=np.uint8)
    for target, image in zip(framed, images, strict=True):
        enlarged = Image.fromarray(image).resize((20, 20), Image.Resampling.BILINEAR)
        target[4:24, 4:24] = np.asarray(enlarged)
    return framed


def read_framed(path: Path, sha256: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read `usps.t.bz2` as 28 x 28 images, and insist on the pixels that are pinned for it.

    Values from -1 to 1 become 0 to 255, rounded to the nearest; then `frame`.

    Args:
        path: the file.
        sha256: of the images as an uncompressed IDX file.

    Returns:
        uint8 [N, 28, 28], and the digits, int64 [N].

    Raises:
        DataError: as `read_values`, or the pixels came out otherwise.
    """
    values, labels = read_values(path)
    for rounding in _ROUNDINGS:
        framed = frame(rounding(values).astype(np.uint8))
        if content_sha256(framed) == sha256:
            return framed, labels
    raise DataError(
        f"{path} was processed to other pixels than those known for it: place "
        "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz beside it"
    )


def _parse(line: bytes) -> tuple[int, list[float]]:
    label, *pairs = line.split()
    pixels: list[float] = []
    for position, pair in enumerate(pairs, start=1):
        index, _, value = pair.partition(b":")
        pixel = float(value)
        if int(index) != position or not -1.0 <= pixel <= 1.0:
            raise ValueError
        pixels.append(pixel)
    if len(pixels) != _EDGE * _EDGE or not 1 <= int(label) <= 10:
        raise ValueError
    return int(label) - 1, pixels
