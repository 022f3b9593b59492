"""Oracle 3: with no gradient, the noise alone, by χ², for every sampler that injects any.

Σ ξ² over n coordinates is χ² with n degrees of freedom: mean n, standard deviation sqrt(2n).
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.samplers import BAOAB, PSGLD, SGHMC, SGLD, ConstantSGD
from training.schedules import constant

N, SIZE, STEP_SIZE, MOMENTUM = 60_000, 200_000, 0.2, 0.8
H = math.sqrt(2 * STEP_SIZE / N)


def no_force(position: Tensor) -> tuple[Tensor, Tensor]:
    return position.new_zeros(position.shape[:-1]), torch.zeros_like(position)


def check_normal(first: Tensor, second: Tensor) -> None:
    """Both [2, n/2]: standard normal, independent within and of each other."""
    for noise in (first, second):
        assert abs(noise.square().sum().item() - SIZE) < 4 * math.sqrt(2 * SIZE)
        assert abs(noise.mean().item()) < 4 / math.sqrt(SIZE)
        assert abs((noise[0] * noise[1]).mean().item()) < 4 / math.sqrt(SIZE // 2)
    assert abs((first * second).mean().item()) < 4 / math.sqrt(SIZE)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 30.0])
@pytest.mark.parametrize("method", ["sgld", "psgld"])
def test_overdamped(method: str, temperature: float, generator: torch.Generator) -> None:
    schedule = constant(STEP_SIZE)
    if method == "sgld":
        sampler = SGLD(N, schedule, generator, temperature)
    else:
        sampler = PSGLD(N, schedule, generator, 0, temperature)
    state = sampler.init(torch.zeros(2, SIZE // 2, dtype=torch.float64))
    scale = math.sqrt(2 * STEP_SIZE * temperature / N)
    state, _ = sampler.step(state, no_force)
    first = state.position / scale
    state, _ = sampler.step(state, no_force)
    check_normal(first, state.position / scale - first)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 30.0])
@pytest.mark.parametrize("method", [SGHMC, BAOAB])
def test_underdamped(
    method: type[SGHMC] | type[BAOAB], temperature: float, generator: torch.Generator
) -> None:
    """The momenta's noise, and that the weights move by the momenta and nothing else."""
    sampler = method(N, constant(STEP_SIZE), generator, MOMENTUM, temperature)
    variance = 2 * (1 - MOMENTUM) if method is SGHMC else 1 - MOMENTUM**2
    state = sampler.init(torch.zeros(2, SIZE // 2, dtype=torch.float64))
    noises = [state.momentum / math.sqrt(temperature)]
    for _ in range(2):
        position, momentum = state.position.clone(), state.momentum.clone()
        state, _ = sampler.step(state, no_force)
        change = state.momentum - MOMENTUM * momentum
        noises.append(change / math.sqrt(variance * temperature))
        mean = state.momentum if method is SGHMC else (momentum + state.momentum) / 2
        torch.testing.assert_close(state.position - position, H * mean, rtol=1e-9, atol=1e-12)
    check_normal(noises[0], noises[1])
    check_normal(noises[1], noises[2])


def test_constant_sgd_has_none() -> None:
    sampler = ConstantSGD(constant(STEP_SIZE))
    state, _ = sampler.step(sampler.init(torch.ones(3)), no_force)
    assert torch.equal(state.position, torch.ones(3))
