"""What every sampler refuses, in one place; each message says what to do."""

from __future__ import annotations

import math

from training.schedules import Schedule


def check_target(num_data: int, temperature: float) -> None:
    """Check N and T.

    Raises:
        ValueError: N is not positive, or T is negative or not finite.
    """
    if num_data <= 0:
        raise ValueError(f"num_data must be the number of examples in U, N > 0; got {num_data}")
    if not 0 <= temperature < math.inf:
        raise ValueError(
            f"temperature must be finite and not negative: 1 is Bayes, 0 is SGD; got {temperature}"
        )


def check_momentum(momentum: float) -> None:
    """Check the share c of the momentum that a step keeps.

    Raises:
        ValueError: c is outside [0, 1).
    """
    if not 0 <= momentum < 1:
        raise ValueError(
            f"momentum must be in [0, 1): the share that a step keeps, 0.9 for one; got {momentum}"
        )


def step_size_at(schedule: Schedule, step: int) -> float:
    """η of one step.

    Raises:
        ValueError: it is not positive, or not finite.
    """
    step_size = schedule(step)
    if not 0 < step_size < math.inf:
        raise ValueError(
            f"the schedule gives step size {step_size} at step {step}: "
            "it must be positive and finite at every step"
        )
    return step_size
