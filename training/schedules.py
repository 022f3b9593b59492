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


def cyclical(initial: float, cycle_steps: int) -> Schedule:
    """Cosines from `initial` almost to 0, again and again (Zhang et al., ICLR 2020).

    η_t = η_0 (1 + cos(π r)) / 2, with r = (t mod n) / n the share of its cycle of n steps that
    step t has behind it. Early in a cycle long steps look for another mode, without noise; late in
    it, in the stage that `sampling_stage` tells, shorter ones sample this mode.

    Raises:
        ValueError: a cycle has no steps.
    """
    _check_cycle(cycle_steps)
    return lambda step: initial * (1 + math.cos(math.pi * (step % cycle_steps) / cycle_steps)) / 2


def sampling_stage(cycle_steps: int, exploration: float) -> Callable[[int], bool]:
    """Whether step t of `cyclical` belongs to the sampling stage of its cycle.

    Before r = `exploration`, the share of a cycle that explores, take steps at T = 0, and keep no
    sample; from there on take them at the temperature of the posterior.

    Raises:
        ValueError: a cycle has no steps, or `exploration` is not in [0, 1).
    """
    _check_cycle(cycle_steps)
    if not 0 <= exploration < 1:
        raise ValueError(f"exploration must be in [0, 1), a share of the cycle; got {exploration}")
    return lambda step: step % cycle_steps >= exploration * cycle_steps


def _check_cycle(cycle_steps: int) -> None:
    if cycle_steps < 1:
        raise ValueError(f"cycle_steps must be at least 1, got {cycle_steps}")
