"""SWAG: a Gaussian through the iterates of constant-step SGD (Maddox et al. 2019, 1902.02476).

From a MAP estimate SGD with momentum goes on at a constant step. The snapshots θ_i that it leaves
have a mean θ̄, variances s² = mean(θ²) − θ̄² and deviations from their running mean, of which the
last K are the columns of Δ. A draw is

    θ = θ̄ + s z₁ / √2 + Δ z₂ / sqrt(2 (K − 1)),    z₁, z₂ ~ N(0, I).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from training.baselines.ensemble import DRAWS, Ensemble, budget
from training.chains import Progress, generator
from training.minibatches import shuffled
from training.problem import Problem
from training.warm_start import MOMENTUM

RANK = 20
STEP_SHARE = 0.2  # of the warm start's largest step: the paper's .01 after .05
STREAM = 20_000  # chains have numbers below it


@dataclass(frozen=True)
class Moments:
    """What SWAG keeps of the snapshots.

    Attributes:
        mean: θ̄, [D].
        variance: s², [D].
        deviations: Δ, the last K at most, [K, D].
    """

    mean: Tensor
    variance: Tensor
    deviations: Tensor

    @classmethod
    def of(cls, snapshots: Iterable[Tensor]) -> Moments:
        """From two or more weight vectors [D], in double precision."""
        deviations = deque[Tensor](maxlen=RANK)
        mean = squares = torch.zeros(())
        for count, snapshot in enumerate(snapshots, start=1):
            weights = snapshot.double()
            mean = mean + (weights - mean) / count
            squares = squares + (weights.square() - squares) / count
            deviations.append(weights - mean)
        return cls(mean, (squares - mean.square()).clamp(min=0), torch.stack(list(deviations)))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws [count, D]."""
        rank = len(self.deviations)
        first = torch.randn(count, len(self.mean), generator=generator, dtype=torch.float64)
        second = torch.randn(count, rank, generator=generator, dtype=torch.float64)
        diagonal = first * (self.variance / 2).sqrt()
        return self.mean + diagonal + second @ self.deviations / math.sqrt(2 * (rank - 1))


def swag(problem: Problem, start: Ensemble, report: Callable[[Progress], None]) -> Ensemble:
    """32 draws; SGD starts at the first network of MAP estimates and takes what epochs are left.

    `seconds` are those of the start.
    """
    epochs = max(1, budget(problem.recipe) - round(start.epochs))
    moments = Moments.of(_snapshots(problem, torch.from_numpy(start.positions[0]), epochs, report))
    positions = moments.draw(DRAWS, generator(problem.recipe.seed, STREAM))
    return Ensemble(positions.float().numpy(), start.epochs + epochs, start.seconds)


def _snapshots(
    problem: Problem, start: Tensor, epochs: int, report: Callable[[Progress], None]
) -> Iterator[Tensor]:
    """Weights at equal distances: one an epoch, or 2 K in all where the epochs are fewer."""
    images, labels = problem.tensors(problem.train)
    sampler = problem.recipe.sampler
    step_size = STEP_SHARE * sampler.warm_start_step_size
    steps = len(labels) // sampler.batch_size
    every = max(1, epochs * steps // max(epochs, 2 * RANK))
    position, momentum, step = start.clone(), torch.zeros_like(start), 0
    for epoch in range(epochs):
        losses = 0.0
        randomness = generator(problem.recipe.seed, STREAM, epoch + 1)
        for batch in shuffled(len(labels), sampler.batch_size, randomness):
            chosen = images[batch.examples], labels[batch.examples]
            gradient, nll = problem.posterior.gradient(position, *chosen)
            momentum.mul_(MOMENTUM).add_(gradient)
            position.add_(momentum, alpha=-step_size)
            losses += nll
            step += 1
            if step % every == 0:
                yield position
        report(Progress(0, epoch + 1, epochs, losses / steps))
