"""Monte Carlo dropout (Gal & Ghahramani 2016, arXiv 1506.02142).

While the network is trained, as for MAP, every input x_j of a dense layer is multiplied by
z_j / (1 − ρ), z_j ~ Bernoulli(1 − ρ), anew for each image. Afterwards a pass with one mask for all
images is the network whose dense weights are W diag(z) / (1 − ρ): a draw from the distribution over
weights that dropout stands for. So the passes are members as any others, and an image's answer does
not depend on what it is asked with.

The rate ρ is the one of `RATES` with the least validation NLL; each has an equal share of the
epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.networks import ACTIVATIONS, Network
from models.uncertainty import softmax
from training.baselines.ensemble import DRAWS, Ensemble, budget
from training.chains import Progress, generator
from training.checkpoint import ChainError
from training.metrics import negative_log_likelihood
from training.posterior import Posterior
from training.problem import Problem
from training.recipe import change
from training.warm_start import descend, initial_weights

RATES = (0.1, 0.3, 0.5)
STREAM = 10_000  # chains have numbers below it


@dataclass(frozen=True)
class DropoutPosterior(Posterior):
    """Ū of the network with dropout before each dense layer.

    Attributes:
        activation: name of the network's activation.
        rate: ρ, the share of inputs that is dropped.
        generator: source of the masks.
    """

    activation: str
    rate: float
    generator: torch.Generator

    def logits(self, position: Tensor, images: Tensor) -> Tensor:
        """Logits [B, K] of one weight vector [D], each image with masks of its own."""
        parameters = self.network.unflatten(position.unsqueeze(0))
        activate = ACTIVATIONS[self.activation]
        x = images
        for layer in self.network.layers:
            weight, bias = (parameters[f"{layer.name}.{part}"][0] for part in ("weight", "bias"))
            if weight.dim() == 4:
                x = F.max_pool2d(activate(F.conv2d(x, weight, bias)), 2)
                continue
            x = x.flatten(1)
            x = F.linear(x * _mask(x.shape, self.rate, self.generator), weight, bias)
            if layer is not self.network.layers[-1]:
                x = activate(x)
        return x


def dropout(problem: Problem, report: Callable[[Progress], None]) -> Ensemble:
    """32 passes through the network trained at the best of the rates; `seconds` is left 0.

    Raises:
        ChainError: the validation NLL is not finite at any rate.
    """
    epochs = max(1, budget(problem.recipe) // len(RATES))
    images, labels = problem.tensors(problem.validation)
    best, chosen, least = None, 0.0, np.inf
    for index, rate in enumerate(RATES):
        position = _train(problem, index, epochs, report)
        passes = draws(
            problem.network, position, rate, generator(problem.recipe.seed, STREAM + index)
        )
        with torch.no_grad():
            logits = torch.stack([problem.posterior.logits(weights, images) for weights in passes])
        probabilities = softmax(logits.numpy()).mean(axis=0)
        nll = negative_log_likelihood(probabilities, labels.numpy())
        if nll < least:
            best, chosen, least = passes, rate, nll
    if best is None:
        raise ChainError("dropout: the loss is not finite at any rate: take a shorter step")
    return Ensemble(best.numpy(), epochs * len(RATES), 0.0, settings={"rate": chosen})


def draws(network: Network, position: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Weights [32, D] of passes with one mask each."""
    stacked = position.repeat(DRAWS, 1)
    for name, weight in network.unflatten(stacked).items():
        if weight.dim() == 3:  # a dense layer's [M, out, in]
            assert name.endswith(".weight")
            weight.mul_(_mask((DRAWS, 1, weight.shape[2]), rate, generator))
    return stacked


def _train(problem: Problem, index: int, epochs: int, report: Callable[[Progress], None]) -> Tensor:
    recipe, stream = problem.recipe, STREAM + index
    posterior = problem.posterior
    with_dropout = replace(
        problem,
        recipe=change(recipe, {"sampler": {"warm_start_epochs": epochs}}),
        posterior=DropoutPosterior(
            posterior.network,
            posterior.num_data,
            posterior.prior,
            activation=recipe.network.activation,
            rate=RATES[index],
            generator=generator(recipe.seed, stream, epochs + 1),
        ),
    )
    data = problem.tensors(problem.train)
    position = initial_weights(problem.network, generator(recipe.seed, stream, epochs + 2))
    momentum = torch.zeros_like(position)
    for epoch in range(epochs):
        randomness = generator(recipe.seed, stream, epoch + 1)
        nll = descend(with_dropout, position, momentum, epoch, data, randomness)
        report(Progress(index, epoch + 1, epochs, nll))
    return position


def _mask(shape: tuple[int, ...], rate: float, generator: torch.Generator) -> Tensor:
    return torch.empty(shape).bernoulli_(1 - rate, generator=generator).div_(1 - rate)
