"""Stochastic gradient Hamiltonian Monte Carlo (Chen, Fox & Guestrin, ICML 2014), Euler's steps.

Target: p_T(θ) ∝ exp(−U(θ)/T), as in `sgld`, with momenta p of unit mass. One step is

    p ← c p − h N ∇Ū_B(θ) + sqrt(2 (1 − c) T − 2 h B̂) ξ,    ξ ~ N(0, I)
    θ ← θ + h p,                                            h = sqrt(2 η / N).

c = 1 − ζ h is Euler's value of exp(−ζ h), ζ the friction; Chen's v, η and α are h p, h² and 1 − c.
B̂ = h N² V̂ / 2 takes out the heat of minibatch noise, V̂ the variance of ∇Ū_B of a minibatch, which
is `gradient_variance`. Without it (B̂ = 0) that noise adds η N V / (1 − c) to the temperature.

On a Gaussian mode of curvature λ of Ū the stationary variance is T / (N λ (1 − η λ / (1 + c))), by
the second-order recursion θ″ = (1 + c − 2ηλ) θ′ − c θ + noise; the step is stable for η λ < 1 + c.
At c = 0 it is SGLD with step size 2 η. `baoab` costs the same and has no such bias: prefer it.
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
class SGHMCState:
    """What the next step needs: weights and momenta [..., D], changed in place, and its index."""

    position: Tensor
    momentum: Tensor
    step: int


@dataclass(frozen=True)
class SGHMC:
    """A sampler of one target.

    Attributes:
        num_data: N, the number of examples in U.
        schedule: step size η_t.
        generator: source of ξ, and of the first momenta.
        momentum: c, the share of the momentum that a step keeps.
        temperature: T, in posterior units.
        gradient_variance: V̂, of each component of a minibatch's ∇Ū_B; one number, or [D].

    Raises:
        ValueError: V̂ is negative, or so large that no noise would be left to inject; and c, N, T
            or a step size that `training.samplers.limits` refuses.
    """

    num_data: int
    schedule: Schedule
    generator: torch.Generator
    momentum: float = 0.9
    temperature: float = 1.0
    gradient_variance: float | Tensor = 0.0

    def __post_init__(self) -> None:
        check_target(self.num_data, self.temperature)
        check_momentum(self.momentum)
        if not bool(torch.all(torch.as_tensor(self.gradient_variance) >= 0)):
            raise ValueError("gradient_variance must not be negative: 0 leaves the correction out")

    def init(self, position: Tensor, step: int = 0) -> SGHMCState:
        """Start at a copy of `position` [..., D] with momenta drawn from N(0, T)."""
        position = position.detach().clone()
        momentum = torch.empty_like(position).normal_(generator=self.generator)
        return SGHMCState(position, momentum.mul_(math.sqrt(self.temperature)), step)

    def step(self, state: SGHMCState, target: Target) -> tuple[SGHMCState, Info]:
        """Take one step."""
        step_size = step_size_at(self.schedule, state.step)
        position, momentum = state.position, state.momentum
        energy, force = target(position)
        info = Info(energy, position * force, step_size)
        momentum.mul_(self.momentum).add_(force, alpha=-math.sqrt(2 * step_size * self.num_data))
        injected = self._injected_variance(step_size).to(momentum)
        if injected.any():
            noise = torch.empty_like(momentum).normal_(generator=self.generator)
            momentum.addcmul_(noise, injected.sqrt_())
        position.add_(momentum, alpha=math.sqrt(2 * step_size / self.num_data))
        return SGHMCState(position, momentum, state.step + 1), info

    def _injected_variance(self, step_size: float) -> Tensor:
        """2 (1 − c) T − 2 h B̂, a scalar or [D]."""
        variance = torch.as_tensor(self.gradient_variance, dtype=torch.float64)
        heat = 2 * step_size * self.num_data * variance
        injected = 2 * (1 - self.momentum) * self.temperature - heat
        if bool((injected < 0).any()):
            raise ValueError(
                f"gradient_variance exceeds (1 − momentum) temperature / (step_size num_data) at "
                f"step size {step_size}: take a shorter step, less momentum or a larger batch"
            )
        return injected
