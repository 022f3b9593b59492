"""Oracle 1: one step by hand, and a gradient by finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from models.networks import build
from training.posterior import Posterior
from training.samplers import SGLD
from training.schedules import constant


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
