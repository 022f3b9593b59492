"""SGLD preconditioned by RMSprop (Li, Chen, Carlson & Carin, AAAI 2016), frozen after burn-in.

Target: p_T(θ) ∝ exp(−U(θ)/T), as in `sgld`. With v a running mean of squared minibatch gradients,

    G = 1 / (sqrt(v) + ε), divided by its mean over the D weights
    θ ← θ − η G ∘ ∇Ū_B(θ) + sqrt(2 η T / N) sqrt(G) ∘ ξ,    ξ ~ N(0, I)
    v ← α v + (1 − α) ∇Ū_B²    until step `freeze_at`, and never again

so that η keeps its meaning on average over weights. G comes from the gradients before this step:
given θ, it is independent of this step's minibatch.

While G follows θ, the law needs the drift (η T / N) ∂G/∂θ, which is left out here, and its
stationary law is wrong: too hot, by as much as G varies along the path. It is a burn-in. From
`freeze_at` on G is a constant, ∂G/∂θ = 0, and each weight is sampled by SGLD with step size η G:
on a Gaussian mode of curvature λ its variance is T / (N λ (1 − η G λ / 2)). Collect only then.
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
class PSGLDState:
    """What the next step needs.

    Attributes:
        position: weights [..., D], changed in place.
        mean_square: v, [..., D], changed in place before `freeze_at`.
        step: index of the next step.
    """

    position: Tensor
    mean_square: Tensor
    step: int


@dataclass(frozen=True)
class PSGLD:
    """A sampler of one target.

    Attributes:
        num_data: N, the number of examples in U.
        schedule: step size η_t.
        generator: source of ξ.
        freeze_at: index of the first step with a constant G; the law is exact from there on.
        temperature: T, in posterior units.
        decay: α, the share of v that a step keeps.
        floor: ε, in the units of ∇Ū; weights with smaller gradients take equally long steps.

    Raises:
        ValueError: a decay outside [0, 1), a floor that is not positive, a negative `freeze_at`;
            and N, T or a step size that `training.samplers.limits` refuses.
    """

    num_data: int
    schedule: Schedule
    generator: torch.Generator
    freeze_at: int
    temperature: float = 1.0
    decay: float = 0.99
    floor: float = 1e-5

    def __post_init__(self) -> None:
        check_target(self.num_data, self.temperature)
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), 0.99 for one; got {self.decay}")
        if not 0 < self.floor < math.inf:
            raise ValueError(f"floor must be positive and finite, 1e-5 for one; got {self.floor}")
        if self.freeze_at < 0:
            raise ValueError(
                f"freeze_at must be the index of a step, that of the first sample at the latest; "
                f"got {self.freeze_at}"
            )

    def init(self, position: Tensor, step: int = 0) -> PSGLDState:
        """Start at a copy of `position` [..., D], with step index `step`, v = 0 and so G = 1."""
        return PSGLDState(position.detach().clone(), torch.zeros_like(position), step)

    def preconditioner(self, mean_square: Tensor) -> Tensor:
        """G [..., D] of v [..., D]; its mean over the last axis is 1."""
        scale = mean_square.sqrt().add_(self.floor).reciprocal_()
        return scale.div_(scale.mean(dim=-1, keepdim=True))

    def step(self, state: PSGLDState, target: Target) -> tuple[PSGLDState, Info]:
        """Take one step."""
        step_size = step_size_at(self.schedule, state.step)
        position, mean_square = state.position, state.mean_square
        scale = self.preconditioner(mean_square)
        energy, force = target(position)
        info = Info(energy, position * force, step_size)
        position.addcmul_(scale, force, value=-step_size)
        if state.step < self.freeze_at:
            mean_square.mul_(self.decay).addcmul_(force, force, value=1 - self.decay)
        if self.temperature > 0:
            kick = math.sqrt(2 * step_size * self.temperature / self.num_data)
            noise = torch.empty_like(position).normal_(generator=self.generator)
            position.addcmul_(scale.sqrt_(), noise, value=kick)
        return PSGLDState(position, mean_square, state.step + 1), info
