"""The Metropolis test, chain by chain: what makes a proposal exact.

A proposal θ′ is accepted with probability min(1, e^r). With r = log of p(θ′) q(θ|θ′) over
p(θ) q(θ′|θ), the law p is stationary whatever the step size (Metropolis et al. 1953; Hastings
1970). Energies must be those of all N examples: a minibatch estimate gives another law.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.samplers.limits import check_target
from training.samplers.protocol import Target


def check_exact(num_data: int, temperature: float) -> None:
    """Check N and T of a sampler with a Metropolis test.

    Raises:
        ValueError: N or T is not positive, or T is not finite.
    """
    check_target(num_data, temperature)
    if temperature == 0:
        raise ValueError("a Metropolis test needs temperature > 0: at 0 there is no law to keep")


@dataclass(frozen=True)
class MetropolisState:
    """Weights with what the last step measured there, so that no gradient is computed twice.

    Attributes:
        position: weights [..., D], changed in place.
        step: index of the next step.
        energy: Ū there, [...]; none before the first step.
        gradient: ∇Ū there, [..., D]; none before the first step.
    """

    position: Tensor
    step: int
    energy: Tensor | None = None
    gradient: Tensor | None = None

    def evaluate(self, target: Target) -> tuple[Tensor, Tensor]:
        """Ū and ∇Ū at the position, of the same target at every step."""
        if self.energy is None or self.gradient is None:
            return target(self.position)
        return self.energy, self.gradient


@dataclass(frozen=True)
class Point:
    """Weights [..., D] with Ū [...] and ∇Ū [..., D]."""

    position: Tensor
    energy: Tensor
    gradient: Tensor


def choose(
    state: MetropolisState,
    current: Point,
    proposal: Point,
    log_ratio: Tensor,
    generator: torch.Generator,
) -> tuple[MetropolisState, Tensor]:
    """The state after the test, and each chain's probability of acceptance [...].

    A log ratio [...] that is not a number, as after an overflow, is a rejection.
    """
    acceptance = log_ratio.exp().clamp(max=1).nan_to_num(nan=0.0)
    accepted = torch.empty_like(acceptance).uniform_(generator=generator) < acceptance
    wide = accepted.unsqueeze(-1)
    state.position.copy_(torch.where(wide, proposal.position, current.position))
    following = MetropolisState(
        position=state.position,
        step=state.step + 1,
        energy=torch.where(accepted, proposal.energy, current.energy),
        gradient=torch.where(wide, proposal.gradient, current.gradient),
    )
    return following, acceptance
