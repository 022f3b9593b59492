"""Prediction sets: the labels that an image may have, with a promised coverage.

A score S(x, y) says how badly label y fits image x. With the scores s_i = S(x_i, y_i) of n held-out
labelled images in ascending order, the set of a new image x is

    C(x) = {y : S(x, y) ≤ s_(k)},  k = ⌈(n + 1) · coverage⌉,

and every label if k > n. If (x, y) is exchangeable with the calibration images, P(y ∈ C(x)) ≥
coverage. Over draws of the calibration set the coverage is Beta(k, n + 1 − k) distributed, and
stochastically larger with tied scores (Vovk 2012, arXiv 1209.2673); a coverage of 1 −
`conditional_level(α, n, confidence)` therefore makes it ≥ 1 − α with that confidence. The promise
is an average over images, not for each class or image; nothing is promised about shifted images.

Scores, of mean probabilities p̄ [B, K]:

- `lac`: 1 − p̄_y. The smallest sets on average (Sadinle, Lei & Wasserman 2019, arXiv 1609.00451). A
  set may be empty: no label fits. That is evidence that the image is unlike every class.
- `aps`: the probability of the labels ranked before y (Romano, Sesia & Candès 2020, arXiv
  2006.02544). Sets grow with the image's ambiguity, and none is empty.
- `raps`: `aps` with a penalty on late ranks (Angelopoulos et al. 2021, arXiv 2009.14193).

The papers randomise the edge of `aps` and `raps` to meet the coverage exactly. Here nothing is
random, and the most likely label is in every set: the coverage is at least the accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.conformal import CalibrationError
from models.uncertainty import Array

Score = Callable[[Array], Array]
ScoreName = Literal["lac", "aps", "raps"]


def lac(probabilities: Array) -> Array:
    """S(x, y) = 1 − p̄_y, [B, K]."""
    return 1.0 - probabilities


def aps(probabilities: Array) -> Array:
    """S(x, y) = Σ p̄_j over the labels j ranked before y, [B, K]; ties go to the lower label."""
    return raps(probabilities, penalty=0.0, free=1)


def raps(probabilities: Array, penalty: float, free: int) -> Array:
    """S(x, y) = Σ p̄_j over the labels j ranked before y + λ · max(0, rank of y − k_reg), [B, K].

    Args:
        probabilities: p̄ [B, K].
        penalty: λ ≥ 0, what every rank after the free ones adds.
        free: k_reg ≥ 1, the number of ranks without a penalty. Choose both on other images than
            those that calibrate.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1)
    before = np.zeros_like(ranked)
    before[:, 1:] = np.cumsum(ranked[:, :-1], axis=1)
    late = np.maximum(np.arange(1, ranked.shape[1] + 1) - free, 0)
    scores = np.empty_like(ranked)
    np.put_along_axis(scores, order, before + penalty * late, axis=1)
    return scores


SCORES: Mapping[ScoreName, Score] = {
    "lac": lac,
    "aps": aps,
    "raps": partial(raps, penalty=0.01, free=5),
}
"""Scores by name; λ and k_reg of `raps` are those of its authors' example (arXiv 2107.07511)."""


@dataclass(frozen=True)
class PredictionSets:
    """A score with the threshold that gives its sets their coverage.

    Attributes:
        score: `lac`, `aps`, or `raps` with its penalty bound by `functools.partial`.
        coverage: the promised coverage.
        size: n, the number of calibration images.
        threshold: s_(k), the largest score within a set; infinite if n is too small, and then
            every set holds every label.
    """

    score: Score
    coverage: float
    size: int
    threshold: float

    @classmethod
    def fit(
        cls,
        probabilities: NDArray[np.floating],
        labels: NDArray[np.integer],
        coverage: float,
        score: Score,
    ) -> PredictionSets:
        """Find the threshold from mean probabilities [n, K] and true labels [n].

        Raises:
            CalibrationError: the shapes differ, a probability is not finite, or a label is not one
                of 0 … K − 1.
            ValueError: the coverage is not within (0, 1].
        """
        if not 0 < coverage <= 1:
            raise ValueError(f"coverage must be within (0, 1], got {coverage}")
        values, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
        if values.ndim != 2 or truth.shape != values.shape[:1]:
            raise CalibrationError(
                "calibration needs probabilities [n, K] and labels [n], "
                f"got shapes {values.shape} and {truth.shape}"
            )
        if not np.isfinite(values).all():
            raise CalibrationError("calibration probabilities must be finite")
        size, num_classes = values.shape
        if not ((truth >= 0) & (truth < num_classes)).all():
            raise CalibrationError(f"calibration labels must be 0 to {num_classes - 1}")
        ascending = np.sort(score(values)[np.arange(size), truth])
        # Rounded: (n + 1) · coverage is a whole number more often than its floating-point value.
        rank = math.ceil(round((size + 1) * coverage, 9))
        threshold = float(ascending[rank - 1]) if rank <= size else math.inf
        return cls(score, coverage, size, threshold)

    def sets(self, probabilities: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Whether each label is in the set of each image, [B, K], from mean probabilities [B, K].

        An image with a probability that is not finite gets every label.
        """
        values = np.asarray(probabilities, dtype=np.float64)
        unknown = ~np.isfinite(values).all(axis=1, keepdims=True)
        scores = self.score(np.where(unknown, 0.0, values))
        inside: NDArray[np.bool_] = unknown | (scores <= self.threshold)
        return inside
