from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from training.baselines.ensemble import DRAWS, Ensemble
from training.baselines.laplace import laplace, last_layer_precision
from training.chains import generator
from training.problem import Problem
from training.warm_start import initial_weights

SEED = 13


def test_covariance_is_the_inverse_of_the_brute_force_hessian(problem: Problem) -> None:
    """Of U itself, by automatic differentiation, on 60 images."""
    images, labels = (part[:60] for part in problem.tensors(problem.train))
    position = initial_weights(problem.network, generator(SEED))
    size = problem.network.layers[-1].size
    prior = problem.posterior.prior

    def energy(last: Tensor) -> Tensor:
        weights = torch.cat([position[:-size].double(), last])
        logits = problem.posterior.logits(weights, images.double())
        nll = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        return nll + prior.energy(weights)

    exact = torch.autograd.functional.hessian(energy, position[-size:].double())
    precision = last_layer_precision(problem, position, images)
    torch.testing.assert_close(precision, exact, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(precision.inverse(), exact.inverse(), rtol=1e-4, atol=1e-6)


def test_draws_have_the_covariance_and_leave_other_layers_alone(problem: Problem) -> None:
    """(w − w_MAP)ᵀ H (w − w_MAP), summed over draws, is χ² with 32 · size degrees of freedom."""
    print(f"seed {problem.recipe.seed}")
    position = initial_weights(problem.network, generator(SEED))
    start = Ensemble(position[None].numpy(), epochs=4, seconds=1.0)
    fitted = laplace(problem, start)
    size = problem.network.layers[-1].size
    assert (fitted.positions[:, :-size] == position[:-size].numpy()).all()
    precision = last_layer_precision(problem, position, problem.tensors(problem.train)[0])
    deviations = fitted.positions[:, -size:].astype(np.float64) - position[-size:].numpy()
    chi_square = np.einsum("mi,ij,mj->", deviations, precision.numpy(), deviations)
    freedom = DRAWS * size
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)
    assert (fitted.epochs, fitted.seconds) == (5, 1.0)


def test_a_narrow_prior_narrows_the_draws(problem: Problem) -> None:
    position = initial_weights(problem.network, generator(SEED))
    start = Ensemble(position[None].numpy(), epochs=4, seconds=1.0)
    posterior = problem.posterior
    narrow = replace(posterior, prior=replace(posterior.prior, std=posterior.prior.std / 100))
    wide, tight = (
        laplace(case, start).positions.std(axis=0)[-problem.network.layers[-1].size :].mean()
        for case in (problem, replace(problem, posterior=narrow))
    )
    assert tight < wide / 10
