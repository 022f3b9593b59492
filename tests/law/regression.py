"""Conjugate Bayesian regression: a Gaussian posterior, and minibatch noise in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.samplers import Target


class LinearRegression:
    """y = X θ* + noise with a Gaussian prior: a posterior N(μ, Λ⁻¹)."""

    def __init__(self, size: int = 200) -> None:
        randomness = torch.Generator().manual_seed(0)
        mixing = torch.tensor([[1, 0.4, 0], [0, 1, 0.3], [0, 0, 0.5]], dtype=torch.float64)
        self.size, self.noise, self.prior = size, 0.5, 4.0
        normal = torch.randn(self.size, 3, generator=randomness, dtype=torch.float64)
        self.x = normal @ mixing
        errors = torch.randn(self.size, generator=randomness, dtype=torch.float64)
        truth = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        self.y = self.x @ truth + math.sqrt(self.noise) * errors
        identity = torch.eye(3, dtype=torch.float64)
        self.precision = self.x.T @ self.x / self.noise + identity / self.prior
        self.mean = torch.linalg.solve(self.precision, self.x.T @ self.y / self.noise)
        self.hessian = self.precision / self.size
        self.stiffest = torch.linalg.eigvalsh(self.hessian).max().item()

    def target(self, indices: Tensor) -> Target:
        """Ū_B and ∇Ū_B of θ [chains, 3], each chain on its own examples, indices [B, chains]."""
        x, y = self.x[indices], self.y[indices]

        def evaluate(theta: Tensor) -> tuple[Tensor, Tensor]:
            residual = y - (x * theta).sum(-1)
            likelihood = -(x * residual.unsqueeze(-1)).mean(0) / self.noise
            energy = residual.square().mean(0) / (2 * self.noise)
            prior = theta.square().sum(-1) / (2 * self.prior * self.size)
            return energy + prior, likelihood + theta / (self.prior * self.size)

        return evaluate

    def full_target(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Ū and ∇Ū over all examples."""
        residual = self.y - theta @ self.x.T
        likelihood = -residual @ self.x / (self.noise * self.size)
        energy = residual.square().mean(-1) / (2 * self.noise)
        prior = theta.square().sum(-1) / (2 * self.prior * self.size)
        return energy + prior, likelihood + theta / (self.prior * self.size)

    def gradient_noise(
        self, covariance: Tensor, batch: int, replace: bool, anchor: Tensor | None = None
    ) -> Tensor:
        """E[Cov(∇Ū_B | θ)] over θ ~ N(μ, covariance), [3, 3]; with an anchor, of `anchored`.

        Residuals are linear in θ, so that second moments are enough; the control variate's
        gradient is xᵢ xᵢᵀ (θ − a)/s², without the residuals at a.
        """
        x, curvature = self.x, self.x.T @ self.x / self.noise / self.size
        correction = 1.0 if replace else (self.size - batch) / (self.size - 1)
        offset = (self.y if anchor is None else x @ anchor) - x @ self.mean
        squared = offset**2 + ((x @ covariance) * x).sum(1)
        second = (x * (squared / self.noise**2)[:, None]).T @ x / self.size
        mean = -(x.T @ offset) / self.noise / self.size
        first = curvature @ covariance @ curvature + torch.outer(mean, mean)
        return (second - first) * correction / batch


class Batches:
    """Independent index batches [B, chains] for every step, with or without replacement."""

    def __init__(
        self, size: int, batch: int, chains: int, replace: bool, generator: torch.Generator
    ) -> None:
        self.size, self.batch, self.chains, self.replace = size, batch, chains, replace
        self.generator = generator
        self.order = torch.arange(size)[:, None].repeat(1, chains)

    def draw(self) -> Tensor:
        if self.replace:
            shape = (self.batch, self.chains)
            return torch.randint(self.size, shape, generator=self.generator)
        for row in range(self.batch):  # Fisher and Yates's shuffle, as far as the batch goes
            other = torch.randint(row, self.size, (1, self.chains), generator=self.generator)
            drawn = self.order.gather(0, other)
            self.order.scatter_(0, other, self.order[row : row + 1].clone())
            self.order[row] = drawn[0]
        return self.order[: self.batch]
