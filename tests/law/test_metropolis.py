"""What HMC and MALA promise alike: the exact law at any step size, and its exact acceptance."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from training.samplers.hmc import HMC
from training.samplers.mala import MALA
from training.schedules import constant

N = 50
Make = Callable[[float, torch.Generator, float], HMC | MALA]


def hmc(step_size: float, generator: torch.Generator, temperature: float) -> HMC:
    return HMC(N, constant(step_size), generator, leapfrog_steps=5, temperature=temperature)


def mala(step_size: float, generator: torch.Generator, temperature: float) -> MALA:
    return MALA(N, constant(step_size), generator, temperature)


@pytest.mark.parametrize("make", [hmc, mala])
@pytest.mark.parametrize("temperature", [1.0, 30.0, 1e-3])
def test_gaussian_covariance_has_no_discretisation_bias(
    make: Make, temperature: float, generator: torch.Generator
) -> None:
    """Whitened, the covariance is I: standard error sqrt(2/C) on the diagonal, sqrt(1/C) off it.

    At this step a Langevin step without the test would be off by 1/(1 − ηλ/2) = 1.8.
    """
    chains, step_size = 100_000, 0.3
    eigenvalues = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    hessian = rotation @ eigenvalues.diag() @ rotation.T
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    scale = rotation @ (temperature / (N * eigenvalues)).sqrt().diag()

    def target(theta: Tensor) -> tuple[Tensor, Tensor]:
        gradient = (theta - mean) @ hessian
        return ((theta - mean) * gradient).sum(-1) / 2, gradient

    sampler = make(step_size, generator, temperature)
    start = torch.randn(chains, 3, generator=generator, dtype=torch.float64)
    state = sampler.init(mean + start @ scale.T)
    for _ in range(15):
        state, info = sampler.step(state, target)
    assert info.acceptance is not None
    assert 0.5 < info.acceptance.mean().item() < 0.99

    whitened = (state.position - mean) @ torch.linalg.inv(scale).T
    covariance = whitened.T @ whitened / chains
    print(covariance)
    error = torch.full((3, 3), math.sqrt(1 / chains)).fill_diagonal_(math.sqrt(2 / chains))
    assert ((covariance - torch.eye(3)).abs() < 4 * error).all()
    assert (whitened.mean(0).abs() < 4 / math.sqrt(chains)).all()


def quartic(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Two wells of unequal depth: Ū = (θ⁴/4 − θ²/2 + θ/5)/25, so that U has a barrier near 1."""
    x = theta[..., 0]
    return (x**4 / 4 - x**2 / 2 + x / 5) / 25, (theta**3 - theta + 0.2) / 25


@pytest.mark.parametrize("make", [hmc, mala])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_two_wells_agree_with_quadrature(
    make: Make, temperature: float, generator: torch.Generator
) -> None:
    """Moments of independent chains, all begun in one well, within 4 standard errors of it."""
    chains, steps = 20_000, 300
    grid = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    weight = (-N * quartic(grid[:, None])[0] / temperature).exp()
    weight /= weight.sum()

    sampler = make(4.0, generator, temperature)
    state = sampler.init(torch.ones(chains, 1, dtype=torch.float64))
    for _ in range(steps if isinstance(sampler, MALA) else steps // 5):
        state, _ = sampler.step(state, quartic)
    x = state.position[:, 0]
    features: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: x,
        lambda x: x**2,
        lambda x: x**4,
        lambda x: (x < 0).double(),
    )
    for feature in features:
        exact = (weight * feature(grid)).sum().item()
        variance = (weight * feature(grid) ** 2).sum().item() - exact**2
        error = math.sqrt(variance / chains)
        print(f"{feature(x).mean().item():.4f}, exact {exact:.4f} ± {error:.4f}")
        assert feature(x).mean().item() == pytest.approx(exact, abs=4 * error)


@pytest.mark.parametrize(("leapfrog_steps", "step_size"), [(1, 1.2), (3, 1.2), (3, 0.4)])
def test_acceptance_is_that_of_quadrature(
    leapfrog_steps: int, step_size: float, generator: torch.Generator
) -> None:
    """⟨min(1, e^−ΔH)⟩ over a unit Gaussian and its momenta, from the leapfrog matrix."""
    chains, h = 200_000, math.sqrt(2 * step_size)
    kick, drift = np.array([[1, 0], [-h / 2, 1]]), np.array([[1, h], [0, 1]])
    flow = np.linalg.matrix_power(kick @ drift @ kick, leapfrog_steps)
    axis = np.linspace(-8, 8, 1601)
    start = np.stack(np.meshgrid(axis, axis, indexing="ij"))
    end = np.einsum("ij,jab->iab", flow, start)
    density = np.exp(-(start**2).sum(0) / 2)
    density /= density.sum()
    accept = np.exp(np.minimum((start**2 - end**2).sum(0) / 2, 0))
    exact = (density * accept).sum()
    error = math.sqrt(((density * accept**2).sum() - exact**2) / chains)

    samplers: list[HMC | MALA] = [
        HMC(1, constant(step_size), generator, leapfrog_steps, jitter=0.0)
    ]
    if leapfrog_steps == 1:
        samplers.append(MALA(1, constant(step_size), generator))
    for sampler in samplers:
        position = torch.randn(chains, 1, generator=generator, dtype=torch.float64)
        _, info = sampler.step(sampler.init(position), lambda x: (x[..., 0] ** 2 / 2, x.clone()))
        assert info.acceptance is not None
        print(f"{info.acceptance.mean().item():.5f}, exact {exact:.5f} ± {error:.5f}")
        assert info.acceptance.mean().item() == pytest.approx(exact, abs=4 * error)


@pytest.mark.parametrize("make", [hmc, mala])
def test_a_rejected_chain_stays_and_its_gradient_is_not_computed_again(make: Make) -> None:
    calls = 0

    def target(theta: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        wall = torch.where(theta > 0.2, torch.nan, theta)
        return wall.square().sum(-1) / 2, wall

    sampler = make(0.1, torch.Generator().manual_seed(0), 1.0)
    state = sampler.init(torch.tensor([[-0.1], [0.1]], dtype=torch.float64))
    moved = torch.zeros(2, dtype=torch.bool)
    stayed = torch.zeros(2, dtype=torch.bool)
    for _ in range(40):
        before = state.position.clone()
        state, info = sampler.step(state, target)
        assert info.acceptance is not None
        same = (state.position == before).squeeze(-1)
        stayed |= same
        moved |= ~same
        assert same[info.acceptance == 0].all()
        assert state.energy is not None
        assert state.gradient is not None
        torch.testing.assert_close(state.energy, state.position.square().sum(-1) / 2)
        torch.testing.assert_close(state.gradient, state.position)
    assert moved.all()
    assert stayed.any()
    assert calls == 1 + 40 * (5 if isinstance(sampler, HMC) else 1)
    assert state.step == 40


@pytest.mark.parametrize("make", [hmc, mala])
def test_no_temperature_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="temperature > 0"):
        make(0.1, torch.Generator(), 0.0)
