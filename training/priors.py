"""Priors over weights: independent, zero mean, each with its own standard deviation σ_j.

    gaussian    −log p(θ) = Σ_j θ_j² / (2 σ_j²) + const
    student-t   −log p(θ) = Σ_j (ν+1)/2 · log(1 + θ_j² / ((ν−2) σ_j²)) + const,   ν > 2
    laplace     −log p(θ) = Σ_j sqrt(2) |θ_j| / σ_j + const

σ is the standard deviation in all three, so that families compare at equal scale. Heavy tails let a
few weights grow large at little cost: weights of trained convolutions and dense layers have them
(Fortuin et al. 2022, arXiv 2102.06571).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Family = Literal["gaussian", "student-t", "laplace"]

KINK = 1e-3  # of σ: a Langevin step cannot see the corner of |θ|, a leapfrog step must not


@dataclass(frozen=True)
class Prior:
    """One family with a standard deviation for every weight.

    Attributes:
        family: shape of the density.
        std: σ, [D].
        degrees_of_freedom: ν of Student's t.
    """

    family: Family
    std: Tensor
    degrees_of_freedom: float = 5.0

    def energy(self, position: Tensor) -> Tensor:
        """−log p(θ) up to a constant, [...], of weights [..., D], in nats."""
        scaled = position / self.std
        match self.family:
            case "gaussian":
                terms = scaled.square() / 2
            case "student-t":
                nu = self.degrees_of_freedom
                terms = (scaled.square() / (nu - 2)).log1p() * ((nu + 1) / 2)
            case "laplace":
                terms = math.sqrt(2) * (torch.hypot(scaled, scaled.new_tensor(KINK)) - KINK)
        return terms.sum(dim=-1)

    def add_gradient(self, gradient: Tensor, position: Tensor, num_data: int) -> Tensor:
        """Add −∇log p(θ) / N to a gradient [..., D] of the mean NLL, in place."""
        match self.family:
            case "gaussian":
                return gradient.addcdiv_(position, self.std.square(), value=1 / num_data)
            case "student-t":
                nu = self.degrees_of_freedom
                spread = position.square().add_(self.std.square(), alpha=nu - 2)
                return gradient.addcdiv_(position, spread, value=(nu + 1) / num_data)
            case "laplace":
                length = torch.hypot(position, KINK * self.std).mul_(self.std)
                return gradient.addcdiv_(position, length, value=math.sqrt(2) / num_data)

    def draw(self, generator: torch.Generator) -> Tensor:
        """One draw [D]."""
        normal = torch.randn(self.std.shape, generator=generator) * self.std
        match self.family:
            case "gaussian":
                return normal
            case "student-t":
                nu = self.degrees_of_freedom
                shape = torch.full_like(self.std, nu / 2)
                chi_square = 2 * torch._standard_gamma(shape, generator=generator)
                return normal * torch.sqrt((nu - 2) / chi_square)
            case "laplace":
                uniform = torch.rand(self.std.shape, generator=generator)
                return normal * torch.sqrt(-torch.log1p(-uniform))
