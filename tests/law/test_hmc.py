"""The leapfrog map: reversible, volume-preserving, and of second order in its step."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from training.samplers.hmc import HMC, leapfrog
from training.samplers.metropolis import Point
from training.samplers.sgld import SGLD
from training.schedules import constant

N = 10


def quartic(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Ū = (|θ|⁴/4 + |θ|²/2)/N in two dimensions: its modes are coupled."""
    square = theta.square().sum(-1)
    return (square**2 / 4 + square / 2) / N, theta * (square + 1).unsqueeze(-1) / N


def flow(position: Tensor, momentum: Tensor, size: float, steps: int) -> tuple[Point, Tensor]:
    return leapfrog(Point(position, *quartic(position)), momentum, quartic, N, size, steps)


@pytest.fixture
def start(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    position = torch.randn(1000, 2, generator=generator, dtype=torch.float64)
    return position, torch.randn(1000, 2, generator=generator, dtype=torch.float64)


def test_leapfrog_is_reversible(start: tuple[Tensor, Tensor]) -> None:
    """With the momentum flipped it leads back, to rounding."""
    position, momentum = start
    end, final = flow(position, momentum, 0.1, 20)
    assert (end.position - position).abs().mean() > 0.5
    back, flipped = flow(end.position, -final, 0.1, 20)
    torch.testing.assert_close(back.position, position, rtol=0, atol=1e-10)
    torch.testing.assert_close(-flipped, momentum, rtol=0, atol=1e-10)


def test_leapfrog_preserves_volume(start: tuple[Tensor, Tensor]) -> None:
    """The determinant of its Jacobian, by central differences with error O(δ²), is 1."""
    position, momentum = start
    state, delta = torch.cat([position, momentum], dim=1), 1e-5

    def image(state: Tensor) -> Tensor:
        end, final = flow(state[:, :2].contiguous(), state[:, 2:].contiguous(), 0.2, 10)
        return torch.cat([end.position, final], dim=1)

    columns = [
        (image(state + delta * axis) - image(state - delta * axis)) / (2 * delta)
        for axis in torch.eye(4, dtype=torch.float64)
    ]
    determinant = torch.linalg.det(torch.stack(columns, dim=-1))
    torch.testing.assert_close(
        determinant, torch.ones(1000, dtype=torch.float64), rtol=0, atol=1e-5
    )


def test_energy_error_is_of_second_order(start: tuple[Tensor, Tensor]) -> None:
    """At a fixed length h L = 1 the root mean square of ΔH falls fourfold with half the step."""
    position, momentum = start
    before = N * quartic(position)[0] + momentum.square().sum(-1) / 2
    errors = []
    for steps in (40, 80, 160):
        end, final = flow(position, momentum, 1 / steps, steps)
        after = N * end.energy + final.square().sum(-1) / 2
        errors.append((after - before).square().mean().sqrt().item())
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    print(errors, orders)
    assert orders[1] == pytest.approx(2, abs=0.01)
    assert abs(orders[1] - 2) < abs(orders[0] - 2)


def test_one_leapfrog_step_proposes_the_step_of_sgld() -> None:
    step_size, temperature = 0.05, 0.7
    position = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    sgld = SGLD(N, constant(step_size), torch.Generator().manual_seed(3), temperature)
    expected, _ = sgld.step(sgld.init(position), quartic)
    hmc = HMC(N, constant(step_size), torch.Generator().manual_seed(3), 1, temperature, jitter=0.0)
    state, info = hmc.step(hmc.init(position), quartic)
    assert info.acceptance is not None
    assert info.acceptance.item() > 0.9
    torch.testing.assert_close(state.position, expected.position, rtol=1e-12, atol=0)


def test_jitter_spreads_the_leapfrog_step_evenly(generator: torch.Generator) -> None:
    """u ~ U(.8, 1.2): mean 1, variance .4²/12; the step size that is reported is η u²."""
    draws, step_size = 4000, 0.5
    sampler = HMC(N, constant(step_size), generator, leapfrog_steps=1)
    state = sampler.init(torch.zeros(1, dtype=torch.float64))
    factors = []
    for _ in range(draws):
        state, info = sampler.step(state, lambda x: (x.sum(), torch.zeros_like(x)))
        factors.append(math.sqrt(info.step_size / step_size))
    factor = torch.tensor(factors, dtype=torch.float64)
    assert 0.8 <= factor.min() < 0.81
    assert 1.19 < factor.max() <= 1.2
    assert factor.mean().item() == pytest.approx(1, abs=4 * math.sqrt(0.4**2 / 12 / draws))
