"""Minibatches: which examples estimate the energy of all, and how much each counts.

Shuffled: an epoch is a random order of all examples, cut into batches; every example counts 1.

Preferential: example i is drawn with probability p_i at every step, and counts 1/(N p_i), which
leaves the mean of the gradient as it is whatever p is. Its variance is least for p_i in proportion
to the norm of the example's gradient (Katharopoulos & Fleuret, ICML 2018), here bounded by that of
its part that is quick to know, the residual r_i = softmax(logits) − onehot(label):

    p_i = u / N + (1 − u) sqrt(q_i) / Σⱼ sqrt(qⱼ),    q_i a running mean of |r_i|²

u keeps every weight below 1/u. Nearly all examples of a fitted network have next to no gradient, so
uniform batches are mostly idle, and their noise heats the few stiff directions of the energy. With
Langevin steps: Putcha, Nemeth & Fearnhead (AISTATS 2023), preferential subsampling.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

UNIFORM = 0.2  # u
MEMORY = 0.5  # share of q_i that a new |r_i|² replaces


@dataclass(frozen=True)
class Batch:
    """Examples [B], and how much each counts, [B]."""

    examples: Tensor
    weights: Tensor


def shuffled(size: int, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
    """One epoch of batches drawn without replacement; a short last batch is dropped."""
    order = torch.randperm(size, generator=generator)
    for examples in order.split(batch_size)[: size // batch_size]:
        yield Batch(examples, torch.ones(batch_size))


def preferential(residuals: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
    """As many batches as a shuffled epoch has, by the q [N] that `residuals` holds at the time.

    Points that cut the probabilities into B equal parts, one at random in each, choose a batch:
    every example's expected count is B p_i, and varies less than with independent draws.
    """
    size = len(residuals)
    for _ in range(size // batch_size):
        probabilities = _probabilities(residuals)
        parts = torch.arange(batch_size, dtype=torch.float64)
        points = (parts + torch.rand(batch_size, generator=generator)) / batch_size
        edges = probabilities.cumsum(0)
        examples = torch.searchsorted(edges, points * edges[-1], right=True).clamp_(max=size - 1)
        yield Batch(examples, (1 / (size * probabilities[examples])).float())


def learn(residuals: Tensor, batch: Batch, seen: Tensor) -> None:
    """Bring q [N] up to date with |r|² [B] of a batch's examples, in place."""
    residuals[batch.examples] = residuals[batch.examples].lerp(seen, MEMORY)


def _probabilities(residuals: Tensor) -> Tensor:
    """All p [N], float64."""
    norms = residuals.double().sqrt()
    total = norms.sum()
    uniform = 1 / len(residuals)
    if total == 0:
        return torch.full_like(norms, uniform)
    return norms.mul_((1 - UNIFORM) / total).add_(UNIFORM * uniform)
