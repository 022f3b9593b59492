"""Selective classification with unfamiliar images in the stream (SCOD).

A stream has a share π of unfamiliar images. A wrong answer to a familiar image costs 1, any answer
to an unfamiliar one costs c. With a score s that accepts what is at most t,

    risk(t) = ((1 − π) P(wrong, s ≤ t | familiar) + π c P(s ≤ t | unfamiliar)) / coverage(t),
    coverage(t) = (1 − π) P(s ≤ t | familiar) + π P(s ≤ t | unfamiliar)

(Xia & Bouganis 2022, arXiv 2207.07506; Narasimhan et al. 2024, arXiv 2301.12386). Here π = 1/2 and
c = 1, whatever the sizes of the sets: an answer to an unfamiliar image is a failure like any other
(Jaeger et al. 2023, arXiv 2211.15259).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.uncertainty import Array

UNFAMILIAR = 0.5
COST = 1.0
RISK = 0.01


def scod(familiar: Array, wrong: NDArray[np.bool_], unfamiliar: Array) -> dict[str, float]:
    """How well a score keeps both failures apart from right answers.

    Args:
        familiar: scores of n familiar images; low means sure.
        wrong: whether their labels are wrong, [n].
        unfamiliar: scores of m unfamiliar images.

    Returns:
        `area`, the mean risk over coverages from 0 to 1, and `accepted`, the largest share of the
        familiar images that a threshold with risk ≤ 1 % accepts, 0 if there is none. In `area`
        images of equal score come in random order; a threshold takes all of them or none.
    """
    shares = ((1 - UNFAMILIAR) / len(familiar), UNFAMILIAR / len(unfamiliar))
    weights = np.repeat(shares, (len(familiar), len(unfamiliar)))
    costs = np.concatenate([wrong, np.full(len(unfamiliar), COST)])
    thresholds, group = np.unique(np.concatenate([familiar, unfamiliar]), return_inverse=True)
    coverage = np.bincount(group, weights).cumsum()
    cost = np.bincount(group, weights * costs).cumsum()
    kept = np.flatnonzero(cost <= RISK * coverage)
    accepted = np.mean(familiar <= thresholds[kept[-1]]) if len(kept) else 0.0
    return {"area": _area(coverage, cost), "accepted": float(accepted)}


def _area(coverage: Array, cost: Array) -> float:
    """The integral of cost / coverage over coverage, the cost linear between the points and from 0.

    Over a piece from (a, u) to (b, v) of slope k = (v − u) / (b − a) it is
    k (b − a) + (u − k a) ln(b / a); the first piece has no second term.
    """
    steps, slopes = np.diff(coverage), np.diff(cost) / np.diff(coverage)
    offsets = cost[:-1] - slopes * coverage[:-1]
    pieces = slopes * steps + offsets * np.log(coverage[1:] / coverage[:-1])
    return float(cost[0] + pieces.sum())
