"""scikit-learn's built-in 8 x 8 digits: small, real, and there without a network."""

from __future__ import annotations

import importlib

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import DataError
from training.data.split import Split, stratified_split

TEST_SIZE = 500
"""Test images; the other 1,297 are for training."""

_SPLIT_SEED = 0
_LARGEST = 16.0


def read_digits(part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read one part of the digits that `sklearn.datasets.load_digits` carries.

    The values 0 to 16 become round(255 v / 16). The set has no official split: ours is stratified,
    random with a fixed seed, and so the same everywhere. Writers may occur in both parts.

    Args:
        part: "train" (1,297 images) or "test" (500).

    Returns:
        uint8 [n, 8, 8], and the digits, int64 [n].

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise DataError("the digits come with scikit-learn: install scikit-learn") from error
    bunch = datasets.load_digits()
    images = np.rint(np.asarray(bunch.images) * (255.0 / _LARGEST)).astype(np.uint8)
    labels = np.asarray(bunch.target, dtype=np.int64)
    split: Split = stratified_split(labels, {"test": TEST_SIZE}, seed=_SPLIT_SEED)
    return images[split[part]], labels[split[part]]
