"""MALA against its two relatives: the proposal is SGLD's, the test is HMC's."""

from __future__ import annotations

import torch
from torch import Tensor

from training.samplers.hmc import HMC
from training.samplers.mala import MALA
from training.samplers.sgld import SGLD
from training.schedules import constant

N, CHAINS, STEP_SIZE, TEMPERATURE = 20, 5000, 2.0, 2.5


def target(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Ū = Σ cosh θ / 3."""
    return torch.cosh(theta).sum(-1) / 3, torch.sinh(theta) / 3


def test_the_acceptance_is_that_of_hmc_with_one_leapfrog_step(generator: torch.Generator) -> None:
    position = torch.randn(CHAINS, 4, generator=generator, dtype=torch.float64)
    mala = MALA(N, constant(STEP_SIZE), torch.Generator().manual_seed(3), TEMPERATURE)
    hmc = HMC(N, constant(STEP_SIZE), torch.Generator().manual_seed(3), 1, TEMPERATURE, jitter=0.0)
    _, ours = mala.step(mala.init(position), target)
    _, theirs = hmc.step(hmc.init(position), target)
    assert ours.acceptance is not None
    assert theirs.acceptance is not None
    assert 0.2 < ours.acceptance.mean().item() < 0.95
    torch.testing.assert_close(ours.acceptance, theirs.acceptance, rtol=1e-9, atol=0)


def test_an_accepted_step_is_that_of_sgld(generator: torch.Generator) -> None:
    position = torch.randn(CHAINS, 4, generator=generator, dtype=torch.float64)
    mala = MALA(N, constant(STEP_SIZE), torch.Generator().manual_seed(3), TEMPERATURE)
    sgld = SGLD(N, constant(STEP_SIZE), torch.Generator().manual_seed(3), TEMPERATURE)
    state, info = mala.step(mala.init(position), target)
    proposal, _ = sgld.step(sgld.init(position), target)
    assert info.acceptance is not None
    moved = (state.position != position).any(-1)
    torch.testing.assert_close(
        state.position[moved], proposal.position[moved], rtol=1e-12, atol=1e-12
    )
    assert moved[info.acceptance == 1].all()
    assert (~moved).any()
