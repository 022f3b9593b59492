"""The Metropolis-adjusted Langevin algorithm (Besag 1994; Roberts & Tweedie, Bernoulli 1996).

Target: p_T(θ) ∝ exp(−U(θ)/T) with U = N Ū over all N examples, without discretisation bias. The
proposal is one full-batch step of SGLD,

    θ′ = θ − η ∇Ū(θ) + sqrt(2 η T / N) ξ,    ξ ~ N(0, I),

accepted with probability min(1, e^r),

    r = −N (Ū′ − Ū)/T − N (|θ − θ′ + η ∇Ū′|² − |θ′ − θ + η ∇Ū|²) / (4 η T).

It is HMC with a single leapfrog step and no jitter.
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


@dataclass(frozen=True)
class MALA:
    """A sampler of one target, exact at any step size; only its acceptance depends on it.

    Attributes:
        num_data: N, the number of examples in U.
        schedule: step size η_t; constant while samples are kept.
        generator: source of ξ and of the test.
        temperature: T > 0, in posterior units.

    Raises:
        ValueError: N or T is not positive, or a step size is not.
    """

    num_data: int
    schedule: Schedule
    generator: torch.Generator
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_exact(self.num_data, self.temperature)

    def init(self, position: Tensor, step: int = 0) -> MetropolisState:
        """Start at a copy of `position` [..., D], with step index `step`."""
        return MetropolisState(position.detach().clone(), step)

    def step(self, state: MetropolisState, target: Target) -> tuple[MetropolisState, Info]:
        """Take one step, of one gradient; each chain is accepted or rejected on its own."""
        start = Point(state.position, *state.evaluate(target))
        step_size = step_size_at(self.schedule, state.step)
        spread = math.sqrt(2 * step_size * self.temperature / self.num_data)
        noise = torch.empty_like(state.position).normal_(generator=self.generator)
        position = start.position.add(start.gradient, alpha=-step_size).add_(noise, alpha=spread)
        end = Point(position, *target(position))
        back = (start.position - end.position).add_(end.gradient, alpha=step_size).div_(spread)
        uphill = self.num_data * (end.energy.double() - start.energy.double()) / self.temperature
        transition = (back.double().square().sum(-1) - noise.double().square().sum(-1)) / 2
        virial = start.position * start.gradient
        following, acceptance = choose(state, start, end, -uphill - transition, self.generator)
        return following, Info(start.energy, virial, step_size, acceptance)
