"""Conformal p-values: an out-of-distribution flag with a known false-alarm rate.

With n calibration scores s_1 … s_n of held-out in-distribution images and a new score s,

    p(s) = (1 + #{i : s_i ≥ s}) / (n + 1).

If the new image is exchangeable with the calibration images, P(p ≤ α) ≤ α for every α (Vovk et al.
2005; Bates et al. 2023, Annals of Statistics, arXiv 2104.08279). The rate is an average over draws
of the calibration set: given one set it is Beta distributed around α. Nothing is promised about
shifted images, or about how many unfamiliar images are caught.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.uncertainty import Array


class CalibrationError(ValueError):
    """Calibration scores from which no p-value can be computed."""


@dataclass(frozen=True)
class ConformalTest:
    """Calibration scores [n] in ascending order."""

    scores: Array

    @classmethod
    def fit(cls, scores: NDArray[np.floating]) -> ConformalTest:
        """Sort the calibration scores [n].

        Raises:
            CalibrationError: there are none, or one is not finite.
        """
        values = np.asarray(scores, dtype=np.float64)
        if values.ndim != 1 or values.size == 0:
            raise CalibrationError(f"calibration scores must be a vector, got shape {values.shape}")
        if not np.isfinite(values).all():
            raise CalibrationError("calibration scores must be finite")
        return cls(np.sort(values))

    @property
    def size(self) -> int:
        """n, the number of calibration scores."""
        return self.scores.size

    def p_values(self, scores: NDArray[np.floating]) -> Array:
        """p-values [B] of scores [B]; a score that is not a number gets the least, 1/(n + 1)."""
        values = np.asarray(scores, dtype=np.float64)
        at_least = self.size - np.searchsorted(self.scores, values, side="left")
        return np.asarray((1 + at_least) / (self.size + 1), dtype=np.float64)
