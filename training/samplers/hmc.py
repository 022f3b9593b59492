"""Hamiltonian Monte Carlo on all N examples (Duane et al. 1987; Neal 2011, arXiv 1206.1901).

Target: p_T(θ) ∝ exp(−U(θ)/T) with U = N Ū, without discretisation bias. Each step draws momenta
p ~ N(0, T I), takes L leapfrog steps of size h on H = U + |p|²/2,

    p ← p − (h/2) ∇U(θ),    θ ← θ + h p,    p ← p − (h/2) ∇U(θ),

and accepts their end with probability min(1, exp(−ΔH/T)). h = u sqrt(2 η / N), so that a single
leapfrog step (L = 1, u = 1) proposes exactly the step of SGLD with step size η. u ~ U(1 − j, 1 + j)
is drawn anew for each step, which keeps L h from being a period of some mode.

ΔH is O(h²) along a trajectory of fixed length; the map is reversible and preserves volume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from training.samplers.limits import step_size_at
from training.samplers.metropolis import MetropolisState, Point, check_exact, choose
from training.samplers.protocol import Info, Target
from training.schedules import Schedule


def leapfrog(
    start: Point, momentum: Tensor, target: Target, num_data: int, size: float, steps: int
) -> tuple[Point, Tensor]:
    """Position and momentum [..., D] after `steps` leapfrog steps of `size` h, at least one."""
    position, gradient = start.position.clone(), start.gradient
    energy = start.energy
    momentum = momentum.add(gradient, alpha=-num_data * size / 2)
    for index in range(steps):
        position.add_(momentum, alpha=size)
        energy, gradient = target(position)
        kick = size if index < steps - 1 else size / 2
        momentum.add_(gradient, alpha=-num_data * kick)
    return Point(position, energy, gradient), momentum


@dataclass(frozen=True)
class HMC:
    """A sampler of one target, exact at any step size; only its acceptance depends on it.

    Attributes:
        num_data: N, the number of examples in U.
        schedule: step size η_t; constant while samples are kept.
        generator: source of momenta, of u and of the test.
        leapfrog_steps: L.
        temperature: T > 0, in posterior units.
        jitter: j, at least 0 and below 1.

    Raises:
        ValueError: N, T, L or j is out of range, or a step size is not positive.
    """

    num_data: int
    schedule: Schedule
    generator: torch.Generator
    leapfrog_steps: int
    temperature: float = 1.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        check_exact(self.num_data, self.temperature)
        if not (self.leapfrog_steps >= 1 and 0 <= self.jitter < 1):
            raise ValueError(
                "leapfrog_steps must be at least 1, and jitter in [0, 1); got "
                f"{self.leapfrog_steps} and {self.jitter}"
            )

    def init(self, position: Tensor, step: int = 0) -> MetropolisState:
        """Start at a copy of `position` [..., D], with step index `step`."""
        return MetropolisState(position.detach().clone(), step)

    def step(self, state: MetropolisState, target: Target) -> tuple[MetropolisState, Info]:
        """Take one step, of L gradients; each chain is accepted or rejected on its own."""
        start = Point(state.position, *state.evaluate(target))
        momentum = torch.empty_like(state.position).normal_(generator=self.generator)
        momentum.mul_(math.sqrt(self.temperature))
        uniform = torch.rand((), generator=self.generator, device=self.generator.device).item()
        step_size = (
            step_size_at(self.schedule, state.step) * (1 + self.jitter * (2 * uniform - 1)) ** 2
        )
        size = math.sqrt(2 * step_size / self.num_data)
        end, final = leapfrog(start, momentum, target, self.num_data, size, self.leapfrog_steps)
        before = _hamiltonian(start.energy, momentum, self.num_data)
        after = _hamiltonian(end.energy, final, self.num_data)
        virial = start.position * start.gradient
        following, acceptance = choose(
            state, start, end, (before - after) / self.temperature, self.generator
        )
        return following, Info(start.energy, virial, step_size, acceptance)


def _hamiltonian(energy: Tensor, momentum: Tensor, num_data: int) -> Tensor:
    """H = N Ū + |p|²/2, [...], in double precision."""
    return num_data * energy.double() + momentum.double().square().sum(dim=-1) / 2
