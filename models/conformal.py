"""Conformal p-values: an out-of-distribution flag with a known false-alarm rate.

With n calibration scores s_1 … s_n of held-out in-distribution images and a new score s,

    p(s) = (1 + #{i : s_i ≥ s}) / (n + 1).

If the new image is exchangeable with the calibration images, P(p ≤ α) ≤ α for every α (Vovk et al.
2005; Bates et al. 2023, Annals of Statistics, arXiv 2104.08279). The rate is an average over draws
of the calibration set: given one set it is Beta distributed around α. `conditional_level` promises
α for the set at hand, `ClassConditionalTest` for each predicted class, and `benjamini_hochberg` for
what it flags in a batch. Nothing is promised about shifted images, or about how many unfamiliar
images are caught.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from models.uncertainty import Array


class CalibrationError(ValueError):
    """Calibration data from which no guarantee can be computed."""


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


@dataclass(frozen=True)
class ClassConditionalTest:
    """A conformal test for each predicted class c, calibrated on n_c images predicted as c.

    P(p ≤ α | predicted class c) ≤ α for every class with calibration images: a Mondrian conformal
    predictor whose categories are the predicted classes (Vovk et al. 2005), because the true
    class is not known when an image is judged. At level α a class can be flagged only if
    n_c ≥ 1/α − 1.
    """

    tests: Mapping[int, ConformalTest]

    @classmethod
    def fit(
        cls, scores: NDArray[np.floating], classes: NDArray[np.integer]
    ) -> ClassConditionalTest:
        """Split the calibration scores [n] by predicted class [n].

        Raises:
            CalibrationError: there are none, one is not finite, or scores and classes differ in
                number.
        """
        values, labels = np.asarray(scores), np.asarray(classes)
        if values.ndim != 1 or values.size == 0 or labels.shape != values.shape:
            raise CalibrationError(
                "calibration scores must be a vector with one class each, "
                f"got shapes {values.shape} and {labels.shape}"
            )
        return cls({int(c): ConformalTest.fit(values[labels == c]) for c in np.unique(labels)})

    def p_values(self, scores: NDArray[np.floating], classes: NDArray[np.integer]) -> Array:
        """p-values [B] of scores [B] among the calibration images of the same predicted class [B].

        An image of a class without calibration images gets 0: the formula gives 1/(0 + 1), which
        every gate would accept, but nothing is known of such images, so the gate must abstain.
        """
        values, labels = np.asarray(scores), np.asarray(classes)
        result = np.zeros(values.shape)
        for label in np.unique(labels):
            if (test := self.tests.get(int(label))) is not None:
                same = labels == label
                result[same] = test.p_values(values[same])
        return result


@lru_cache(maxsize=256)
def conditional_level(alpha: float, size: int, confidence: float) -> float:
    """Level at which one calibration set of n images keeps the promised false-alarm rate.

    Given the calibration set, the rule p ≤ k/(n + 1) has a true false-alarm rate that is
    Beta(k, n + 1 − k) distributed over draws of the set, and stochastically smaller with tied
    scores. The level is k/(n + 1) with the largest rank k for which

        P(Beta(k, n + 1 − k) ≤ α) = P(Binomial(n, α) ≥ k) ≥ confidence

    (Vovk 2012, arXiv 1209.2673; Bates et al. 2023, arXiv 2104.08279).

    Args:
        alpha: the promised false-alarm rate α.
        size: n, the number of calibration images.
        confidence: probability over draws of the calibration set with which the promise holds.

    Returns:
        The level; 0.0 if no rank has the confidence, as for n < ln(1 − confidence) / ln(1 − α).
        At level 0 no image is flagged: n is too small for this promise, and
        `models.calibration` refuses it.

    Raises:
        ValueError: α or the confidence is not within (0, 1), or n < 1.
    """
    if not (0 < alpha < 1 and 0 < confidence < 1 and size >= 1):
        raise ValueError(
            f"no level for alpha {alpha}, {size} calibration images and confidence {confidence}"
        )
    ranks = np.arange(1, size + 1)
    steps = np.log((size + 1 - ranks) / ranks) + np.log(alpha) - np.log1p(-alpha)
    log_binomial = size * np.log1p(-alpha) + np.concatenate(([0.0], np.cumsum(steps[:-1])))
    below = np.cumsum(np.exp(log_binomial))  # P(Binomial(n, α) < k) for the ranks k = 1 … n
    return int(np.searchsorted(below, 1 - confidence, side="right")) / (size + 1)


def benjamini_hochberg(p_values: Array, rate: float) -> float:
    """Level for a batch at which the share of false flags among the flags is at most `rate`.

    Of m p-values in ascending order, the level is the largest p_(i) ≤ rate · i / m, and the images
    with p ≤ level are flagged. The false-discovery rate E[false flags / max(flags, 1)] is at most
    `rate` times the share of familiar images: conformal p-values that share a calibration set are
    positively dependent (PRDS), for which the procedure is valid (Benjamini & Yekutieli 2001; Bates
    et al. 2023, arXiv 2104.08279). P-values within classes are PRDS too: given the classes, those
    of one class are, and classes are independent. The expectation runs over calibration sets and
    batches. With n calibration images no flag is raised unless some i ≥ m / (rate · (n + 1)) images
    stand out.

    An image that could not be judged (p-value 0 of a `ClassConditionalTest`, or not a number) is
    no evidence: it counts neither in m nor in i. It lies above no level, so the gate flags it too.

    Args:
        p_values: conformal p-values [m] of one batch.
        rate: the promised false-discovery rate.

    Returns:
        The level; 0.0 if nothing stands out.

    Raises:
        ValueError: the rate is not within (0, 1).
    """
    if not 0 < rate < 1:
        raise ValueError(f"the false-discovery rate must be within (0, 1), got {rate}")
    values = np.asarray(p_values, dtype=np.float64)
    ascending = np.sort(values[values > 0])
    passing = ascending * ascending.size <= rate * np.arange(1, ascending.size + 1)
    return float(ascending[passing].max(initial=0.0))
