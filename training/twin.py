"""The HMC twin: a recipe made small enough that its sampler can be compared with the exact answer.

The twin of a problem has the same family of network with narrower layers (at most 5,000 weights),
images average-pooled to an edge of at most 16, about 1,000 training images, the same prior family
with the same rule for σ, and the same sampler with the same temperature, step sizes η_t, batch
size B and number of steps. B is kept, and not B/N, so that every step is the recipe's own. What
the twin cannot show is heating by minibatch noise, which grows as η N / (2 B) and is larger in the
recipe itself: it is measured there, as the gradient-noise ratio.

Six chains of full-batch HMC give the reference, six chains of the recipe's sampler are judged by
it. The method follows Izmailov et al. 2021 (arXiv 2104.14421), at a scale of minutes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.networks import Network, build
from models.preprocessing import InputSpec
from training import recipe as recipes
from training.data import Dataset, from_arrays, stratified_split
from training.problem import Problem
from training.recipe import Recipe

MAX_WEIGHTS = 5000
MAX_EDGE = 16
TRAIN_IMAGES = 1000
TEST_IMAGES = 2000
CHAINS = 6
GROUP = 20


def twin(problem: Problem) -> Problem:
    """The small problem; the calibration part stays unused, and keeps its size.

    Raises:
        models.networks.NetworkError, training.posterior.PriorError, training.recipe.RecipeError
    """
    edge = max(problem.train.images.shape[1:3])
    factor = -(-edge // MAX_EDGE)
    train, validation, calibration, test = (
        average_pool(part, factor)
        for part in (
            _some(problem.train, TRAIN_IMAGES, problem.recipe.seed),
            problem.validation,
            problem.calibration,
            _some(problem.test, TEST_IMAGES, problem.recipe.seed),
        )
    )
    height, width, channels = train.images.shape[1:]
    network, architecture = _narrow(problem, (channels, height, width), factor)
    pixels = train.images / np.float32(255)
    steps = problem.posterior.num_data // problem.recipe.sampler.batch_size
    recipe = _stretch(problem.recipe, steps, len(train), architecture)
    return dataclasses.replace(
        problem,
        recipe=recipe,
        input=InputSpec(
            channels=channels,
            height=height,
            width=width,
            polarity=problem.recipe.polarity,
            mean=tuple(round(float(value), 4) for value in pixels.mean(axis=(0, 1, 2))),
            std=tuple(round(float(value), 4) for value in pixels.std(axis=(0, 1, 2))),
        ),
        network=network,
        posterior=recipe.prior.posterior(network, len(train)),
        train=train,
        validation=validation,
        calibration=calibration,
        test=test,
    )


def average_pool(part: Dataset, factor: int) -> Dataset:
    """The images averaged over squares of `factor` pixels; rows and columns left over are cut."""
    if factor == 1:
        return part
    count, height, width, channels = part.images.shape
    rows, columns = height // factor, width // factor
    whole = part.images[:, : rows * factor, : columns * factor]
    squares = whole.reshape(count, rows, factor, columns, factor, channels)
    means = np.rint(squares.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)
    return from_arrays(means, part.labels, part.classes, name=part.name)


@torch.no_grad()
def member_logits(network: Network, samples: NDArray[np.float32], images: Tensor) -> NDArray[Any]:
    """Logits [n, S, K] of weight vectors [S, D] for prepared images [n, C, H, W]."""
    groups = torch.from_numpy(np.array(samples)).split(GROUP)
    parts = [network.forward(network.unflatten(group), images)[0] for group in groups]
    return torch.cat(parts, dim=1).numpy()


def _some(part: Dataset, size: int, seed: int) -> Dataset:
    """`size` of the images at random, by class; all of them if there are no more."""
    if len(part) <= size:
        return part
    return part.select(stratified_split(part.labels, {"some": size}, seed)["some"])


def _narrow(
    problem: Problem, shape: tuple[int, int, int], factor: int
) -> tuple[Network, dict[str, Any]]:
    """The widest network that is small enough, of widths 1, 3/4, 1/2, 3/8 ... of the recipe's."""
    architecture = problem.recipe.network
    kernel = max(2, -(-architecture.kernel // factor))
    for share in (part / 2**power for power in range(12) for part in (1.0, 0.75)):
        sizes: dict[str, Any] = {
            name: tuple(max(2, round(width * share)) for width in getattr(architecture, name))
            for name in ("channels", "hidden")
        }
        network = build(
            architecture.name,
            shape,
            len(problem.labels),
            kernel=kernel,
            activation=architecture.activation,
            **sizes,
        )
        if network.num_weights <= MAX_WEIGHTS:
            break
    return network, {**sizes, "kernel": kernel}


def _stretch(recipe: Recipe, steps: int, num_data: int, architecture: dict[str, Any]) -> Recipe:
    """The recipe with as many steps as before, in more and shorter epochs, and six chains."""
    sampler = recipe.sampler
    batch_size = min(sampler.batch_size, num_data)
    ratio = steps / (num_data // batch_size)
    settings: dict[str, Any] = {
        name: round(getattr(sampler, name) * ratio)
        for name in ("warm_start_epochs", "burn_in_epochs", "sampling_epochs")
    }
    schedule = sampler.schedule.model_dump()
    for name in ("epochs", "cycle_epochs"):
        if name in schedule:
            schedule[name] = max(1, round(schedule[name] * ratio))
    return recipes.change(
        recipe,
        {
            "network": architecture,
            "members": min(recipe.members, CHAINS * sampler.samples),
            "sampler": {
                **settings,
                "batch_size": batch_size,
                "chains": CHAINS,
                "prior_starts": min(sampler.prior_starts, CHAINS // 2),
                "half_step_epochs": 0,
                "schedule": schedule,
            },
        },
    )
