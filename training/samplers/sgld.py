"""Stochastic gradient Langevin dynamics (Welling & Teh, ICML 2011).

Target: p_T(θ) ∝ exp(−U(θ)/T), with U = −Σᵢ log p(yᵢ|xᵢ,θ) − log p(θ) over N examples; T = 1 is
the Bayes posterior. With Ū = U/N and Ū_B its unbiased minibatch estimate, one step is

    θ ← θ − η ∇Ū_B(θ) + sqrt(2 η T / N) ξ,    ξ ~ N(0, I).

η is on the mean scale: the learning rate of SGD on the mean loss, and T = 0 is SGD. Welling & Teh's
step is ε = 2η/N. On a Gaussian mode of curvature λ of Ū the stationary variance is
T / (N λ (1 − η λ / 2)): a longer step is hotter. Minibatch noise of per-example gradient variance
c₁ adds η N c₁ / (2 B) to the temperature, to first order. The step is stable for η λ < 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from training.samplers.limits import check_target, step_size_at
from training.samplers.protocol import Info, Target
from training.schedules import Schedule


@dataclass(frozen=True)
class SGLDState:
    """What the next step needs: the weights [..., D], changed in place, and the step's index."""

    position: Tensor
    step: int


@dataclass(frozen=True)
class SGLD:
    """A sampler of one target.

    Attributes:
        num_data: N, the number of examples in U. Without it a temperature has no meaning.
        schedule: step size η_t.
        generator: source of ξ.
        temperature: T, in posterior units.

    Raises:
        ValueError: N, T or a step size that `training.samplers.limits` refuses.
    """

    num_data: int
    schedule: Schedule
    generator: torch.Generator
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_target(self.num_data, self.temperature)

    def init(self, position: Tensor, step: int = 0) -> SGLDState:
        """Start at a copy of `position` [..., D], with step index `step`."""
        return SGLDState(position.detach().clone(), step)

    def step(self, state: SGLDState, target: Target) -> tuple[SGLDState, Info]:
        """Take one step."""
        step_size = step_size_at(self.schedule, state.step)
        position = state.position
        energy, force = target(position)
        info = Info(energy, position * force, step_size)
        position.add_(force, alpha=-step_size)
        if self.temperature > 0:
            scale = math.sqrt(2 * step_size * self.temperature / self.num_data)
            noise = torch.empty_like(position).normal_(generator=self.generator)
            position.add_(noise, alpha=scale)
        return SGLDState(position, state.step + 1), info
