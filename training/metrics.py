"""How good probabilities and scores are: numpy, each a few lines, checked against scikit-learn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.uncertainty import Array

Labels = NDArray[np.int64]


def accuracy(probabilities: Array, labels: Labels) -> float:
    """Share of images [n] whose most probable class is the label."""
    return float((probabilities.argmax(axis=1) == labels).mean())


def negative_log_likelihood(probabilities: Array, labels: Labels) -> float:
    """Mean −ln p(label), nats an image."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean())


def brier(probabilities: Array, labels: Labels) -> float:
    """Mean squared distance to the one-hot label, summed over classes: 0 to 2 (Brier 1950)."""
    target = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - target) ** 2).sum(axis=1).mean())


def calibration_error(probabilities: Array, labels: Labels, bins: int = 15) -> float:
    """Expected calibration error over equal-width bins of max p (Guo et al. 2017)."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def auroc(familiar: Array, unfamiliar: Array) -> float:
    """P(score of an unfamiliar image > that of a familiar one), ties counted half."""
    ordered = np.sort(familiar)
    below = np.searchsorted(ordered, unfamiliar, side="left")
    not_above = np.searchsorted(ordered, unfamiliar, side="right")
    return float((below + not_above).mean() / (2 * len(familiar)))


def missed_at(familiar: Array, unfamiliar: Array, share: float) -> float:
    """Share of unfamiliar images accepted when `share` of the familiar ones is: FPR95 for .95.

    The threshold is the `share` quantile of the familiar scores; a score up to it is accepted.
    """
    threshold = np.quantile(familiar, share, method="inverted_cdf")
    return float((unfamiliar <= threshold).mean())
