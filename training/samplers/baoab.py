"""Underdamped Langevin dynamics by BAOAB splitting (Leimkuhler & Matthews, AMRX 2013).

Target: p_T(θ) ∝ exp(−U(θ)/T), as in `sgld`, with momenta p of unit mass. One step is

    p ← p − h N ∇Ū_B(θ)                                     B: two half kicks that meet
    θ ← θ + h p / 2                                         A
    p ← c p + sqrt((1 − c²) T) ξ,    ξ ~ N(0, I)            O
    θ ← θ + h p / 2                                         A,    h = sqrt(2 η / N)

c = exp(−ζ h) for a friction ζ. BAOAB ends a step and begins the next with half a kick by the same
gradient; taken together they are one kick, one gradient a step and none to store. The weights walk
the path of BAOAB, and the momenta are those before the kick.

On a Gaussian mode the variances of θ and of these p are exactly T / (N λ) and T, at any step that
is stable, η λ < 2. (With the kick in the middle, ABOBA, θ would be as good, but the gradient would
be taken where the variance is T / (N λ (1 − η λ / 2)): virial and energy would read too high.)
Minibatch noise of variance V of ∇Ū_B adds η N V (1 + c) / (2 (1 − c)) to the temperature, to first
order; at equal heat it moves as fast as SGLD. At c = 0 a step is one of SGLD with the same η, but
for noise that is averaged over two steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from training.samplers.limits import check_momentum, check_target, step_size_at
from training.samplers.protocol import Info, Target
from training.schedules import Schedule


@dataclass(frozen=True)
class BAOABState:
    """What the next step needs: weights and momenta [..., D], changed in place, and its index."""

    position: Tensor
    momentum: Tensor
    step: int


@dataclass(frozen=True)
class BAOAB:
    """A sampler of one target.

    Attributes:
        num_data: N, the number of examples in U.
        schedule: step size η_t.
        generator: source of ξ, and of the first momenta.
        momentum: c, the share of the momentum that a step keeps.
        temperature: T, in posterior units.

    Raises:
        ValueError: c, N, T or a step size that `training.samplers.limits` refuses.
    """

    num_data: int
    schedule: Schedule
    generator: torch.Generator
    momentum: float = 0.9
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_target(self.num_data, self.temperature)
        check_momentum(self.momentum)

    def init(self, position: Tensor, step: int = 0) -> BAOABState:
        """Start at a copy of `position` [..., D] with momenta drawn from N(0, T)."""
        position = position.detach().clone()
        momentum = torch.empty_like(position).normal_(generator=self.generator)
        return BAOABState(position, momentum.mul_(math.sqrt(self.temperature)), step)

    def step(self, state: BAOABState, target: Target) -> tuple[BAOABState, Info]:
        """Take one step."""
        step_size = step_size_at(self.schedule, state.step)
        drift = math.sqrt(2 * step_size / self.num_data) / 2
        position, momentum = state.position, state.momentum
        energy, force = target(position)
        info = Info(energy, position * force, step_size)
        momentum.add_(force, alpha=-2 * drift * self.num_data)
        position.add_(momentum, alpha=drift)
        momentum.mul_(self.momentum)
        if self.temperature > 0:
            noise = torch.empty_like(momentum).normal_(generator=self.generator)
            momentum.add_(noise, alpha=math.sqrt((1 - self.momentum**2) * self.temperature))
        position.add_(momentum, alpha=drift)
        return BAOABState(position, momentum, state.step + 1), info
