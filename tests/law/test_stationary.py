"""Oracles 4 to 6: Gaussian targets with exact discretised laws, and the prior of a real network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.networks import build
from training.posterior import Posterior
from training.samplers.sgld import SGLD
from training.schedules import constant

N = 60_000


@pytest.mark.parametrize(
    ("step_size", "curvature", "temperature"),
    [(0.2, 1.0, 1.0), (0.2, 4.0, 1.0), (0.05, 10.0, 0.25), (0.6, 1.0, 3.0)],
)
def test_gaussian_target_has_the_exact_discretised_variance(
    step_size: float, curvature: float, temperature: float, generator: torch.Generator
) -> None:
    """Var = T/(N λ (1 − ηλ/2)); over n independent coordinates its relative s.e. is sqrt(2/n)."""
    size = 200_000
    sampler = SGLD(N, constant(step_size), generator, temperature)
    posterior_variance = temperature / (N * curvature)
    start = torch.randn(size, generator=generator, dtype=torch.float64)
    state = sampler.init(start * math.sqrt(posterior_variance))
    virial = 0.0
    for _ in range(80):
        state, info = sampler.step(state, lambda theta: (theta, curvature * theta))
        virial = N * info.virial.mean().item()
    exact = posterior_variance / (1 - step_size * curvature / 2)
    assert state.position.var().item() / exact == pytest.approx(1, abs=4 * math.sqrt(2 / size))
    temperature_exact = temperature / (1 - step_size * curvature / 2)
    assert virial / temperature_exact == pytest.approx(1, abs=4 * math.sqrt(2 / size))


def test_without_data_a_real_network_samples_its_prior(generator: torch.Generator) -> None:
    """Oracle 5: weights, biases and every layer at their own prior variance, through real code."""
    network = build("lenet", (1, 28, 28), 10, channels=(8, 16), kernel=5, hidden=(64,))
    stds = dict(zip(network.shapes, (0.2, 0.3, 0.07, 0.3, 0.06, 0.3, 0.12, 0.3), strict=True))
    posterior = Posterior.build(network, 100, stds)
    chains, step_size = 8, 0.05

    def target(position: Tensor) -> tuple[Tensor, Tensor]:
        force = torch.zeros_like(position)
        posterior.prior.add_gradient(force, position, posterior.num_data)
        return posterior.prior.energy(position) / posterior.num_data, force

    start = torch.stack([posterior.prior.draw(generator) for _ in range(chains)])
    sampler = SGLD(posterior.num_data, constant(step_size), generator)
    state = sampler.init(start)
    for _ in range(300):
        state, _ = sampler.step(state, target)
    parts = network.unflatten(state.position)
    for name, part in parts.items():
        curvature = 1 / (posterior.num_data * stds[name] ** 2)
        exact = stds[name] ** 2 / (1 - step_size * curvature / 2)
        ratio = part.double().square().mean().item() / exact
        bound = 4 * math.sqrt(2 / part.numel())
        print(f"{name}: {ratio:.4f} ± {bound / 4:.4f}")
        assert ratio == pytest.approx(1, abs=bound)


class LinearRegression:
    """y = X θ* + noise with a Gaussian prior: a conjugate posterior N(μ, Λ⁻¹)."""

    def __init__(self) -> None:
        randomness = torch.Generator().manual_seed(0)
        mixing = torch.tensor([[1, 0.4, 0], [0, 1, 0.3], [0, 0, 0.5]], dtype=torch.float64)
        self.size, self.noise, self.prior = 200, 0.5, 4.0
        normal = torch.randn(self.size, 3, generator=randomness, dtype=torch.float64)
        self.x = normal @ mixing
        errors = torch.randn(self.size, generator=randomness, dtype=torch.float64)
        truth = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        self.y = self.x @ truth + math.sqrt(self.noise) * errors
        identity = torch.eye(3, dtype=torch.float64)
        self.precision = self.x.T @ self.x / self.noise + identity / self.prior
        self.mean = torch.linalg.solve(self.precision, self.x.T @ self.y / self.noise)

    def gradient(self, theta: Tensor, counts: Tensor) -> Tensor:
        """∇Ū_B [chains, 3] at θ [chains, 3]; counts [chains, N] are the draws of each row."""
        residual = self.y - theta @ self.x.T
        batch = counts.sum(1, keepdim=True)
        likelihood = -(counts * residual) @ self.x / (self.noise * batch)
        return likelihood + theta / (self.prior * self.size)

    def stationary_covariance(self, step: float, batch: int, replace: bool) -> Tensor:
        """Solution of Σ = A Σ Aᵀ + 2 ε I + ε² E[C], affine in Σ; ε = η/N is the sum-scale step."""
        x, size = self.x, self.size
        contraction = torch.eye(3, dtype=torch.float64) - step * self.precision
        correction = 1.0 if replace else (size - batch) / (size - 1)
        hessian = x.T @ x / self.noise / size
        residual = self.y - x @ self.mean
        mean_gradient = -(x.T @ residual) / self.noise / size

        def following(covariance: Tensor) -> Tensor:
            squared = residual**2 + ((x @ covariance) * x).sum(1)
            second = (x * (squared / self.noise**2)[:, None]).T @ x / size
            outer = hessian @ covariance @ hessian.T + torch.outer(mean_gradient, mean_gradient)
            noise = (size**2 / batch) * (second - outer) * correction
            injected = 2 * step * torch.eye(3, dtype=torch.float64)
            return contraction @ covariance @ contraction.T + injected + step**2 * noise

        basis = torch.eye(9, dtype=torch.float64)
        constant_part = following(torch.zeros(3, 3, dtype=torch.float64)).flatten()
        linear_part = torch.stack(
            [following(element.reshape(3, 3)).flatten() - constant_part for element in basis], dim=1
        )
        return torch.linalg.solve(basis - linear_part, constant_part).reshape(3, 3)

    def autocorrelation(self, step: float, covariance: Tensor, every: int, count: int) -> Tensor:
        """Stationary autocorrelation of each weight at lags 0, every, 2 every …, [count, 3]."""
        contraction = torch.eye(3, dtype=torch.float64) - step * self.precision
        jump = torch.linalg.matrix_power(contraction, every)
        rows = [torch.linalg.matrix_power(jump, lag) @ covariance for lag in range(count)]
        return torch.stack([row.diagonal() for row in rows]) / covariance.diagonal()


@pytest.mark.parametrize(
    ("stiffness", "batch", "replace"),
    [(0.2, 200, False), (0.2, 50, True), (0.2, 50, False), (0.05, 20, False)],
)
def test_minibatch_regression_solves_the_lyapunov_equation(
    stiffness: float, batch: int, replace: bool, generator: torch.Generator
) -> None:
    """Oracle 6: mean μ and each variance within 4 exact standard errors, which are below 1 %."""
    problem = LinearRegression()
    largest = torch.linalg.eigvalsh(problem.precision).max().item()
    step = stiffness / largest
    exact = problem.stationary_covariance(step, batch, replace)
    chains, steps, keep_every = 8_000, 400, 20
    sampler = SGLD(problem.size, constant(step * problem.size), generator)
    factor = torch.linalg.cholesky(exact)
    normal = torch.randn(chains, 3, generator=generator, dtype=torch.float64)
    state = sampler.init(problem.mean + normal @ factor.T)

    def target(theta: Tensor) -> tuple[Tensor, Tensor]:
        counts = torch.zeros(chains, problem.size, dtype=torch.float64)
        if batch == problem.size:
            counts += 1
        elif replace:
            drawn = torch.randint(problem.size, (chains, batch), generator=generator)
            counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        else:
            keys = torch.rand(chains, problem.size, generator=generator)
            counts.scatter_(1, keys.topk(batch, dim=1).indices, 1.0)
        return theta[..., 0], problem.gradient(theta, counts)

    kept = []
    for index in range(1, steps + 1):
        state, _ = sampler.step(state, target)
        if index % keep_every == 0:
            kept.append(state.position.clone())
    deviations = torch.stack(kept) - problem.mean
    variance = deviations.square().mean(dim=(0, 1))
    correlation = problem.autocorrelation(step, exact, keep_every, len(kept))
    lags = (torch.arange(len(kept))[:, None] - torch.arange(len(kept))).abs()
    for axis in range(3):
        rho = correlation[lags, axis]
        ratio = variance[axis].item() / exact[axis, axis].item()
        error = math.sqrt(2 * rho.square().mean().item() / chains)
        print(f"variance {axis}: {ratio:.4f} of the exact, ± {error:.4f}")
        assert error < 0.01
        assert ratio == pytest.approx(1, abs=4 * error)
        drift = deviations[..., axis].mean().item() / math.sqrt(exact[axis, axis].item())
        assert abs(drift) < 4 * math.sqrt(rho.mean().item() / chains)
