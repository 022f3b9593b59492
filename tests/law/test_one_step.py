"""Oracles 1 to 3: one step by hand, no noise, and noise alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.networks import build
from training.posterior import Posterior
from training.samplers.sgld import SGLD
from training.schedules import constant, polynomial

N = 60_000


def no_force(position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return position.new_zeros(position.shape[:-1]), torch.zeros_like(position)


def test_one_step_equals_the_formula_computed_by_hand() -> None:
    seed, step_size, temperature, num_data, prior_std = 3, 0.1, 0.7, 50, 2.0
    position = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    inputs = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    targets = torch.tensor([1.5, -0.5], dtype=torch.float64)

    def target(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        residual = inputs @ weights - targets
        energy = residual.square().sum() / (2 * len(targets))
        return energy, inputs.T @ residual / len(targets) + weights / (num_data * prior_std**2)

    sampler = SGLD(num_data, constant(step_size), torch.Generator().manual_seed(seed), temperature)
    state, info = sampler.step(sampler.init(position), target)

    noise = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    residuals = [1.0 * 1 + 2 * 0.5 - 1.5, 1.0 * -2 + 1 * 0.5 + 0.5]
    means = [residuals[0] / 2, residuals[1] / 2, (2 * residuals[0] + residuals[1]) / 2]
    for index, theta in enumerate([1.0, -2.0, 0.5]):
        force = means[index] + theta / (50 * 4)
        kick = math.sqrt(2 * 0.1 * 0.7 / 50) * noise[index].item()
        assert state.position[index].item() == pytest.approx(theta - 0.1 * force + kick, rel=1e-14)
        assert info.virial[index].item() == pytest.approx(theta * force, rel=1e-14)
    assert state.step == 1
    assert position.tolist() == [1.0, -2.0, 0.5]


def test_posterior_gradient_has_prior_and_likelihood_exactly_once() -> None:
    network = build("mlp", (1, 2, 2), 3, hidden=(5,), activation="tanh")
    stds = dict(zip(network.shapes, (0.5, 1.0, 2.0, 3.0), strict=True))
    posterior = Posterior.build(network, 40, stds)
    randomness = torch.Generator().manual_seed(0)
    position = posterior.prior.draw(randomness).double()
    images = torch.randn(40, 1, 2, 2, generator=randomness, dtype=torch.float64)
    labels = torch.randint(0, 3, (40,), generator=randomness)

    def mean_potential(weights: torch.Tensor) -> float:
        log_probabilities = posterior.logits(weights, images).log_softmax(1)
        likelihood = log_probabilities[torch.arange(40), labels].sum()
        prior = -(weights**2 / (2 * posterior.prior.std.double() ** 2)).sum()
        return -(likelihood + prior).item() / 40

    gradient, _ = posterior.gradient(position, images, labels)
    for index in range(len(position)):
        shift = torch.zeros_like(position)
        shift[index] = 1e-6
        slope = (mean_potential(position + shift) - mean_potential(position - shift)) / 2e-6
        assert gradient[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("schedule", [constant(0.05), polynomial(0.2, 10.0, 0.55)])
def test_without_temperature_it_is_sgd_bit_for_bit(schedule) -> None:  # type: ignore[no-untyped-def]
    num_data, prior_std = 400, 0.5
    network = build("lenet", (1, 14, 14), 4, channels=(3,), kernel=5, hidden=(6,))
    posterior = Posterior.build(network, num_data, dict.fromkeys(network.shapes, prior_std))
    randomness = torch.Generator().manual_seed(5)
    images = torch.randn(num_data, 1, 14, 14, generator=randomness)
    labels = torch.randint(0, 4, (num_data,), generator=randomness)
    start = posterior.prior.draw(randomness)

    sampler = SGLD(num_data, schedule, torch.Generator().manual_seed(0), temperature=0.0)
    state = sampler.init(start)
    weights = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.SGD([weights], lr=1.0)
    for step in range(50):
        batch = slice(8 * step, 8 * step + 8)

        def gradient(position: torch.Tensor, batch: slice = batch) -> torch.Tensor:
            return posterior.gradient(position, images[batch], labels[batch])[0]

        optimiser.param_groups[0]["lr"] = schedule(step)
        weights.grad = gradient(weights.data)
        optimiser.step()
        state, _ = sampler.step(state, lambda w, g=gradient: (w.sum(), g(w)))
        assert torch.equal(state.position, weights.data)


def test_prior_equals_the_weight_decay_of_torch() -> None:
    """θ/(N σ²) is weight_decay = 1/(N σ²): SGD with it walks the same path."""
    num_data, prior_std = 400, 0.5
    network = build("mlp", (1, 3, 3), 3, hidden=(4,))
    posterior = Posterior.build(network, num_data, dict.fromkeys(network.shapes, prior_std))
    randomness = torch.Generator().manual_seed(5)
    images = torch.randn(64, 1, 3, 3, generator=randomness, dtype=torch.float64)
    labels = torch.randint(0, 3, (64,), generator=randomness)
    start = posterior.prior.draw(randomness).double()

    sampler = SGLD(num_data, constant(0.3), torch.Generator(), temperature=0.0)
    state = sampler.init(start)
    weights = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.SGD([weights], lr=0.3, weight_decay=1 / (num_data * prior_std**2))
    for _ in range(20):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(posterior.logits(weights, images), labels).backward()
        optimiser.step()
        state, _ = sampler.step(state, posterior.target(images, labels))
    torch.testing.assert_close(state.position, weights.data, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 30.0])
def test_noise_alone_has_variance_two_eta_t_over_n(
    temperature: float, generator: torch.Generator
) -> None:
    """Σ Δ²/(2ηT/N) is χ² with n degrees of freedom: mean n, standard deviation sqrt(2n)."""
    size, step_size = 200_000, 0.2
    sampler = SGLD(N, constant(step_size), generator, temperature)
    start = torch.zeros(2, size // 2, dtype=torch.float64)
    state, _ = sampler.step(sampler.init(start), no_force)
    increments = state.position.flatten().numpy() / math.sqrt(2 * step_size * temperature / N)
    chi_square = (increments**2).sum()
    assert abs(chi_square - size) < 4 * math.sqrt(2 * size)
    assert abs(increments.mean()) < 4 / math.sqrt(size)
    first, second = increments[: size // 2], increments[size // 2 :]
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(size // 2)

    again, _ = sampler.step(state, no_force)
    fresh = (again.position - 0).flatten().numpy() / math.sqrt(2 * step_size * temperature / N)
    assert abs(np.corrcoef(fresh - increments, increments)[0, 1]) < 4 / math.sqrt(size)
