"""Oracle 9: the same steps as posteriors (Duffield et al. 2024), from the same noise.

Its log posterior is −Ū and its temperature T/N. Its unit of time is sqrt(N) times ours, so that its
learning rate is sqrt(2η) for underdamped samplers, and its momenta are ours over sqrt(N).
"""

from __future__ import annotations

import math

import posteriors
import pytest
import torch
from torch import Tensor

from tests.law.regression import LinearRegression
from training.samplers import BAOAB, SGHMC, SGLD
from training.schedules import constant

problem = LinearRegression()
N, STEP_SIZE, MOMENTUM, SEED = problem.size, 0.05 / problem.stiffest, 0.8, 4
START = problem.mean + 0.1


def log_posterior(parameters: dict[str, Tensor], batch: None) -> tuple[Tensor, Tensor]:
    energy, _ = problem.full_target(parameters["theta"])
    return -energy, torch.empty(0)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_sgld(temperature: float) -> None:
    sampler = SGLD(N, constant(STEP_SIZE), torch.Generator().manual_seed(SEED), temperature)
    state = sampler.init(START)
    theirs = posteriors.sgmcmc.sgld.build(log_posterior, STEP_SIZE, temperature=temperature / N)
    other = theirs.init({"theta": START.clone()})
    torch.manual_seed(SEED)
    for _ in range(20):
        state, _ = sampler.step(state, problem.full_target)
        other, _ = theirs.update(other, None)
        torch.testing.assert_close(state.position, other.params["theta"], rtol=1e-12, atol=0.0)


def test_baoab() -> None:
    """posteriors' friction is rounded to single precision, and the paths agree to that."""
    sampler = BAOAB(N, constant(STEP_SIZE), torch.Generator().manual_seed(SEED), MOMENTUM)
    state = sampler.init(START)
    rate = math.sqrt(2 * STEP_SIZE)
    friction = -math.log(MOMENTUM) / rate
    theirs = posteriors.sgmcmc.baoa.build(
        log_posterior,
        rate,
        alpha=friction,
        temperature=1 / N,
        momenta={"theta": state.momentum / math.sqrt(N)},
    )
    other = theirs.init({"theta": START.clone()})
    torch.manual_seed(SEED)
    torch.randn(3, dtype=torch.float64)  # ours has drawn its first momenta
    for _ in range(20):
        state, _ = sampler.step(state, problem.full_target)
        other, _ = theirs.update(other, None)
        torch.testing.assert_close(state.position, other.params["theta"], rtol=1e-6, atol=1e-6)


def test_sghmc_kicks_alike() -> None:
    """The momenta of one step agree. The weights do not: theirs drift by the momenta before it."""
    sampler = SGHMC(N, constant(STEP_SIZE), torch.Generator().manual_seed(SEED), MOMENTUM)
    state = sampler.init(START)
    rate, before = math.sqrt(2 * STEP_SIZE), state.momentum / math.sqrt(N)
    theirs = posteriors.sgmcmc.sghmc.build(
        log_posterior,
        rate,
        alpha=(1 - MOMENTUM) / rate,
        temperature=1 / N,
        momenta={"theta": before.clone()},
    )
    other = theirs.init({"theta": START.clone()})
    torch.manual_seed(SEED)
    torch.randn(3, dtype=torch.float64)  # ours has drawn its first momenta
    state, _ = sampler.step(state, problem.full_target)
    other, _ = theirs.update(other, None)
    after = other.momenta["theta"]
    torch.testing.assert_close(state.momentum / math.sqrt(N), after, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(state.position, START + rate * after, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(other.params["theta"], START + rate * before, rtol=1e-12, atol=0.0)
