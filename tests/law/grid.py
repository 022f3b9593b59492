"""The exact stationary law of SGLD in one dimension, discretisation and all, for any potential."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Function = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Law:
    """Probabilities of points that are equally far apart."""

    points: NDArray[np.float64]
    probabilities: NDArray[np.float64]

    def mean(self, function: Function) -> float:
        return float(function(self.points) @ self.probabilities)

    def deviation(self, function: Function) -> float:
        return math.sqrt(self.mean(lambda x: function(x) ** 2) - self.mean(function) ** 2)


def stationary(slope: Function, step: float, reach: float, count: int) -> Law:
    """Law of x′ = x − δ u′(x) + sqrt(2δ) ξ, with δ = `step`, on `count` cells of [−reach, reach].

    One step is a matrix of Gaussian densities; its fixed point is found by solving (I − K) p = 0
    with Σ p = 1. The sum over cells converges exponentially fast once they are narrower than the
    noise. Zero lies between two cells, where a slope may jump.
    """
    points = (np.arange(count) + 0.5) * (2 * reach / count) - reach
    means = points - step * slope(points)
    kernel = np.exp(-((points[:, None] - means) ** 2) / (4 * step))
    kernel /= kernel.sum(0)
    equations = np.eye(count) - kernel
    equations[-1] = 1.0
    return Law(points, np.linalg.solve(equations, np.eye(count)[-1]))
