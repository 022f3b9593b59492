"""Oracle 5: without data a real network samples its prior, layer by layer, in every family."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models.networks import build
from tests.law import grid
from training.posterior import Posterior
from training.priors import Family
from training.samplers import BAOAB, SGLD
from training.schedules import constant

NU = 5.0
SLOPES: dict[Family, grid.Function] = {
    "gaussian": lambda x: x,
    "student-t": lambda x: (NU + 1) * x / (NU - 2 + x**2),
    "laplace": lambda x: math.sqrt(2) * np.sign(x),
}
"""Slopes u′ of −log p in units of σ; the kink of Laplace's is too narrow for a step to see."""


def network_posterior(family: Family) -> Posterior:
    network = build("lenet", (1, 28, 28), 10, channels=(8, 16), kernel=5, hidden=(64,))
    stds = dict(zip(network.shapes, (0.2, 0.3, 0.1, 0.3, 0.1, 0.3, 0.2, 0.3), strict=True))
    return Posterior.build(network, 100, stds, family, NU)


def no_data(posterior: Posterior) -> object:
    def target(position: Tensor) -> tuple[Tensor, Tensor]:
        force = torch.zeros_like(position)
        posterior.prior.add_gradient(force, position, posterior.num_data)
        return posterior.prior.energy(position) / posterior.num_data, force

    return target


@pytest.mark.parametrize("family", SLOPES)
def test_sgld(family: Family, generator: torch.Generator) -> None:
    """E|θ|/σ and ⟨θ ∂U/∂θ⟩, by parameter, against the exact law of the same step.

    Scaled by σ, every weight takes steps of δ = η/(N σ²) on the family's potential.
    """
    posterior, chains, step_size = network_posterior(family), 4, 0.1
    network, num_data = posterior.network, posterior.num_data
    start = torch.stack([posterior.prior.draw(generator) for _ in range(chains)])
    sampler = SGLD(num_data, constant(step_size), generator)
    state = sampler.init(start)
    for _ in range(200):
        state, _ = sampler.step(state, no_data(posterior))
    slope = SLOPES[family]
    for std in (0.1, 0.2, 0.3):
        law = grid.stationary(slope, step_size / (num_data * std**2), 30.0, 601)
        chosen = posterior.prior.std == torch.tensor(std)
        scaled = (state.position[:, chosen] / std).double().numpy()
        for name, function in (("|θ|", np.abs), ("virial", lambda x: x * slope(x))):
            exact, values = law.mean(function), function(scaled)
            error = law.deviation(function) / math.sqrt(values.size)
            print(f"{family}, σ = {std}: {name} {values.mean():.4f}, {exact:.4f} ± {error:.4f}")
            assert values.mean() == pytest.approx(exact, abs=4 * error)
    assert network.num_weights == posterior.prior.std.numel()


def test_every_parameter_has_its_own_variance(generator: torch.Generator) -> None:
    """The Gaussian prior through BAOAB, which has no step bias: σ² for each tensor by name."""
    posterior, chains = network_posterior("gaussian"), 4
    start = torch.stack([posterior.prior.draw(generator) for _ in range(chains)])
    sampler = BAOAB(posterior.num_data, constant(0.1), generator, momentum=0.5)
    state = sampler.init(start)
    for _ in range(200):
        state, _ = sampler.step(state, no_data(posterior))
    scaled = posterior.network.unflatten(state.position / posterior.prior.std)
    for name, part in scaled.items():
        ratio, bound = part.double().square().mean().item(), 4 * math.sqrt(2 / part.numel())
        print(f"{name}: {ratio:.4f} ± {bound / 4:.4f}")
        assert ratio == pytest.approx(1, abs=bound)


@pytest.mark.parametrize("family", SLOPES)
def test_the_oracle_knows_the_family(family: Family) -> None:
    """As the step goes to 0, ⟨x u′⟩ = 1, ⟨x²⟩ = 1, and E|x| is the family's."""
    law = grid.stationary(SLOPES[family], 2e-3, 30.0, 1201)
    slope = SLOPES[family]
    absolute = {
        "gaussian": math.sqrt(2 / math.pi),
        "laplace": 1 / math.sqrt(2),
        "student-t": 2 * math.sqrt(NU - 2) * math.gamma((NU + 1) / 2)
        / (math.sqrt(math.pi) * (NU - 1) * math.gamma(NU / 2)),
    }[family]  # fmt: skip
    assert law.mean(lambda x: x * slope(x)) == pytest.approx(1, rel=0.01)
    assert law.mean(np.abs) == pytest.approx(absolute, rel=0.01)
