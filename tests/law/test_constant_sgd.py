"""Constant-step SGD on a regression: its exact law, and when that is near the posterior."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.law import linear
from tests.law.regression import Batches, LinearRegression
from training.samplers.constant_sgd import (
    ConstantSGD,
    optimal_diagonal,
    optimal_matrix,
    optimal_step_size,
)
from training.schedules import constant

problem, BATCH = LinearRegression(2_000), 20
N, D = problem.size, 3
POSTERIOR = torch.linalg.inv(problem.precision)


def example_gradients() -> Tensor:
    """Gradient of each example's loss at the mode, [N, D]."""
    residual = problem.y - problem.x @ problem.mean
    return -problem.x * residual[:, None] / problem.noise


def exact(step_size: float, preconditioner: Tensor) -> Tensor:
    recursion = linear.constant_sgd(problem.hessian, step_size, preconditioner)
    return recursion.covariance(lambda sigma: problem.gradient_noise(sigma, BATCH, True))


def diffusion(step_size: float, preconditioner: Tensor) -> Tensor:
    """Σ of the Ornstein-Uhlenbeck process: Σ A P + P A Σ = (η/B) P V P."""
    drift = preconditioner @ problem.hessian
    noise = preconditioner @ example_gradients().T.cov(correction=0) @ preconditioner
    identity = torch.eye(D, dtype=torch.float64)
    system = torch.kron(drift, identity) + torch.kron(identity, drift)
    return torch.linalg.solve(system, (step_size / BATCH * noise).flatten()).reshape(D, D)


def divergence(covariance: Tensor) -> float:
    """KL of N(μ, Σ) from the posterior, in nats."""
    ratio = problem.precision @ covariance
    return (ratio.trace() - D - torch.logdet(ratio)).item() / 2


IDENTITY = torch.eye(D, dtype=torch.float64)


def test_the_diffusion_is_the_limit_of_short_steps() -> None:
    """The relative difference falls in proportion to the step."""
    errors = []
    for step_size in (4e-3, 4e-4):
        covariance = exact(step_size, IDENTITY)
        errors.append((covariance / diffusion(step_size, IDENTITY) - 1).abs().max().item())
    print(f"relative errors {errors}")
    assert errors[0] < 0.1
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)


def test_the_optimal_scalar_step_has_the_least_divergence() -> None:
    best = optimal_step_size(example_gradients(), N, BATCH)
    found = divergence(diffusion(best, IDENTITY))
    print(f"η* = {best:.4f}, KL {found:.4f}")
    for factor in (0.25, 0.9, 1.1, 4.0):
        assert divergence(diffusion(factor * best, IDENTITY)) > found


def test_better_preconditioners_come_nearer() -> None:
    gradients = example_gradients()
    scalar = divergence(diffusion(optimal_step_size(gradients, N, BATCH), IDENTITY))
    diagonal = optimal_diagonal(gradients, N, BATCH)
    matrix = optimal_matrix(gradients, N, BATCH)
    with_diagonal = divergence(diffusion(1.0, diagonal.diag()))
    with_matrix = divergence(diffusion(1.0, matrix))
    print(f"KL: scalar {scalar:.4f}, diagonal {with_diagonal:.4f}, full {with_matrix:.5f}")
    assert scalar > with_diagonal > with_matrix


def test_the_full_preconditioner_is_exact() -> None:
    """Σ = (N A)⁻¹ solves the equation for P = (2B/N) V⁻¹, whatever A and V are."""
    covariance = diffusion(1.0, optimal_matrix(example_gradients(), N, BATCH))
    torch.testing.assert_close(covariance, POSTERIOR, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "full"])
def test_simulation(kind: str, generator: torch.Generator) -> None:
    """Variances within 4 exact standard errors of the exact discretised law."""
    gradients = example_gradients()
    step_size, preconditioner = {
        "scalar": (optimal_step_size(gradients, N, BATCH), None),
        "diagonal": (1.0, optimal_diagonal(gradients, N, BATCH)),
        "full": (1.0, optimal_matrix(gradients, N, BATCH)),
    }[kind]
    matrix = IDENTITY if preconditioner is None else preconditioner
    matrix = matrix.diag() if matrix.ndim == 1 else matrix
    recursion = linear.constant_sgd(problem.hessian, step_size, matrix)
    covariance = exact(step_size, matrix)
    chains, every, count = 1_500, 30, 20
    batches = Batches(N, BATCH, chains, True, generator)
    sampler = ConstantSGD(constant(step_size), preconditioner)
    normal = torch.randn(chains, D, generator=generator, dtype=torch.float64)
    state = sampler.init(problem.mean + normal @ torch.linalg.cholesky(covariance).T)
    kept = []
    for index in range(1, every * count + 1):
        state, _ = sampler.step(state, problem.target(batches.draw()))
        if index % every == 0:
            kept.append(state.position - problem.mean)
    ratio = torch.stack(kept).square().mean((0, 1)) / covariance.diagonal()
    _, error = recursion.relative_error(covariance, every, count)
    error = error / math.sqrt(chains)
    print(f"{kind}: {ratio.tolist()} of the exact, ± {error.tolist()}")
    assert (error < 0.02).all()
    assert ((ratio - 1).abs() < 4 * error).all()


def test_refusals() -> None:
    alike = torch.ones(10, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="do not vary"):
        optimal_step_size(alike, N, BATCH)
    with pytest.raises(ValueError, match="do not vary"):
        optimal_diagonal(alike, N, BATCH)
    with pytest.raises(ValueError, match="singular"):
        optimal_matrix(alike, N, BATCH)
    for preconditioner in (torch.tensor(1.0), torch.tensor([math.nan, 1.0])):
        with pytest.raises(ValueError, match="preconditioner"):
            ConstantSGD(constant(0.1), preconditioner)
