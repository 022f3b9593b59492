"""How good probabilities and scores are: numpy, each a few lines, checked against scikit-learn."""

from __future__ import annotations

import math
from itertools import combinations

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


def selective_risks(probabilities: Array, labels: Labels) -> Array:
    """Error among the i most confident of n images, i = 1 … n, ranked by max p; [n].

    Images of equal confidence come in random order: each risk is the mean over all orders.
    """
    wrong = probabilities.argmax(axis=1) != labels
    _, group, sizes = np.unique(-probabilities.max(axis=1), return_inverse=True, return_counts=True)
    ends, errors = sizes.cumsum(), np.bincount(group, weights=wrong).cumsum()
    ranks = np.arange(1, len(labels) + 1)
    risks: Array = np.interp(ranks, np.append(0, ends), np.append(0, errors)) / ranks
    return risks


def aurc(probabilities: Array, labels: Labels) -> float:
    """Area under the risk-coverage curve: the mean of `selective_risks` (Geifman et al. 2019)."""
    return float(selective_risks(probabilities, labels).mean())


def augrc(probabilities: Array, labels: Labels) -> float:
    """Area under the generalised risk-coverage curve (Traub et al. 2024, arXiv 2407.01032).

    With E_i errors among the i most confident of n images, the trapezoidal area under E_i / n over
    i / n from i = 0: the share of images that are wrong and accepted, mean over coverages from 0 to
    1, and so from 0 to 1/2. Images of equal confidence come in random order.
    """
    size = len(labels)
    errors = selective_risks(probabilities, labels) * np.arange(1, size + 1)
    return float((errors.sum() - errors[-1] / 2) / size**2)


def coverage_at_risk(probabilities: Array, labels: Labels, risk: float) -> float:
    """The largest i / n at which the error among the i most confident of n images is ≤ `risk`.

    The curve of `selective_risks` may rise above the risk and fall below it again: its last point
    at or below counts, and 0 if there is none (Geifman & El-Yaniv 2017, arXiv 1705.08500).
    """
    kept = np.flatnonzero(selective_risks(probabilities, labels) <= risk)
    return float((kept[-1] + 1) / len(labels)) if len(kept) else 0.0


def ensemble_curve(probabilities: Array, labels: Labels) -> Array:
    """NLL of ensembles of k = 1 … M of the given networks, mean over all subsets of k; [M].

    It never rises with k: −ln is convex. The cost is that of 2^M means.

    Args:
        probabilities: member probabilities [n, M, K].
        labels: [n].
    """
    chosen = np.maximum(probabilities[np.arange(len(labels)), :, labels], np.finfo(np.float64).tiny)
    networks = range(chosen.shape[1])
    return np.array(
        [
            np.mean(
                [
                    -np.log(chosen[:, subset].mean(axis=1)).mean()
                    for subset in combinations(networks, size)
                ]
            )
            for size in range(1, len(networks) + 1)
        ]
    )


def deep_ensemble_equivalent(nll: float, curve: Array) -> float:
    """Networks that a deep ensemble needs for this NLL (Ashukha et al. 2020, arXiv 2002.06470).

    The least real k of at least 1 at which the curve of `ensemble_curve`, linear between whole k,
    is as low as `nll`: 1 for whatever is no better than a single network, infinity beyond the
    curve's last point. The paper compares log-likelihoods after temperature scaling; here they are
    taken as they are, since nothing rescales the ensemble's answers.
    """
    reached = np.flatnonzero(curve <= nll)
    if len(reached) == 0:
        return math.inf
    size = int(reached[0])
    if size == 0:
        return 1.0
    return size + float((curve[size - 1] - nll) / (curve[size - 1] - curve[size]))


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
