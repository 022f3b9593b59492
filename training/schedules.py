"""Step sizes η_t on the mean scale, as functions of the step t = 0, 1, 2 and so on."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def constant(step_size: float) -> Schedule:
    """η_t = η."""
    return lambda step: step_size


def polynomial(a: float, b: float, gamma: float) -> Schedule:
    """η_t = a (b + t)^−γ, with Σ η_t = ∞ and Σ η_t² < ∞ for ½ < γ ≤ 1 (Welling & Teh 2011)."""
    return lambda step: a * (b + step) ** -gamma


def cooling(initial: float, final: float, steps: int) -> Schedule:
    """Half a cosine from `initial` down to `final` over `steps` steps, then constant.

    η_t = η_f + (η_0 − η_f) (1 + cos(π t / steps)) / 2 for t < steps: long steps cross the weight
    space during burn-in, and the constant step that follows has one stationary law.
    """

    def step_size(step: int) -> float:
        if step >= steps:
            return final
        return final + (initial - final) * (1 + math.cos(math.pi * step / steps)) / 2

    return step_size
