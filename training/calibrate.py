"""Calibration: detector scores of held-out images that training has not seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.conformal import ConformalTest
from models.detectors import scores
from models.uncertainty import Array, summarise


def calibrate(logits: NDArray[np.float32]) -> dict[str, ConformalTest]:
    """A conformal test for every detector, from member logits [n, M, K] of n held-out images.

    The images must be a random part of the training data: p-values are exact for images
    exchangeable with them, and for no others.
    """
    return {name: ConformalTest.fit(values) for name, values in scores(summarise(logits)).items()}


def stored(tests: dict[str, ConformalTest]) -> dict[str, Array]:
    """The arrays of `calibration.npz`."""
    return {name: test.scores for name, test in tests.items()}
