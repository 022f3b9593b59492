"""Where a chain begins: near a maximum of the posterior, or at a draw from the prior.

A warm start runs SGD with momentum from He's normal initialisation (2015): linear warm-up over 15 %
of its steps, then half a cosine to 0. On Ū it ends near a maximum of the posterior, where weights
that the data leave free have shrunk, and Langevin steps need a number of N σ²/η to spread them
again. On the mean NLL alone it leaves them as they began: with variance 2 / fan-in, which is the
prior's at a gain of 2.

Chains that take Langevin steps alone from a prior draw must end up telling the same story: if they
do not, the chains have not forgotten where they began.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from models.networks import Network
from training.minibatches import shuffled
from training.problem import Problem

MOMENTUM = 0.9
WARM_UP = 0.15
FLAT = torch.tensor(torch.inf)


def initial_weights(network: Network, generator: torch.Generator) -> Tensor:
    """He's normal initialisation, variance 2 / fan-in, and biases 0, [D]."""
    layers = []
    for layer in network.layers:
        outputs = layer.weight_shape[0]
        scale = math.sqrt(2 / layer.fan_in)
        layers.append(torch.randn(layer.size - outputs, generator=generator) * scale)
        layers.append(torch.zeros(outputs))
    return torch.cat(layers)


def descend(
    problem: Problem,
    position: Tensor,
    momentum: Tensor,
    epoch: int,
    data: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> float:
    """One epoch of the warm start on prepared training data, in place; returns its mean NLL."""
    images, labels = data
    sampler, posterior = problem.recipe.sampler, problem.posterior
    if sampler.warm_start == "likelihood":
        posterior = replace(posterior, prior=replace(posterior.prior, std=FLAT))
    steps = len(labels) // sampler.batch_size
    losses = 0.0
    batches = shuffled(len(labels), sampler.batch_size, generator)
    for step, batch in enumerate(batches, start=epoch * steps):
        factor = _factor(step / (sampler.warm_start_epochs * steps))
        gradient, nll = posterior.gradient(position, images[batch.examples], labels[batch.examples])
        momentum.mul_(MOMENTUM).add_(gradient)
        position.add_(momentum, alpha=-sampler.warm_start_step_size * factor)
        losses += nll
    return losses / steps


def _factor(done: float) -> float:
    if done < WARM_UP:
        return done / WARM_UP
    return (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2
