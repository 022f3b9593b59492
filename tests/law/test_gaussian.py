"""Oracle 4: the exact discretised law on Gaussian targets, started at stationarity.

Coordinates are independent: over n of them the relative standard error of a variance is sqrt(2/n).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.law import grid, linear
from training.samplers import BAOAB, PSGLD, SGHMC, SGLD, Sampler, Target
from training.samplers.psgld import PSGLDState
from training.schedules import constant

N, SIZE = 60_000, 200_000
ERROR = math.sqrt(2 / SIZE)


def quadratic(curvature: float) -> Target:
    return lambda theta: (curvature * theta.square().sum(-1) / 2, curvature * theta)


def check(
    sampler: Sampler,  # type: ignore[type-arg]
    curvature: float,
    exact: Tensor,
    generator: torch.Generator,
    target: Target | None = None,
    steps: int = 40,
) -> None:
    """Start at the law `exact` of weight (and momentum), and stay there."""
    normal = torch.randn(len(exact), SIZE, generator=generator, dtype=torch.float64)
    start = torch.linalg.cholesky(exact) @ normal
    state = sampler.init(start[0])
    if len(exact) == 2:
        state.momentum.copy_(start[1])
    for _ in range(steps):
        previous = state.position.var().item()
        state, info = sampler.step(state, target or quadratic(curvature))
    ratio = state.position.var().item() / exact[0, 0].item()
    print(f"variance: {ratio:.4f} of the exact, ± {ERROR:.4f}")
    assert ratio == pytest.approx(1, abs=4 * ERROR)
    if target is None:
        virial = info.virial.mean().item() / (curvature * previous)
        assert virial == pytest.approx(1, abs=1e-4)
    if len(exact) == 2:
        assert state.momentum.var().item() / exact[1, 1].item() == pytest.approx(1, abs=4 * ERROR)


def hessian(curvature: float) -> Tensor:
    return torch.tensor([[curvature]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("step_size", "curvature", "temperature"),
    [(0.2, 1.0, 1.0), (0.2, 4.0, 1.0), (0.05, 10.0, 0.25), (0.6, 1.0, 3.0)],
)
def test_sgld(
    step_size: float, curvature: float, temperature: float, generator: torch.Generator
) -> None:
    exact = linear.sgld(hessian(curvature), N, step_size, temperature).covariance()
    formula = temperature / (N * curvature * (1 - step_size * curvature / 2))
    assert exact.item() == pytest.approx(formula, rel=1e-12)
    check(SGLD(N, constant(step_size), generator, temperature), curvature, exact, generator)


CASES = [
    (0.02, 1.0, 0.9, 1.0),
    (0.3, 4.0, 0.5, 1.0),
    (0.05, 1.0, 0.8, 2.0),
    (0.1, 2.0, 0.0, 0.25),
]


@pytest.mark.parametrize(("step_size", "curvature", "momentum", "temperature"), CASES)
def test_sghmc(
    step_size: float,
    curvature: float,
    momentum: float,
    temperature: float,
    generator: torch.Generator,
) -> None:
    exact = linear.sghmc(hessian(curvature), N, step_size, momentum, temperature).covariance()
    formula = temperature / (N * curvature * (1 - step_size * curvature / (1 + momentum)))
    assert exact[0, 0].item() == pytest.approx(formula, rel=1e-10)
    sampler = SGHMC(N, constant(step_size), generator, momentum, temperature)
    check(sampler, curvature, exact, generator)


@pytest.mark.parametrize(("step_size", "curvature", "momentum", "temperature"), CASES)
def test_baoab_has_no_bias(
    step_size: float,
    curvature: float,
    momentum: float,
    temperature: float,
    generator: torch.Generator,
) -> None:
    """T/(Nλ) and T at any step; the momenta before a kick lean on the weights by half of it."""
    exact = linear.baoab(hessian(curvature), N, step_size, momentum, temperature).covariance()
    lean = math.sqrt(2 * step_size / N) * temperature / 2
    formula = [[temperature / (N * curvature), lean], [lean, temperature]]
    torch.testing.assert_close(
        exact, torch.tensor(formula, dtype=torch.float64), rtol=1e-9, atol=0.0
    )
    sampler = BAOAB(N, constant(step_size), generator, momentum, temperature)
    check(sampler, curvature, exact, generator)


@pytest.mark.parametrize("known", [True, False])
def test_sghmc_takes_the_heat_of_gradient_noise_out(
    known: bool, generator: torch.Generator
) -> None:
    """With V̂ the true variance the law is that without noise; with 0, T rises by ηNV/(1−c)."""
    step_size, curvature, momentum, variance = 0.05, 2.0, 0.7, 5e-5
    hot = 1.0 if known else 1 + step_size * N * variance / (1 - momentum)
    assert known or hot == pytest.approx(1.5)
    exact = linear.sghmc(hessian(curvature), N, step_size, momentum, hot).covariance()

    def noisy(theta: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.randn(theta.shape, generator=generator, dtype=theta.dtype)
        return theta.sum(-1), curvature * theta + math.sqrt(variance) * noise

    estimate = torch.full((SIZE,), variance) if known else 0.0
    sampler = SGHMC(N, constant(step_size), generator, momentum, 1.0, estimate)
    check(sampler, curvature, exact, generator, noisy)


def test_psgld_with_a_frozen_preconditioner(generator: torch.Generator) -> None:
    """Half of the weights take steps of 1.5 η, half of 0.5 η; each has its own variance."""
    step_size, curvature = 0.3, 2.0
    sampler = PSGLD(N, constant(step_size), generator, freeze_at=0, floor=1e-12)
    mean_square = torch.tensor([1.0, 9.0], dtype=torch.float64).repeat_interleave(SIZE // 2)
    scale = sampler.preconditioner(mean_square)
    assert scale[[0, -1]].tolist() == pytest.approx([1.5, 0.5])
    exact = 1 / (N * curvature * (1 - step_size * scale * curvature / 2))
    normal = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    state = PSGLDState(normal * exact.sqrt(), mean_square.clone(), 0)
    for _ in range(20):
        state, _ = sampler.step(state, quadratic(curvature))
    assert torch.equal(state.mean_square, mean_square)
    for half in (slice(0, SIZE // 2), slice(SIZE // 2, SIZE)):
        ratio = (state.position[half].var() / exact[half][0]).item()
        assert ratio == pytest.approx(1, abs=4 * math.sqrt(4 / SIZE))


def quartic(theta: Tensor) -> tuple[Tensor, Tensor]:
    return theta.pow(4).sum(-1) / 4, theta.pow(3)


def square(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return x**2


def run(sampler: PSGLD, state: PSGLDState, target: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
    for _ in range(200):
        state, _ = sampler.step(state, target)
    return state.position


def test_psgld_is_exact_once_frozen_and_too_hot_before(generator: torch.Generator) -> None:
    """Density exp(−θ⁴/4), N = 1, against the exact law of the same step; the bias is printed.

    All weights are alike, so that a frozen G is 1 and an adapting one only follows its own weight.
    """
    size, step_size = 20_000, 0.05
    law = grid.stationary(lambda x: x**3, step_size, 4.0, 200)
    exact, spread = law.mean(square), law.deviation(square)
    error = spread / math.sqrt(size) / exact
    start = torch.from_numpy(np.random.default_rng(0).choice(law.points, size, p=law.probabilities))
    alike = torch.ones(size, dtype=torch.float64)
    frozen = PSGLD(1, constant(step_size), generator, freeze_at=0)
    ratio = run(frozen, PSGLDState(start.clone(), alike, 0), quartic).square().mean().item() / exact
    print(f"frozen: {ratio:.4f} of the exact second moment, ± {error:.4f}")
    assert ratio == pytest.approx(1, abs=4 * error)
    for decay in (0.9, 0.99, 0.999):
        sampler = PSGLD(1, constant(step_size), generator, freeze_at=10**9, decay=decay)
        state = PSGLDState(start.clone(), alike.clone(), 0)
        ratio = run(sampler, state, quartic).square().mean().item() / exact
        print(f"adapting, decay {decay}: {ratio:.4f} of the exact second moment, ± {error:.4f}")
        assert decay > 0.99 or ratio > 1 + 4 * error
