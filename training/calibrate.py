"""Calibration: detector scores of held-out images that training has not seen."""

from __future__ import annotations

from collections.abc import Mapping

from models.conformal import ConformalTest
from models.uncertainty import Array


def calibrate(scores: Mapping[str, Array]) -> dict[str, ConformalTest]:
    """A conformal test for every detector, from its scores [n] of held-out images.

    The images must be a random part of the training data: p-values are exact for images
    exchangeable with them, and for no others.
    """
    return {name: ConformalTest.fit(values) for name, values in scores.items()}


def stored(tests: Mapping[str, ConformalTest]) -> dict[str, Array]:
    """The scores, as `calibration.npz` has them."""
    return {name: test.scores for name, test in tests.items()}
