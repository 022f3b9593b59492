"""One score from several: how rare is it among training images that a score is this high?

Every score s_d becomes a surprise, −ln of the share of training images with a score at least as
high, and F is the length of the vector of surprises:

    F(x) = sqrt(Σ_d (ln p_d(x))²).

The sum instead is Fisher's method (1932), which many small surprises sway, and the largest is
Tippett's (1931), which one alone does; the length lies between. The scores are not independent, so
F has no known law. It needs none: it is calibrated like any other score (`models.conformal`), on
images that had no part in the ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.uncertainty import Array

POINTS = 256


@dataclass(frozen=True)
class Surprise:
    """−ln p of a score, by linear interpolation between scores whose share p is known.

    Above the largest score of the training images it goes on in a straight line, with the mean
    slope over which p fell to its last tenth (an exponential tail): what lies further out is
    rarer. Above scores that are all equal the line is all but upright.

    Attributes:
        scores: in ascending order, [m].
        values: −ln p of each, [m].
    """

    scores: Array
    values: Array

    @classmethod
    def fit(cls, scores: NDArray[np.floating]) -> Self:
        """From finite scores [n] of training images."""
        ascending = np.sort(np.asarray(scores, dtype=np.float64))
        size = len(ascending)
        shares = np.geomspace(1, 1 / size, min(POINTS, size))
        wanted = np.rint(size - shares * size).astype(np.int64)
        _, first = np.unique(ascending, return_index=True)  # ties share the rank of their first
        below = first[np.searchsorted(first, wanted, side="right") - 1]
        above = first[np.minimum(np.searchsorted(first, wanted), len(first) - 1)]
        ranks = np.unique([below, above])
        return cls(ascending[ranks], -np.log((size - ranks) / size))

    def __call__(self, scores: NDArray[np.floating]) -> Array:
        """Surprises [B] of scores [B], nats; of a score that is not a number, infinite."""
        values = np.asarray(scores, dtype=np.float64)
        inside = np.interp(values, self.scores, self.values)
        surprise: Array = inside + np.maximum(values - self.scores[-1], 0) * self._slope
        surprise[np.isnan(values)] = np.inf
        return surprise

    @cached_property
    def _slope(self) -> float:
        """Of the line beyond the largest score."""
        tenth = np.searchsorted(self.values, self.values[-1] - np.log(10))
        start = min(tenth, len(self.scores) - 2)
        run = max(self.scores[-1] - self.scores[start], 1e-12)
        return float((self.values[-1] - self.values[start] or 1.0) / run)


def fuse(surprises: Mapping[str, Surprise], scores: Mapping[str, Array]) -> Array:
    """F [B], from the scores [B] of at least the detectors that have a surprise."""
    squares = [surprise(scores[name]) ** 2 for name, surprise in surprises.items()]
    length: Array = np.sqrt(reduce(np.add, squares))
    return length
