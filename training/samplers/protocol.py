"""What every sampler is to its caller: `init`, `step`, and a state that holds what `step` needs.

A sampler is a frozen dataclass with the number of data N, the temperature T in posterior units
(1 is Bayes), its step size on the mean scale, and an explicit generator. Its target is a function
of the weights that returns Ū = U/N and ∇Ū, or unbiased minibatch estimates of both; the prior is
in it, exactly once. A state is a frozen dataclass of tensors and the step index, created anew by
`init`; `step` changes its tensors in place and returns what it saw apart, as `Info`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

Target = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Weights [..., D] to Ū [...] (nats an example) and ∇Ū [..., D]."""


class State(Protocol):
    """What the next step needs; the weights and the step index are common to all samplers."""

    @property
    def position(self) -> Tensor:
        """Weights [..., D], changed in place."""

    @property
    def step(self) -> int:
        """Index of the next step."""


@dataclass(frozen=True)
class Info:
    """What a step saw.

    Attributes:
        energy: Ū at the weights before the update, as the target gave it, [...].
        virial: θ ∘ ∇Ū at the weights before the update, [..., D]; N times its sum over D weights
            is, on average at stationarity, D times the temperature (of the target's positions).
        step_size: η of this step, on the mean scale.
        acceptance: probability of acceptance [...], of samplers with a Metropolis test.
    """

    energy: Tensor
    virial: Tensor
    step_size: float
    acceptance: Tensor | None = None


S = TypeVar("S", bound=State)


class Sampler(Protocol[S]):
    """One method, bound to N, T, a step size and a source of noise."""

    def init(self, position: Tensor, step: int = 0) -> S:
        """Start at a copy of `position` [..., D], with step index `step`."""

    def step(self, state: S, target: Target) -> tuple[S, Info]:
        """Take one step."""
