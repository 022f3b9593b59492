"""The energy around one weight vector: how curved it is, and how noisy its minibatch gradients."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor

from training.minibatches import Batch
from training.posterior import Posterior

BATCHES = 32
CURVATURE_IMAGES = 1024
CURVATURE_ITERATIONS = 12
CURVATURE_DISTANCE = 1e-2


def gradient_variance(
    posterior: Posterior,
    position: Tensor,
    images: Tensor,
    labels: Tensor,
    batches: Iterable[Batch],
) -> Tensor:
    """Var(∇Ū_B) for each weight [D], from up to 32 minibatches."""
    total, squares, count = torch.zeros_like(position), torch.zeros_like(position), 0
    for batch in islice(batches, BATCHES):
        chosen = images[batch.examples], labels[batch.examples]
        gradient, *_ = posterior.weighted_gradient(position, *chosen, batch.weights)
        total.add_(gradient)
        squares.addcmul_(gradient, gradient)
        count += 1
    if count < 2:
        return torch.zeros_like(position)
    return squares.sub_(total.square() / count).div_(count - 1).clamp_(min=0)


def largest_curvature(
    posterior: Posterior,
    position: Tensor,
    images: Tensor,
    labels: Tensor,
    scale: Tensor,
    generator: torch.Generator,
) -> float:
    """Largest eigenvalue λ of S H S, H the Hessian of Ū on up to 1,024 images and S = diag(scale).

    By power iteration on differences of gradients at θ ± 0.01 S v, |v| = 1. A step of size η along
    its direction is stable as long as η λ < 2.
    """
    chosen = torch.randperm(len(labels), generator=generator)[:CURVATURE_IMAGES]
    images, labels = images[chosen], labels[chosen]
    direction = torch.randn(position.shape, generator=generator)
    curvature = 0.0
    for _ in range(CURVATURE_ITERATIONS):
        direction /= direction.norm()
        shift = CURVATURE_DISTANCE * scale * direction
        ahead, _ = posterior.gradient(position + shift, images, labels)
        behind, _ = posterior.gradient(position - shift, images, labels)
        product = scale * (ahead - behind) / (2 * CURVATURE_DISTANCE)
        curvature = torch.dot(direction, product).item()
        direction = product
    return curvature
