"""The exact stationary law of each sampler on a quadratic Ū, discretisation and all.

With H the Hessian of Ū, z the deviation of the sampler's state from its mean (weights, then
momenta if it has any) and w the error of ∇Ū_B, every step is z′ = F z + K w + noise of covariance
Q, so that

    S = F S Fᵀ + Q + K C(S) Kᵀ,

where C, the covariance of w, may itself be affine in the second moment of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Recursion:
    transition: Tensor
    kick: Tensor
    injected: Tensor

    def covariance(self, noise: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """S, of weights and momenta; `noise` is C as a function of the weights' covariance."""
        size, weights = self.kick.shape

        def following(state: Tensor) -> Tensor:
            moved = self.transition @ state @ self.transition.T + self.injected
            if noise is None:
                return moved
            return moved + self.kick @ noise(state[:weights, :weights]) @ self.kick.T

        basis = torch.eye(size**2, dtype=torch.float64)
        constant = following(torch.zeros(size, size, dtype=torch.float64)).flatten()
        columns = [following(unit.reshape(size, size)).flatten() - constant for unit in basis]
        return torch.linalg.solve(basis - torch.stack(columns, 1), constant).reshape(size, size)

    def relative_error(self, covariance: Tensor, every: int, count: int) -> tuple[Tensor, Tensor]:
        """Standard errors of one chain's mean and variance, in units of sd and variance.

        Both are averages over `count` states kept every `every` steps: the mean autocorrelation ρ
        gives the first, and twice that of ρ² (Isserlis) the second; [D] each.
        """
        weights = self.kick.shape[1]
        jump = torch.linalg.matrix_power(self.transition, every)
        lagged, rows = covariance, []
        for _ in range(count):
            rows.append(lagged.diagonal()[:weights])
            lagged = jump @ lagged
        rho = torch.stack(rows) / covariance.diagonal()[:weights]
        lags = (torch.arange(count)[:, None] - torch.arange(count)).abs()
        pairs = rho[lags]
        return pairs.mean((0, 1)).sqrt(), (2 * pairs.square().mean((0, 1))).sqrt()


def _noise(weights: float, momenta: float, size: int) -> Tensor:
    """Covariance of one ξ that enters weights and momenta with these factors."""
    factors = torch.tensor([weights, momenta], dtype=torch.float64)
    return torch.kron(torch.outer(factors, factors), torch.eye(size, dtype=torch.float64))


def sgld(hessian: Tensor, num_data: int, step_size: float, temperature: float = 1.0) -> Recursion:
    """θ′ = θ − η (H θ + w) + sqrt(2ηT/N) ξ."""
    identity = torch.eye(len(hessian), dtype=torch.float64)
    injected = 2 * step_size * temperature / num_data * identity
    return Recursion(identity - step_size * hessian, -step_size * identity, injected)


def sghmc(
    hessian: Tensor,
    num_data: int,
    step_size: float,
    momentum: float,
    temperature: float = 1.0,
) -> Recursion:
    """p′ = c p − hN (H θ + w) + sqrt(2(1−c)T) ξ, θ′ = θ + h p′."""
    size, identity = len(hessian), torch.eye(len(hessian), dtype=torch.float64)
    h = math.sqrt(2 * step_size / num_data)
    spread = math.sqrt(2 * (1 - momentum) * temperature)
    rows = (
        torch.cat([identity - h**2 * num_data * hessian, h * momentum * identity], 1),
        torch.cat([-h * num_data * hessian, momentum * identity], 1),
    )
    kick = torch.cat([-(h**2) * num_data * identity, -h * num_data * identity])
    return Recursion(torch.cat(rows), kick, _noise(h * spread, spread, size))


def baoab(
    hessian: Tensor,
    num_data: int,
    step_size: float,
    momentum: float,
    temperature: float = 1.0,
) -> Recursion:
    """p₁ = p − hN (H θ + w), p′ = c p₁ + sqrt((1−c²)T) ξ, θ′ = θ + h (p₁ + p′)/2."""
    size, identity = len(hessian), torch.eye(len(hessian), dtype=torch.float64)
    h = math.sqrt(2 * step_size / num_data)
    spread = math.sqrt((1 - momentum**2) * temperature)
    drift = h / 2 * (1 + momentum)
    rows = (
        torch.cat([identity - drift * h * num_data * hessian, drift * identity], 1),
        torch.cat([-momentum * h * num_data * hessian, momentum * identity], 1),
    )
    kick = torch.cat([-drift * h * num_data * identity, -momentum * h * num_data * identity])
    return Recursion(torch.cat(rows), kick, _noise(h / 2 * spread, spread, size))


def constant_sgd(hessian: Tensor, step_size: float, preconditioner: Tensor) -> Recursion:
    """θ′ = θ − η P (H θ + w)."""
    identity = torch.eye(len(hessian), dtype=torch.float64)
    kick = -step_size * preconditioner
    return Recursion(identity + kick @ hessian, kick, torch.zeros_like(identity))
