from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from training.baselines.ensemble import Ensemble, budget
from training.baselines.swag import RANK, Moments, swag
from training.chains import generator
from training.problem import Problem
from training.warm_start import initial_weights

SEED = 12


def test_moments_are_those_of_the_snapshots() -> None:
    print(f"seed {SEED}")
    snapshots = torch.randn(30, 4, generator=torch.Generator().manual_seed(SEED)).double()
    moments = Moments.of(snapshots)
    torch.testing.assert_close(moments.mean, snapshots.mean(0))
    torch.testing.assert_close(moments.variance, snapshots.var(0, unbiased=False))
    assert moments.deviations.shape == (RANK, 4)
    torch.testing.assert_close(moments.deviations[-1], snapshots[-1] - snapshots.mean(0))
    torch.testing.assert_close(moments.deviations[0], snapshots[10] - snapshots[:11].mean(0))


def test_draws_have_half_the_diagonal_and_half_the_low_rank_covariance() -> None:
    """Σ = (diag(s²) + Δᵀ Δ / (K − 1)) / 2; of a Gaussian, s.e. sqrt((Σ_ii Σ_jj + Σ_ij²) / n)."""
    print(f"seed {SEED}")
    randomness, count = torch.Generator().manual_seed(SEED), 100_000
    deviations = torch.randn(5, 3, generator=randomness, dtype=torch.float64)
    moments = Moments(
        torch.tensor([1.0, -2.0, 0.0]).double(), torch.tensor([0.5, 2.0, 0.0]).double(), deviations
    )
    draws = moments.draw(count, randomness)
    exact = (moments.variance.diag() + deviations.T @ deviations / 4) / 2
    centred = draws - moments.mean
    measured = centred.T @ centred / count
    errors = ((exact.diag()[:, None] * exact.diag() + exact.square()) / count).sqrt()
    assert ((measured - exact).abs() < 4 * errors).all()
    assert (centred.mean(0).abs() < 4 * (exact.diag() / count).sqrt()).all()
    assert errors.max() < 0.03 * exact.max()


def test_swag_takes_the_epochs_that_are_left_and_stays_near_a_mode(problem: Problem) -> None:
    position = initial_weights(problem.network, generator(SEED))
    start = Ensemble(position[None].numpy(), epochs=3, seconds=2.5)
    steps: list[int] = []
    fitted = swag(problem, start, lambda step: steps.append(step.epoch))
    again = swag(problem, start, lambda step: None)
    assert (fitted.positions == again.positions).all()
    assert fitted.epochs == budget(problem.recipe) == 16
    assert steps == list(range(1, 14))
    assert fitted.seconds == 2.5
    spread = fitted.positions.std(axis=0)
    assert np.isfinite(spread).all()
    images, labels = problem.tensors(problem.validation)
    before, after = (
        torch.nn.functional.cross_entropy(problem.posterior.logits(weights, images), labels).item()
        for weights in (position, torch.from_numpy(fitted.positions[0]))
    )
    assert after < before / 2
    assert math.isfinite(after)
    assert spread.mean() == pytest.approx(0, abs=0.1)
    assert spread.mean() > 0
