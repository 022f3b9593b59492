"""Oracle 7: Bayesian logistic regression with two weights, by quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.law import linear
from training.samplers import BAOAB, SGLD, Sampler
from training.schedules import constant

Array = NDArray[np.float64]


class LogisticRegression:
    """N = 500, w* = (−0.5, 1.2), prior N(0, 4): the data of the reference figures below."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.size, self.prior = 500, 4.0
        self.x = np.column_stack([np.ones(self.size), 1.5 * rng.normal(size=self.size)])
        odds = self.x @ np.array([-0.5, 1.2])
        self.y = (rng.random(self.size) < 1 / (1 + np.exp(-odds))).astype(float)
        self.inputs, self.targets = torch.from_numpy(self.x), torch.from_numpy(self.y)

    def derivatives(self, w: Array) -> tuple[Array, Array, Array]:
        """U [n], ∇U [n, 2] and ∇²U [n, 2, 2] at w [n, 2]."""
        logits = w @ self.x.T
        p = 1 / (1 + np.exp(-logits))
        energy = (np.logaddexp(0, logits) - self.y * logits).sum(1)
        gradient = (p - self.y) @ self.x + w / self.prior
        outer = self.x[:, :, None] * self.x[:, None, :]
        hessian = np.tensordot(p * (1 - p), outer, axes=1) + np.eye(2) / self.prior
        return energy + (w**2).sum(1) / (2 * self.prior), gradient, hessian

    def target(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        logits = theta @ self.inputs.T
        gradient = (logits.sigmoid() - self.targets) @ self.inputs + theta / self.prior
        return logits[..., 0], gradient / self.size


@dataclass(frozen=True)
class Moments:
    mean: Array
    covariance: Array


def quadrature(problem: LogisticRegression, step: float = 0.0) -> Moments:
    """Posterior moments on a grid of ±6 in Laplace's coordinates, 161 x 161.

    SGLD of sum-scale step ε samples, to first order in ε, exp(−U + ε |∇U|²/4 − ε ΔU/2): exact for
    a Gaussian at any step, and O(ε²) times the skewness for what is nearly one.
    """
    mode = np.zeros((1, 2))
    for _ in range(20):
        _, gradient, hessian = problem.derivatives(mode)
        mode = mode - np.linalg.solve(hessian[0], gradient[0])
    factor = np.linalg.cholesky(np.linalg.inv(hessian[0]))
    axis = np.linspace(-6, 6, 161)
    w = mode + np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2) @ factor.T
    energy, gradient, hessian = problem.derivatives(w)
    shadow = (gradient**2).sum(1) / 4 - np.trace(hessian, axis1=1, axis2=2) / 2
    potential = energy - step * shadow
    weights = np.exp(potential.min() - potential)
    weights /= weights.sum()
    mean = weights @ w
    return Moments(mean, (w - mean).T @ ((w - mean) * weights[:, None]))


def test_quadrature_gives_the_reference_figures() -> None:
    """Means and deviations that NUTS of blackjax 1.7.1 confirmed to ± 1 %."""
    moments = quadrature(LogisticRegression())
    assert moments.mean == pytest.approx([-0.60625, 1.45194], abs=1e-5)
    deviations = np.sqrt(moments.covariance.diagonal())
    assert deviations == pytest.approx([0.12467, 0.12867], abs=1e-5)


@pytest.mark.parametrize("method", ["sgld", "baoab"])
def test_against_quadrature(method: str, generator: torch.Generator) -> None:
    """Means and variances within 4 standard errors; autocorrelations as on the Gaussian mode."""
    problem = LogisticRegression()
    posterior = quadrature(problem)
    hessian = torch.linalg.inv(torch.from_numpy(posterior.covariance)) / problem.size
    stiffest = torch.linalg.eigvalsh(hessian).max().item()
    chains, every, count, momentum = 800, 10, 60, 0.5
    sampler: Sampler  # type: ignore[type-arg]
    if method == "sgld":
        step_size = 0.2 / stiffest
        recursion = linear.sgld(hessian, problem.size, step_size)
        sampler = SGLD(problem.size, constant(step_size), generator)
        exact = quadrature(problem, step_size / problem.size)
    else:
        step_size = 0.1 / stiffest
        recursion = linear.baoab(hessian, problem.size, step_size, momentum)
        sampler = BAOAB(problem.size, constant(step_size), generator, momentum)
        exact = posterior
    normal = torch.randn(chains, 2, generator=generator, dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.from_numpy(exact.covariance))
    state = sampler.init(torch.from_numpy(exact.mean) + normal @ factor.T)
    kept = []
    for index in range(-5 * every, every * count):
        state, _ = sampler.step(state, problem.target)
        if index >= 0 and index % every == 0:
            kept.append(state.position.clone())
    draws = torch.stack(kept) - torch.from_numpy(exact.mean)
    mean_error, variance_error = recursion.relative_error(recursion.covariance(), every, count)
    for axis in range(2):
        variance = exact.covariance[axis, axis]
        drift = draws[..., axis].mean().item() / math.sqrt(variance)
        ratio = draws[..., axis].square().mean().item() / variance
        errors = (mean_error[axis].item(), variance_error[axis].item())
        bounds = [4 * error / math.sqrt(chains) for error in errors]
        print(
            f"{axis}: variance {variance / posterior.covariance[axis, axis]:.3f} of the "
            f"posterior's; measured {ratio:.4f} of it ± {bounds[1] / 4:.4f}, mean off by "
            f"{drift:.4f} ± {bounds[0] / 4:.4f} deviations"
        )
        assert bounds[1] < 0.04
        assert abs(drift) < bounds[0]
        assert ratio == pytest.approx(1, abs=bounds[1])
