"""Last-layer Laplace: a Gaussian over the last layer's weights at a MAP estimate.

With the penultimate features held fixed the logits W φ + b are linear in w = (W, b), so that the
generalised Gauss-Newton matrix is the Hessian of U itself:

    H = Σᵢ (diag(pᵢ) − pᵢ pᵢᵀ) ⊗ φ̃ᵢ φ̃ᵢᵀ + diag(1/σ²),    φ̃ = (φ, 1),    w ~ N(w_MAP, H⁻¹)

over all N training images, with the whole covariance (Kristiadi et al. 2020, arXiv 2002.10118;
Daxberger et al. 2021, arXiv 2106.14806). The predictive is the mean over 32 draws of w.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.baselines.ensemble import DRAWS, Ensemble
from training.chains import generator
from training.problem import Problem

BATCH = 1000
STREAM = 30_000  # chains have numbers below it


def laplace(problem: Problem, start: Ensemble) -> Ensemble:
    """32 draws around the first network of MAP estimates; one more pass over the images.

    `seconds` are those of the start.
    """
    images, _ = problem.tensors(problem.train)
    position = torch.from_numpy(start.positions[0].copy())
    precision = last_layer_precision(problem, position, images)
    size = len(precision)
    randomness = generator(problem.recipe.seed, STREAM)
    normal = torch.randn(size, DRAWS, generator=randomness, dtype=torch.float64)
    factor = torch.linalg.cholesky(precision)
    deviations = torch.linalg.solve_triangular(factor.T, normal, upper=True).T
    positions = position.repeat(DRAWS, 1)
    positions[:, -size:] += deviations.float()
    return Ensemble(positions.numpy(), start.epochs + 1, start.seconds)


@torch.no_grad()
def last_layer_precision(problem: Problem, position: Tensor, images: Tensor) -> Tensor:
    """H in double precision, in the order of the flat vector: W [K, F], then b [K].

    Args:
        problem: gives the network, and σ of each weight.
        position: weights [D].
        images: all N prepared training images.
    """
    network, prior = problem.network, problem.posterior.prior
    classes, width = network.layers[-1].weight_shape
    parameters = network.unflatten(position.unsqueeze(0))
    hessian = torch.zeros(classes, width + 1, classes, width + 1, dtype=torch.float64)
    for batch in images.split(BATCH):
        logits, features = (part.squeeze(1).double() for part in network.forward(parameters, batch))
        p = logits.softmax(dim=1)
        extended = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
        for row in range(classes):
            for column in range(row + 1):
                weight = p[:, row] * (float(row == column) - p[:, column])
                block = (extended * weight[:, None]).T @ extended
                hessian[row, :, column] += block
                if row != column:
                    hessian[column, :, row] += block
    index = torch.arange(classes * (width + 1)).reshape(classes, width + 1)
    order = torch.cat([index[:, :width].flatten(), index[:, width]])
    square = hessian.reshape(len(order), len(order))[order][:, order]
    return square + prior.std[-len(order) :].double().pow(-2).diag()
